"""Runs the deblocker in JAX, compiled once per shape, on all devices."""

import collections
import functools
import threading
import time
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from cqr_jax import models, weights
from cqr_jax.models.init import shapes
from cqr_jax.restoring import network
from cqr_jax.training import distributed

_COMPILING = threading.Lock()
_CPU_TILES, _TILES = 2, 16  # in a batch, per device of a CPU and per accelerator


class JaxNetwork:
    """A `network.Run` that compiles the network for each shape of its input.

    A batch is divided over the largest number of devices that divides it evenly.
    Weights of the same model share the compiled code.

    Attributes:
      channels, conditioned, tile_batch, fixed_batch, engine, engine_name: as in
        `network.Run`. All tiles should have the same sides.
    """

    engine = "jax"
    fixed_batch = True  # each size of a batch would be compiled

    def __init__(
        self, deblocker: weights.Weights, seconds: dict[str, float] | None = None
    ):
        """Prepares to compile a deblocker.

        Args:
          deblocker: the model and its variables.
          seconds: a defaultdict to which the seconds of 'compiling' and 'restoring'
            are added.
        """
        self.channels = models.channels(deblocker.model)
        self.conditioned = models.conditioned(deblocker.model)
        devices = jax.local_devices()
        on_cpu = devices[0].platform == "cpu"
        self.tile_batch = (_CPU_TILES if on_cpu else _TILES) * len(devices)
        self.engine_name = f"JAX on {devices[0].device_kind}"
        self._model = deblocker.model
        self._params = jax.tree.map(
            lambda x: np.asarray(x, np.float32),
            {"params": deblocker.variables["params"]},
        )
        self._spent = collections.defaultdict(float) if seconds is None else seconds

    def __call__(
        self, images: np.ndarray, compression: np.ndarray | None = None
    ) -> np.ndarray:
        """Restores a batch.

        Args:
          images: as in `network.Run`.
          compression: float32, (count, FEATURES), see `cqr_jax.data.compression`; None
            for unknown. A network that is not conditioned ignores it.
        """
        start = time.perf_counter()
        inputs = network.inputs(self, images, compression)
        with _COMPILING:  # another thread may need the same shape
            run = _compiled(self._model, *[x.shape for x in inputs])
        self._spent["compiling"] += time.perf_counter() - start
        start = time.perf_counter()
        restored = np.asarray(run(self._params, *inputs))
        self._spent["restoring"] += time.perf_counter() - start
        return restored[..., 0] if images.ndim == 3 else restored


@functools.lru_cache(maxsize=64)
def _compiled(model: nn.Module, *input_shapes: tuple[int, ...]) -> Any:
    """Returns the compiled network for float32 inputs of these shapes."""
    inputs = [jax.ShapeDtypeStruct(x, np.float32) for x in input_shapes]
    everywhere, divided = distributed.shardings(distributed.dividing(len(inputs[0])))
    apply = jax.jit(model.apply, in_shardings=(everywhere, *[divided] * len(inputs)))
    return apply.lower({"params": shapes(model, 64)["params"]}, *inputs).compile()
