"""The deblocker on batches of images, compiled once for each shape, on all devices."""

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

# Images (count, height, width), uint8 or float32 in [0, 1], to restored ones: float32,
# of the same shape, near [0, 1] but not clipped. Colour networks also take float32
# (count, height, width, 3), Y, Cb and Cr, and what is known of each image's
# compression, (count, FEATURES).
Run = Callable[..., np.ndarray]


_CPU_TILES, _TILES = 2, 16  # at a time on each device of a CPU, of an accelerator


def tile_batch() -> int:
    """Tiles to restore at a time on all of this process's devices."""
    on_cpu = jax.local_devices()[0].platform == "cpu"
    return (_CPU_TILES if on_cpu else _TILES) * jax.local_device_count()


class Network:
    """The function that restores images of one shape, a `Run`.

    The images are divided over as many of this process's devices as divide them evenly.

    Attributes:
      channels: 1 of a network of Y, 3 of one of Y, Cb and Cr; that takes gray images
        too, as pictures without colour.
      conditioned: whether it uses what it is told of the compression.
    """

    def __init__(
        self, deblocker: weights.Weights, seconds: dict[str, float] | None = None
    ):
        """Prepares to compile a deblocker.

        Args:
          deblocker: its model and variables.
          seconds: a defaultdict, to which the times spent 'compiling' and 'restoring'
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
          images: as of `Run`.
          compression: float32, (count, FEATURES), of `cqr_jax.data.compression`; None
            for unknown. A network that can't be told it does without.
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
    """(count, height, width, channels): of gray images with Cb and Cr of no colour."""
    if images.ndim == 4:
        return images
    images = images[..., None]
    if channels == 1:
        return images
    neutral = np.full_like(images, ZERO[1])
    return np.concatenate([images, neutral, neutral], axis=-1)


def self_ensemble(run: Run) -> Run:
    """The mean over the eight flips and quarter turns of what `run` makes of an image.

    A little better, and eight times as slow (Timofte et al. 2016, section 3.7). Sides
    that are no multiple of 8 are filled up by their last pixels, as JPEG does, so that
    blocks begin at the corner of every turned image as well.
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
    """Of the images that a network restores; a mere function restores planes."""
    return getattr(run, "channels", 1)


def conditioned(run: Run) -> bool:
    """Whether a network uses what it is told of the compression."""
    return getattr(run, "conditioned", False)
