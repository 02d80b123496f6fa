"""Runs on several processes and devices: joining, exchanging values and sharding.

Each process feeds its part of the batch. All processes hold the same state, and only
the first one writes files.
"""

import contextlib
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cqr_jax.errors import UserError, one_line_errors

AXIS = "batch"
_GRACE_PERIOD = 3  # seconds

# What a collective operation reports on CPU or GPU if a process has ended.
_GONE = re.compile(r"gloo|nccl|peer|connection|UNAVAILABLE|ABORTED", re.IGNORECASE)


def join(coordinator: str | None, processes: int | None, index: int | None) -> None:
    """Joins the other processes of this run, each of which has its own devices.

    Call this before any other use of JAX's devices. JAX reads the arguments that are
    None from the environment of a TPU pod slice, Slurm, Open MPI or Kubernetes.

    Args:
      coordinator: HOST:PORT of the first process.
      processes: number of processes.
      index: index of this process, from 0.

    Raises:
      UserError: if an argument is None and not in the environment, or if the
        processes did not connect within five minutes.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            index,
            # The other processes wait at the end while the first one evaluates.
            shutdown_timeout_seconds=24 * 3600,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"can't join the other processes: {str(error).splitlines()[0]}; outside a "
            "TPU pod slice, Slurm, Open MPI and Kubernetes, give all three of "
            "--coordinator=HOST:PORT, --processes and --process"
        ) from None


@contextlib.contextmanager
def exit_without_barrier() -> Iterator[None]:
    """On failure, exits immediately instead of waiting for the other processes.

    The other processes notice at the next collective operation. If this operation waits
    without an error, as it can with several CPU devices in a process, JAX aborts them
    after its timeout of 100 s. Two kinds of failures are raised as usual: those of a
    run of one process, and the exit with the code of a signal, on which all processes
    agreed.
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
            time.sleep(_GRACE_PERIOD)  # the others end with this one; let them report
        os._exit(1)


def _tell(error: BaseException) -> None:
    """Prints one line for a `UserError` or a lost process, else the traceback."""
    known = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    if known and _GONE.search(str(error)):
        reason = str(error).partition("\n")[0]
        error = UserError(
            "another process of this run has ended or can't be reached (its log may "
            "say why); start all processes again to continue from the last "
            f"checkpoint; JAX says: {reason}"
        )
    with contextlib.suppress(SystemExit), one_line_errors():
        if isinstance(error, UserError | KeyboardInterrupt):
            raise error
        traceback.print_exception(error)
    sys.stderr.flush()


def all_reduce_max(value: int) -> int:
    """Returns the maximum of `value` over processes; all of them must call it."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.asarray(value))))


def agreed(value: int) -> bool:
    """Returns whether all processes gave the same value; all of them must call it.

    Args:
      value: from 0 to 2**31 - 1.
    """
    return all_reduce_max(value) == -all_reduce_max(-value)


def barrier(name: str) -> None:
    """Waits until all processes reach the barrier of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_batch(batch_size: int, field: str, grad_accum_steps: int = 1) -> None:
    """Checks that a batch divides evenly into devices and micro-batches.

    Args:
      batch_size: size of the batch, over all devices of all processes.
      field: config field of this size, for the error message.
      grad_accum_steps: number of micro-batches per step.

    Raises:
      UserError: if the batch does not divide evenly.
    """
    count = jax.device_count()
    multiple = count * grad_accum_steps
    if batch_size % multiple:
        each = (
            f", each in {grad_accum_steps} micro-batches"
            if grad_accum_steps > 1
            else ""
        )
        raise UserError(
            f"{field}={batch_size}: must be a multiple of {multiple}, because it "
            f"is split over {count} devices{each}"
        )


def dividing(size: int) -> list[jax.Device]:
    """Returns devices of this process over which a batch of this size divides evenly.

    Their number is the largest possible.
    """
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if size % n == 0)
    return devices[:count]


def shardings(devices: Sequence[jax.Device]) -> tuple[NamedSharding, NamedSharding]:
    """Returns two shardings over the devices.

    The first replicates an array. The second divides it along its first axis.
    """
    # Auto axes, because Linen's reshapes don't support explicit ones.
    mesh = jax.make_mesh((len(devices),), (AXIS,), (AxisType.Auto,), devices=devices)
    specs = PartitionSpec(), PartitionSpec(AXIS)
    everywhere, divided = (NamedSharding(mesh, spec) for spec in specs)
    return everywhere, divided
