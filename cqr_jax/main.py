"""Runs the training or evaluation task of a config file.

    python -m cqr_jax.main --config=configs/deblock.py:quickstart
    python -m cqr_jax.main --config=configs/ranker.py:compact --config.data.name=NAME

Any field of the config can be set on the command line: --config.batch_size=8.

Several processes can train together, each with the devices of its own machine. Pass
--distributed on a TPU pod slice or under Slurm, Open MPI or Kubernetes, where each
process can find its index. Elsewhere pass --coordinator=HOST:PORT --processes=N
--process=I.
"""

import logging
import os
import traceback
from importlib import metadata

from cqr_jax.errors import UserError, extra, one_line_errors

with extra("train"):
    from absl import app, flags
    from absl import logging as absl_logging
    from ml_collections import config_flags

    from cqr_jax import tasks
    from cqr_jax.config import as_flags
    from cqr_jax.data import tensorflow_setup

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, as FILE.py or FILE.py:PRESET."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Train together with the other processes of this job."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of the first process; implies --distributed."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes of this job.")
_PROCESS = flags.DEFINE_integer("process", None, "Index of this process, from 0.")

# Makes XLA take the convolutions of Eigen instead of those of YNNPACK.
EIGEN_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type="
_NO_FILE = "--config names a file that does not exist or can't be read"
_NO_CONFIG = "--config needs a Python file like those in configs/"


def _parse_flags(argv: list[str]) -> list[str]:
    with one_line_errors():
        try:
            rest = flags.FLAGS(argv)
        except flags.Error as error:
            # If the config file raises an error, absl's text ends with the traceback.
            found = str(error).strip().splitlines()
            lines = found if len(found) == 1 else [found[0], found[-1].strip()]
            raise UserError(" ".join(lines)) from None
        except OSError:
            raise UserError(_NO_FILE) from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            overrides = [x for x in argv if x.lstrip("-").startswith("config.")]
            if "get_config" in str(error):
                raise UserError(
                    f"the file has no function get_config; {_NO_CONFIG}"
                ) from None
            if not overrides:
                raise
            words = " ".join(str(x) for x in error.args)  # str(KeyError) quotes it
            raise UserError(
                f"no such config field: {words} in {' '.join(overrides)}"
            ) from None
        except (NameError, SyntaxError) as error:
            raise UserError(f"{_in_file(error)}; {_NO_CONFIG}") from None
        if len(rest) > 1:
            raise UserError(
                f"'{rest[1]}' is not a flag; set fields with --config.NAME=VALUE"
            )
        if _CONFIG.value is None:
            raise UserError("--config=FILE.py is needed, such as configs/deblock.py")
        return rest


def _in_file(error: NameError | SyntaxError) -> str:
    """Returns the message of an error in a config file, with its place."""
    if not isinstance(error, SyntaxError):
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{last.filename}, line {last.lineno}: {error}"
    if not error.filename:  # the file holds null bytes
        return error.msg
    return f"{error.filename}, line {error.lineno}: {error.msg}"


def main(argv: list[str]) -> None:
    """Checks the config and runs its task."""
    del argv
    _start_log()
    config = _CONFIG.value
    with one_line_errors():
        try:
            task = config.task
        except OSError:
            raise UserError(_NO_FILE) from None

        if "task" in config_flags.get_override_values(flags.FLAGS["config"]):
            raise UserError(
                f"--config.task={task}: is set by the file; choose another one with "
                "--config, such as configs/eval.py"
            )
        tensorflow_setup.quiet()  # before a check imports JAX, which sets it too
        joining = _joining(task)
        tasks.check(config)

        set_up_xla(task)
        # Imported after the flags are parsed, so that --help and errors are fast.
        import jax

        from cqr_jax.training import distributed

        if joining:
            distributed.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        log = logging.getLogger("cqr_jax")
        if jax.process_index():
            log.setLevel(logging.WARNING)
        log.info("jax %s on %s", jax.__version__, jax.devices())
        log.info("config:\n  %s", "\n  ".join(as_flags(config)))
        with distributed.exit_without_barrier():
            tasks.TASKS[task].run(config)


def set_up_xla(task: str) -> None:
    """Chooses the faster convolutions of XLA for training on one CPU device.

    XLA of jaxlib 0.10 has two kinds. With those of Eigen, a step on one device is up to
    a fifth faster, but one on several devices of a process is slower
    (benchmarks/results/arrangements.md). The flag does not affect accelerators. XLA
    reads it when a device is first used, and ends the process if it does not know a
    flag. Other versions are therefore left alone, as are flags that the user sets.
    """
    several = os.environ.get("JAX_NUM_CPU_DEVICES", "1") != "1"
    if several or not tasks.TASKS[task].trains:
        return
    if metadata.version("jaxlib").startswith("0.10."):
        os.environ.setdefault("XLA_FLAGS", EIGEN_CONVOLUTIONS)


def _joining(task: str) -> bool:
    """Returns whether the flags make this one of several processes."""
    coordinator = _COORDINATOR.value
    if not _DISTRIBUTED.value and coordinator is None:
        if _PROCESSES.value is not None or _PROCESS.value is not None:
            raise UserError("--processes and --process need --coordinator=HOST:PORT")
        return False
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator={coordinator}: is not HOST:PORT")
    if task not in tasks.TASKS or not tasks.TASKS[task].trains:
        raise UserError(f"config.task={task}: runs in one process")
    return True


def _start_log() -> None:
    """Logs this package from INFO on and libraries from WARNING on, to stderr."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    log = logging.getLogger("cqr_jax")
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    log.propagate = False


def run() -> None:
    """Runs `python -m cqr_jax.main`."""
    app.run(main, flags_parser=_parse_flags)


if __name__ == "__main__":
    run()
