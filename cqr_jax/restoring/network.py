"""Runs the deblocker on batches of images, compiled once per shape, on all devices."""

import collections
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cqr_jax import weights
from cqr_jax.data.compression import FEATURES, transposed
from cqr_jax.data.jpeg import BLOCK
from cqr_jax.data.ycbcr import ZERO
from cqr_jax.training import distributed

# Maps images to restored images. The input is (count, height, width), uint8 or float32
# in [0, 1]. The output is float32 of the same shape, near [0, 1] but not clipped. A
# colour network also takes float32 (count, height, width, 3), Y, Cb and Cr, with the
# features of each image's compression, (count, FEATURES).
Run = Callable[..., np.ndarray]


_CPU_TILES, _TILES = 2, 16  # in a batch, per device of a CPU and per accelerator


def tile_batch() -> int:
    """Returns how many tiles a batch has on all devices of this process."""
    on_cpu = jax.local_devices()[0].platform == "cpu"
    return (_CPU_TILES if on_cpu else _TILES) * jax.local_device_count()


class Network:
    """A `Run` that compiles the network for each shape of its input.

    A batch is divided over the largest number of devices that divides it evenly.

    Attributes:
      channels: 1 for a network of Y, 3 for one of Y, Cb and Cr. The latter takes gray
        images too, as pictures without colour.
      conditioned: whether the network takes the compression as an input.
    """

    def __init__(
        self, deblocker: weights.Weights, seconds: dict[str, float] | None = None
    ):
        """Prepares to compile a deblocker.

        Args:
          deblocker: the model and its variables.
          seconds: a defaultdict to which the seconds of 'compiling' and 'restoring'
            are added.
        """
        self.channels = deblocker.model.channels
        self.conditioned = deblocker.model.conditioning != "none"
        self._model = deblocker.model
        self._params = {"params": deblocker.variables["params"]}
        self._compiled: dict[tuple, Any] = {}
        self._spent = collections.defaultdict(float) if seconds is None else seconds

    def __call__(
        self, images: np.ndarray, compression: np.ndarray | None = None
    ) -> np.ndarray:
        """Restores a batch.

        Args:
          images: as in `Run`.
          compression: float32, (count, FEATURES), see `cqr_jax.data.compression`; None
            for unknown. A network that is not conditioned ignores it.
        """
        start = time.perf_counter()
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / 255
        gray = images.ndim == 3
        inputs = [_with_channels(images, self.channels)]
        if self.conditioned:
            shape = (len(images), FEATURES)
            unknown = np.zeros(shape, np.float32)
            inputs.append(unknown if compression is None else compression)
        shape = inputs[0].shape
        if shape not in self._compiled:
            everywhere, divided = distributed.shardings(
                distributed.dividing(len(images))
            )
            shardings = (everywhere, *[divided] * len(inputs))
            apply = jax.jit(self._model.apply, in_shardings=shardings)
            self._compiled[shape] = apply.lower(self._params, *inputs).compile()
            self._spent["compiling"] += time.perf_counter() - start
            start = time.perf_counter()
        restored = np.asarray(self._compiled[shape](self._params, *inputs))
        self._spent["restoring"] += time.perf_counter() - start
        return restored[..., 0] if gray else restored


def _with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Returns (count, height, width, channels); gray images get neutral Cb and Cr."""
    if images.ndim == 4:
        return images
    images = images[..., None]
    if channels == 1:
        return images
    neutral = np.full_like(images, ZERO[1])
    return np.concatenate([images, neutral, neutral], axis=-1)


def self_ensemble(run: Run) -> Run:
    """Returns a `Run` that averages over the eight flips and quarter turns.

    The result is slightly better and takes eight times as long (Timofte et al. 2016,
    section 3.7). Sides that are not a multiple of 8 are padded with their last pixels,
    as JPEG does, so that blocks begin at the corner of every turned image.
    """

    def ensembled(images, *compression):
        _, height, width, *channels = images.shape
        filling = [(0, 0), (0, -height % BLOCK), (0, -width % BLOCK)]
        images = np.pad(images, [*filling, *[(0, 0)] * len(channels)], "edge")
        total = np.zeros(images.shape, np.float32)
        for turns in range(4):
            told = [transposed(x) if turns % 2 else x for x in compression]
            for step in (1, -1):
                turned = np.rot90(images, turns, (1, 2))[:, ::step]
                restored = run(np.ascontiguousarray(turned), *told)[:, ::step]
                total += np.rot90(restored, -turns, (1, 2))
        return total[:, :height, :width] / 8

    ensembled.channels = channels(run)  # type: ignore[attr-defined]
    ensembled.conditioned = conditioned(run)  # type: ignore[attr-defined]
    return ensembled


def channels(run: Run) -> int:
    """Returns the number of channels that a network restores; 1 for a function."""
    return getattr(run, "channels", 1)


def conditioned(run: Run) -> bool:
    """Returns whether a network takes the compression as an input."""
    return getattr(run, "conditioned", False)
