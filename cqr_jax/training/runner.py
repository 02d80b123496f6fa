"""Distribution of a pure step over devices, by `jax.jit` with shardings or `jax.pmap`.

With both, the state and the ranker's variables are replicated on every device, and the
batch is sharded along its first axis. Under jit, the program sees the whole batch, and
so do the statistics of BatchNorm. Under pmap, each device sees its shard, and a step
averages over the axis `Runner.axis_name`.
"""

import abc
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cqr_jax.training.distributed import AXIS, shardings


class Runner(abc.ABC):
    """Replicates state, shards batches and compiles steps.

    Attributes:
      axis_name: axis over which a step must average explicitly; None under jit.
    """

    axis_name: str | None = None

    @abc.abstractmethod
    def replicate(self, tree: Any) -> Any:
        """Puts a tree of arrays, equal in all processes, on every device."""

    @abc.abstractmethod
    def unreplicate(self, tree: Any) -> Any:
        """Returns the NumPy arrays of a replicated tree."""

    @abc.abstractmethod
    def shard_batch(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Shards this process's part of a batch over its devices."""

    @abc.abstractmethod
    def compile_train_step(self, step: Callable) -> Callable:
        """Compiles (state, ranker_variables, batch) -> (state, metrics).

        The state is donated: its memory is reused for the new state.
        """

    @abc.abstractmethod
    def compile_eval_step(self, step: Callable) -> Callable:
        """Compiles (variables, ranker_variables, batch) -> sums."""


class JitRunner(Runner):
    """Runs a step as one program over all devices."""

    def __init__(self) -> None:
        self._everywhere, self._divided = shardings(jax.devices())

    def replicate(self, tree: Any) -> Any:
        return jax.device_put(jax.device_get(tree), self._everywhere)

    def unreplicate(self, tree: Any) -> Any:
        return jax.device_get(tree)

    def shard_batch(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        return {
            k: jax.make_array_from_process_local_data(self._divided, x)
            for k, x in batch.items()
        }

    def compile_train_step(self, step: Callable) -> Callable:
        return jax.jit(step, donate_argnums=0, out_shardings=self._everywhere)

    def compile_eval_step(self, step: Callable) -> Callable:
        return jax.jit(step, out_shardings=self._everywhere)


class PmapRunner(Runner):
    """Runs a step as one program for each device."""

    axis_name = AXIS

    def replicate(self, tree: Any) -> Any:
        count = jax.local_device_count()
        stacked = jax.tree.map(lambda x: np.stack([x] * count), jax.device_get(tree))
        if not jax.tree.leaves(stacked):  # pmap rejects an empty tree
            return stacked
        return jax.pmap(lambda x: x)(stacked)  # else every step would transfer it

    def unreplicate(self, tree: Any) -> Any:
        return jax.device_get(jax.tree.map(lambda x: x[0], tree))

    def shard_batch(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        count = jax.local_device_count()
        return {k: x.reshape(count, -1, *x.shape[1:]) for k, x in batch.items()}

    def compile_train_step(self, step: Callable) -> Callable:
        return jax.pmap(step, axis_name=AXIS, donate_argnums=0)

    def compile_eval_step(self, step: Callable) -> Callable:
        return jax.pmap(step, axis_name=AXIS)


def create(mode: str) -> Runner:
    """Returns the runner for `config.parallel`, 'jit' or 'pmap'."""
    return PmapRunner() if mode == "pmap" else JitRunner()
