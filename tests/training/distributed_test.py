"""Tests of runs on several devices and processes: results, signals and failures."""

import os
import re
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from configs import ranker
from cqr_jax.errors import UserError
from cqr_jax.training import runner, stages
from cqr_jax.training.workdir import Workdir
from tests.conftest import FAST_COMPILING, ROOT, run, start


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _flags(devices: int) -> str:
    return f"{FAST_COMPILING} --xla_force_host_platform_device_count={devices}"


def _train(data_dir, workdir, *more, devices=1, **kwargs):
    """Starts a process that trains a small deblocker on `devices` devices.

    No ranker guides it. It is compiled in a fraction of the time of a ranker.
    """
    return start(
        "cqr_jax.main",
        "--config=configs/deblock.py:quickstart",
        f"--config.workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        "--config.data.name=photos",
        "--config.loss.alpha=0",
        "--config.loss.beta=0",
        "--config.model.width=6",
        "--config.model.local_blocks=0",
        "--config.model.masks=False",
        "--config.batch_size=8",
        "--config.validation.examples=8",
        "--config.validation.batch_size=8",
        "--config.optimizer.warmup_steps=0",
        "--config.log_every=2",
        *more,
        env={
            **os.environ,
            "XLA_FLAGS": _flags(devices),
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


def _two_of_slurm(data_dir, workdirs):
    """Starts two processes with the environment that `srun` sets."""
    # JAX derives the port from the number of the job.
    job = _free_port() % 4096
    return [
        _train(
            data_dir,
            workdir,
            "--distributed",
            SLURM_JOB_ID=str(job),
            SLURM_STEP_NODELIST="localhost",
            SLURM_NTASKS="2",
            SLURM_PROCID=str(i),
            SLURM_LOCALID=str(i),
        )
        for i, workdir in enumerate(workdirs)
    ]


def _finish(*processes):
    """Waits for the processes; returns their exit codes and standard errors."""
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], errors


def _checkpoints(workdir):
    return [p for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()]


# Two steps of plain gradient descent on a ranker. Adam would scale up the rounding
# errors of gradients that are zero. After more steps, rounding errors would change the
# sign of an activation, and gradients by a thousandth. Each process feeds its part of
# the batch. Four of the ranker's convolutions are compiled sooner than all ten.
_DESCEND = """
import functools, sys
import jax, numpy as np, optax
from cqr_jax.training import distributed, runner, state, steps
from cqr_jax.models import ranker
from cqr_jax.models.ranker import Ranker

ranker._CONVOLUTIONS = ranker._CONVOLUTIONS[:4]

path, modes, port, processes, index = sys.argv[1:]
count, index = int(processes), int(index)
if count > 1:
    distributed.join(f"localhost:{port}", count, index)
for mode in modes.split(","):
    rng = np.random.default_rng(0)
    run = runner.create(mode)
    axis = run.axis_name
    model = Ranker(width=2, axis_name=axis)
    optimizer = optax.sgd(0.1)
    train_state = run.replicate(state.create(model, 48, optimizer, 0))
    assert run.replicate({}) == {}  # the variables if there is no ranker
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(train_state))
    step = run.compile_train_step(functools.partial(
        steps.ranker_train_step, apply=model.apply, optimizer=optimizer, margin=0.5,
        ema_decay=0.5, axis_name=axis))
    for _ in range(2):
        batch = {
            "image_i": rng.integers(0, 256, (16, 48, 48, 1), np.uint8),
            "image_j": rng.integers(0, 256, (16, 48, 48, 1), np.uint8),
            "label_i": np.full(16, 1), "label_j": rng.integers(2, 4, 16),
        }
        part = {k: np.split(x, count)[index] for k, x in batch.items()}
        train_state, _ = step(train_state, {}, run.shard_batch(part))
    leaves = jax.tree.leaves(run.unreplicate(train_state))
    np.savez(f"{path}-{mode}-{index}", *leaves)
"""


def _descend(
    path, devices, processes, modes=("jit", "pmap")
) -> dict[tuple[str, int], list[np.ndarray]]:
    """Returns the final states by (mode, process).

    All processes have the same number of devices.
    """
    port = _free_port()
    words = [sys.executable, "-c", _DESCEND, path, ",".join(modes)]
    words += [str(port), str(processes)]
    started = [
        subprocess.Popen(
            [*words, str(i)],
            cwd=ROOT,
            env={**os.environ, "XLA_FLAGS": _flags(devices // processes)},
        )
        for i in range(processes)
    ]
    try:
        assert [process.wait(300) for process in started] == [0] * processes
    finally:
        for process in started:
            process.kill()
    found = {}
    for mode in modes:
        for i in range(processes):
            with np.load(f"{path}-{mode}-{i}.npz") as arrays:
                found[mode, i] = [arrays[name] for name in arrays.files]
    return found


@pytest.mark.slow
def test_many_devices_and_processes_learn_the_same_as_one_device(tmp_path):
    expected = _descend(tmp_path / "one", 1, 1, ("jit",))["jit", 0]
    for processes in (1, 2):
        states = _descend(tmp_path / f"many{processes}", 4, processes)
        assert len(states) == 2 * processes
        for where, found in states.items():
            for one, many in zip(expected, found, strict=True):
                np.testing.assert_allclose(
                    many, one, rtol=2e-4, atol=2e-5, err_msg=str(where)
                )


def test_processes_with_other_configs_get_an_error(tmp_path, monkeypatch):
    config = ranker.get_config("quickstart")
    told = {}

    def gather(value):  # the other process tells what the first call told
        return np.stack([told.setdefault(np.sign(value), value), value])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    Workdir(str(tmp_path)).keep(config, {"mine": "a"}, None, {})
    Workdir(str(tmp_path)).keep(config, {"mine": "a"}, None, {})
    config.seed = 7
    with pytest.raises(UserError, match="the processes have different configs"):
        Workdir(str(tmp_path)).keep(config, {"mine": "a"}, None, {})


@pytest.mark.parametrize("synchronised", [True, False])
def test_batch_norm_is_synchronised_as_configured(synchronised):
    config = ranker.get_config("quickstart")
    assert (
        stages.ranker_steps(config).model.axis_name is None
    )  # jit sees the whole batch
    config.parallel = "pmap"
    config.sync_batch_norm = synchronised
    axis = stages.ranker_steps(config).model.axis_name
    assert axis == (runner.create("pmap").axis_name if synchronised else None)


@pytest.mark.slow
def test_missing_flags_outside_a_cluster_are_an_error(tmp_path):
    clusters = ("SLURM_", "OMPI_", "KUBERNETES_")
    code, _, err = run(
        "cqr_jax.main",
        "--config=configs/ranker.py:quickstart",
        "--distributed",
        f"--config.workdir={tmp_path}",
        env={k: v for k, v in os.environ.items() if not k.startswith(clusters)},
    )
    assert code == 1
    assert "give all three of --coordinator=HOST:PORT, --processes" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_slurm_processes_without_a_shared_workdir_get_an_error(data_dir, tmp_path):
    workdirs = [tmp_path / "one", tmp_path / "other"]
    codes, errors = _finish(*_two_of_slurm(data_dir, workdirs))
    assert codes == [1, 1], errors
    for workdir, err in zip(workdirs, errors, strict=True):
        assert f"error: {workdir}: not all processes see this folder" in err
        assert "Traceback" not in err
    assert "CpuDevice" in errors[0]
    assert "CpuDevice" not in errors[1]  # only the first process logs


@pytest.mark.slow
def test_killed_process_ends_the_others_and_the_run_resumes(data_dir, tmp_path):
    long = ("--config.steps=100000", "--config.validate_every=10")
    processes = _two(data_dir, tmp_path, *long)
    for line in processes[0].stderr:  # read at once, so that the line is recent
        # Just after a checkpoint, if it was written that fast.
        if re.search(r" \d+2/100000 ", line) and _checkpoints(tmp_path):
            break
    assert _checkpoints(tmp_path)
    processes[1].kill()
    codes, errors = _finish(*processes)
    assert codes == [1, -signal.SIGKILL], errors[0]
    assert "error: another process of this run has ended" in errors[0]
    assert re.search("JAX says: .*[Gg]loo", errors[0])
    assert "Traceback" not in errors[0]

    # Resume with another number of devices. A signal to one process stops both.
    processes = _two(data_dir, tmp_path, *long, devices=2)
    for line in processes[0].stderr:
        if "resuming at step" in line:
            resumed = int(line.split()[-1])
        if "/100000" in line:
            break
    processes[1].terminate()
    codes, errors = _finish(*processes)
    assert codes == [128 + signal.SIGTERM] * 2
    assert resumed % 10 == 0
    assert "saved" in errors[0]
    assert "did not provide metrics" not in errors[0]  # Orbax would say so
    assert "/100000" not in errors[1]
