"""The two ways to run a pure step on all devices: jit with shardings, and pmap.

In both the state and the frozen variables are on every device and the batch is split
along its first axis. Under jit the program sees the whole batch, and so do BatchNorm's
statistics; under pmap each device sees its part, and what has to be averaged names
`axis_name(mode)`.

The devices may be those of several processes (`join`). Each of them then feeds its part
of the batch, all hold the same state, and the first alone writes.
"""

import contextlib
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cqr_jax.errors import UserError, one_line_errors

_AXIS = "batch"
_FAREWELL = 3  # seconds

# What a collective operation says on CPU or GPU when one of its processes is gone.
_GONE = re.compile(r"gloo|nccl|peer|connection|UNAVAILABLE|ABORTED", re.IGNORECASE)


def join(coordinator: str | None, processes: int | None, index: int | None) -> None:
    """Makes one run of several processes, each with devices of its own.

    To be called before anything else asks JAX for devices. What is None comes from the
    environment where JAX knows it: TPU pod slices, Slurm, Open MPI, Kubernetes.

    Args:
      coordinator: HOST:PORT of the first process.
      processes: how many there are.
      index: of this process, from 0.

    Raises:
      UserError: the environment doesn't tell what is missing, or the processes did not
        meet within five minutes.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            index,
            # The others wait while the first evaluates.
            shutdown_timeout_seconds=24 * 3600,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"can't join the other processes: {str(error).splitlines()[0]}; where no "
            "TPU pod slice, Slurm, Open MPI or Kubernetes tells, give all three of "
            "--coordinator=HOST:PORT, --processes and --process"
        ) from None


@contextlib.contextmanager
def failing_alone():
    """Ends a process that fails at once, where an orderly exit waits for the others.

    They find out by themselves: from the next collective operation, or within JAX's
    100 s of patience. An exit that all agreed on (with a signal's code) is left alone,
    and so is a run of one process.
    """
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else None
        agreed = isinstance(code, int) and code > 128
        if jax.process_count() == 1 or agreed:
            raise
        _tell(error)
        if jax.process_index() == 0:
            time.sleep(_FAREWELL)  # the others end with the first: let them speak
        os._exit(1)


def _tell(error: BaseException) -> None:
    """Prints one line for a user's mistake or a lost process, else the traceback."""
    known = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    if known and _GONE.search(str(error)):
        error = UserError(
            "another process of this run is gone (its own log may say why); start all "
            "of them again: they go on from the last checkpoint"
        )
    with contextlib.suppress(SystemExit), one_line_errors():
        if isinstance(error, UserError | KeyboardInterrupt):
            raise error
        traceback.print_exception(error)
    sys.stderr.flush()


def largest(value: int) -> int:
    """The largest of the processes' values; all of them must call it."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.asarray(value))))


def wait(what: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def axis_name(mode: str) -> str | None:
    """The axis over which a step has to average by itself."""
    return _AXIS if mode == "pmap" else None


def check_batch(batch_size: int, field: str, parts: int = 1) -> None:
    """Raises a UserError unless the batch splits evenly over devices and parts."""
    count = jax.device_count()
    if batch_size % (count * parts):
        each = f", each in {parts} parts" if parts > 1 else ""
        raise UserError(
            f"{field}={batch_size}: must be a multiple of {count * parts}, for it is "
            f"split over {count} devices{each}"
        )


def replicate(tree: Any, mode: str) -> Any:
    """Puts a tree of arrays, the same in all processes, on every device."""
    tree = jax.device_get(tree)
    if mode == "pmap":
        count = jax.local_device_count()
        stacked = jax.tree.map(lambda x: np.stack([x] * count), tree)
        if not jax.tree.leaves(stacked):  # nothing frozen: there is no ranker
            return stacked
        return jax.pmap(lambda x: x)(stacked)  # else each step would move it there
    everywhere, _ = shardings(jax.devices())
    return jax.device_put(tree, everywhere)


def fetch(tree: Any, mode: str) -> Any:
    """Undoes `replicate`: the NumPy arrays of one device."""
    if mode == "pmap":
        tree = jax.tree.map(lambda x: x[0], tree)
    return jax.device_get(tree)


def split(batch: dict[str, np.ndarray], mode: str) -> dict[str, Any]:
    """Splits this process's part of a batch over its devices."""
    if mode == "pmap":
        count = jax.local_device_count()
        return {k: x.reshape(count, -1, *x.shape[1:]) for k, x in batch.items()}
    _, divided = shardings(jax.devices())
    return {
        k: jax.make_array_from_process_local_data(divided, x) for k, x in batch.items()
    }


def compile_train_step(step: Callable, mode: str) -> Callable:
    """(state, frozen, batch) -> (state, metrics), the state's memory used anew."""
    if mode == "pmap":
        return jax.pmap(step, axis_name=_AXIS, donate_argnums=0)
    everywhere, _ = shardings(jax.devices())
    return jax.jit(step, donate_argnums=0, out_shardings=everywhere)


def compile_eval_step(step: Callable, mode: str) -> Callable:
    """(variables, frozen, batch) -> sums."""
    if mode == "pmap":
        return jax.pmap(step, axis_name=_AXIS)
    everywhere, _ = shardings(jax.devices())
    return jax.jit(step, out_shardings=everywhere)


def dividing(size: int) -> list[jax.Device]:
    """As many of this process's devices as divide a batch of this size."""
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if size % n == 0)
    return devices[:count]


def shardings(devices: Sequence[jax.Device]) -> tuple[NamedSharding, NamedSharding]:
    """On each of the devices, and divided over them along the first axis."""
    # Auto axes: Linen's reshapes don't know explicit ones.
    mesh = jax.make_mesh((len(devices),), (_AXIS,), (AxisType.Auto,), devices=devices)
    specs = PartitionSpec(), PartitionSpec(_AXIS)
    everywhere, divided = (NamedSharding(mesh, spec) for spec in specs)
    return everywhere, divided
