"""The two ways to run a pure step on all devices: jit with shardings, and pmap.

In both the state and the frozen variables are on every device and the batch is split
along its first axis. Under jit the program sees the whole batch, and so do BatchNorm's
statistics; under pmap each device sees its part, and what has to be averaged names
`axis_name(mode)`.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cqr_jax.errors import UserError

_AXIS = "batch"


def axis_name(mode: str) -> str | None:
    """The axis over which a step has to average by itself."""
    return _AXIS if mode == "pmap" else None


def check_batch(batch_size: int, field: str) -> None:
    """Raises a UserError unless the batch splits evenly over all devices."""
    count = jax.device_count()
    if batch_size % count:
        raise UserError(
            f"{field}={batch_size}: must be a multiple of the {count} devices"
        )


def replicate(tree: Any, mode: str) -> Any:
    """Puts a tree of arrays on every device."""
    if mode == "pmap":
        count = jax.local_device_count()
        return jax.tree.map(lambda x: np.stack([np.asarray(x)] * count), tree)
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def unreplicate(tree: Any, mode: str) -> Any:
    """Undoes `replicate`."""
    return jax.tree.map(lambda x: x[0], tree) if mode == "pmap" else tree


def split(batch: dict[str, np.ndarray], mode: str) -> dict[str, Any]:
    """Splits this process's part of a batch over its devices."""
    if mode == "pmap":
        count = jax.local_device_count()
        return {k: x.reshape(count, -1, *x.shape[1:]) for k, x in batch.items()}
    sharding = NamedSharding(_mesh(), PartitionSpec(_AXIS))
    return {
        k: jax.make_array_from_process_local_data(sharding, x) for k, x in batch.items()
    }


def compile_train_step(step: Callable, mode: str) -> Callable:
    """(state, frozen, batch) -> (state, metrics), the state's memory used anew."""
    if mode == "pmap":
        return jax.pmap(step, axis_name=_AXIS, donate_argnums=0)
    everywhere = NamedSharding(_mesh(), PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=everywhere)


def compile_eval_step(step: Callable, mode: str) -> Callable:
    """(variables, frozen, batch) -> sums."""
    if mode == "pmap":
        return jax.pmap(step, axis_name=_AXIS)
    return jax.jit(step, out_shardings=NamedSharding(_mesh(), PartitionSpec()))


def _mesh() -> jax.sharding.Mesh:
    # Auto axes: Linen's reshapes don't know explicit ones.
    return jax.make_mesh((jax.device_count(),), (_AXIS,), (AxisType.Auto,))
