"""The deblocker on batches of images, compiled once for each shape, on all devices."""

import collections
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cqr_jax import parallel, weights
from cqr_jax.data.jpeg import BLOCK

# Images (count, height, width), uint8 or float32 in [0, 1], to restored ones: float32,
# of the same shape, near [0, 1] but not clipped.
Run = Callable[[np.ndarray], np.ndarray]


_CPU_TILES, _TILES = 2, 16  # at a time on each device of a CPU, of an accelerator


def tile_batch() -> int:
    """Tiles to restore at a time on all of this process's devices."""
    on_cpu = jax.local_devices()[0].platform == "cpu"
    return (_CPU_TILES if on_cpu else _TILES) * jax.local_device_count()


def runner(deblocker: weights.Weights, seconds: dict[str, float] | None = None) -> Run:
    """The function that restores images of one shape.

    They are divided over as many of this process's devices as divide them evenly.

    Args:
      deblocker: its model and variables.
      seconds: a defaultdict, to which the times spent 'compiling' and 'restoring' are
        added.
    """
    params = {"params": deblocker.variables["params"]}
    compiled: dict[tuple, Any] = {}
    spent = collections.defaultdict(float) if seconds is None else seconds

    def run(images):
        start = time.perf_counter()
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / 255
        images = images[..., None]
        if images.shape not in compiled:
            shardings = parallel.shardings(parallel.dividing(len(images)))
            apply = jax.jit(deblocker.model.apply, in_shardings=shardings)
            compiled[images.shape] = apply.lower(params, images).compile()
            spent["compiling"] += time.perf_counter() - start
            start = time.perf_counter()
        restored = np.asarray(compiled[images.shape](params, images))[..., 0]
        spent["restoring"] += time.perf_counter() - start
        return restored

    return run


def self_ensemble(run: Run) -> Run:
    """The mean over the eight flips and quarter turns of what `run` makes of an image.

    A little better, and eight times as slow (Timofte et al. 2016, section 3.7). Sides
    that are no multiple of 8 are filled up by their last pixels, as JPEG does, so that
    blocks begin at the corner of every turned image as well.
    """

    def ensembled(images):
        _, height, width = images.shape
        filling = ((0, 0), (0, -height % BLOCK), (0, -width % BLOCK))
        images = np.pad(images, filling, "edge")
        total = np.zeros(images.shape, np.float32)
        for turns in range(4):
            for step in (1, -1):
                turned = np.rot90(images, turns, (1, 2))[:, ::step]
                restored = run(np.ascontiguousarray(turned))[:, ::step]
                total += np.rot90(restored, -turns, (1, 2))
        return total[:, :height, :width] / 8

    return ensembled
