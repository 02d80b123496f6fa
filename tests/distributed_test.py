"""Runs of two processes over loopback: equal to one process; stopped; killed."""

import os
import signal
import socket
import time

import numpy as np
import pytest
import safetensors.numpy

from tests.conftest import start


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _train(data_dir, workdir, *more, devices=1, **kwargs):
    """Starts a training of the ranker on `devices` devices of this process."""
    return start(
        "cqr_jax.main",
        "--config=configs/ranker.py:quickstart",
        f"--config.workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        "--config.data.name=photos",
        "--config.model.width=2",
        "--config.batch_size=8",
        "--config.validation.examples=8",
        "--config.validation.batch_size=8",
        "--config.optimizer.warmup_steps=0",
        "--config.log_every=2",
        *more,
        env={
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            **kwargs,
        },
    )


def _two(data_dir, workdir, *more, devices=1):
    address = f"--coordinator=localhost:{_free_port()}"
    return [
        _train(
            data_dir,
            workdir,
            address,
            "--processes=2",
            f"--process={i}",
            *more,
            devices=devices,
        )
        for i in range(2)
    ]


def _two_of_slurm(data_dir, workdir, *more):
    """The same, told of one another as `srun` tells."""
    # JAX takes the port from the number of the job.
    job = _free_port() % 4096
    return [
        _train(
            data_dir,
            workdir,
            "--distributed",
            *more,
            SLURM_JOB_ID=str(job),
            SLURM_STEP_NODELIST="localhost",
            SLURM_NTASKS="2",
            SLURM_PROCID=str(i),
            SLURM_LOCALID=str(i),
        )
        for i in range(2)
    ]


def _finish(*processes):
    """Exit codes and standard errors."""
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], errors


def _wait_for_a_checkpoint(workdir, processes):
    end = time.monotonic() + 200
    while not any(p.name.isdigit() for p in (workdir / "checkpoints").glob("*")):
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(data_dir, tmp_path):
    steps = ("--config.steps=4", "--config.validate_every=4")
    runs = {
        "one": [_train(data_dir, tmp_path / "one", *steps)],
        "jit": _two(data_dir, tmp_path / "jit", *steps, devices=2),
        "pmap": _two_of_slurm(
            data_dir, tmp_path / "pmap", *steps, "--config.parallel=pmap"
        ),
    }
    for name, processes in runs.items():
        codes, errors = _finish(*processes)
        assert not any(codes), errors
        assert "4/4" in errors[0], name
        assert all("4/4" not in error for error in errors[1:])  # one process tells
    one, *others = (
        safetensors.numpy.load_file(tmp_path / name / "ranker.safetensors")
        for name in runs
    )
    # A bias before a BatchNorm has no gradient but rounding, which Adam scales up; the
    # stored means hold those biases.
    idle = {f"params/conv{i}/bias" for i in range(1, 10)}
    for other in others:
        for key in one.keys() - idle:
            atol = 5e-3 if key.endswith("mean") else 2e-5
            np.testing.assert_allclose(other[key], one[key], rtol=1e-3, atol=atol)


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_run_resumes(data_dir, tmp_path):
    long = ("--config.steps=100000", "--config.validate_every=10")
    processes = _two(data_dir, tmp_path, *long)
    _wait_for_a_checkpoint(tmp_path, processes)
    for line in processes[0].stderr:
        if "2/100000" in line:  # far from the next checkpoint
            break
    processes[1].kill()
    codes, errors = _finish(*processes)
    assert codes == [1, -signal.SIGKILL]
    assert "error: another process of this run is gone" in errors[0]
    assert "Traceback" not in errors[0]

    # With another number of devices; told to stop, it says where.
    process = _train(data_dir, tmp_path, *long, devices=4)
    for line in process.stderr:
        if "resuming at step" in line:
            resumed = int(line.split()[-1])
        if "/100000" in line:
            break
    process.send_signal(signal.SIGTERM)
    codes, errors = _finish(process)
    assert codes == [128 + signal.SIGTERM]
    assert resumed % 10 == 0
    assert "saved" in errors[0]


@pytest.mark.slow
def test_one_process_told_to_stop_stops_all_at_the_same_step(data_dir, tmp_path):
    processes = _two(
        data_dir, tmp_path, "--config.steps=100000", "--config.validate_every=5"
    )
    _wait_for_a_checkpoint(tmp_path, processes)
    processes[1].terminate()
    codes, errors = _finish(*processes)
    assert codes == [128 + signal.SIGTERM] * 2
    assert "saved" in errors[0]
