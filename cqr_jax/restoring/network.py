"""The function that restoring runs on images, and the engines that compute it.

An engine is JAX or OpenVINO. OpenVINO is faster on CPUs. Accelerators run JAX.
"""

import importlib.metadata
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from cqr_jax import weights
from cqr_jax.data.compression import FEATURES
from cqr_jax.data.jpeg import BLOCK
from cqr_jax.data.ycbcr import ZERO
from cqr_jax.errors import UserError

# Maps images to restored images. The input is (count, height, width), uint8 or float32
# in [0, 1]. The output is float32 of the same shape, near [0, 1] but not clipped. A
# network of three channels also takes float32 (count, height, width, 3), Y, Cb and Cr.
# A conditioned one takes the features of each image's compression as well, float32,
# (count, FEATURES), see `cqr_jax.data.compression`.
#
# A network has these attributes. A function may lack them.
#   channels: 1 (the default) for a network of Y, 3 for one of Y, Cb and Cr. The latter
#     takes gray images too, as pictures without colour.
#   conditioned: whether it takes the compression; no by default.
#   tile_batch: number of tiles that it takes well at a time; 1 by default.
#   fixed_batch: whether all batches of tiles should have this size; no by default.
#   multiple: the sides of tiles may be any multiples of this; 0 (the default) if all
#     tiles should have the same sides.
#   parallel: number of tiles that it computes at the same time; 1 by default.
#   engine: 'jax' or 'openvino'; empty by default.
#   engine_name: name of the engine with its device or precision; empty by default.
Run = Callable[..., np.ndarray]
_ATTRIBUTES = (
    "channels",
    "conditioned",
    "tile_batch",
    "fixed_batch",
    "multiple",
    "parallel",
    "engine",
    "engine_name",
)


def channels(run: Run) -> int:
    """Returns the number of channels that a network restores."""
    return getattr(run, "channels", 1)


def conditioned(run: Run) -> bool:
    """Returns whether a network takes the compression as an input."""
    return getattr(run, "conditioned", False)


def tile_batch(run: Run) -> int:
    """Returns the number of tiles that a network takes well at a time."""
    return getattr(run, "tile_batch", 1)


def fixed_batch(run: Run) -> bool:
    """Returns whether all batches of a network should have the same size."""
    return getattr(run, "fixed_batch", False)


def multiple(run: Run) -> int:
    """Returns what the sides of a network's tiles are multiples of.

    If it is 0, all tiles should have the same sides.
    """
    return getattr(run, "multiple", 0)


def parallel(run: Run) -> int:
    """Returns the number of tiles that a network computes at the same time."""
    return getattr(run, "parallel", 1)


def engine(run: Run) -> str:
    """Returns 'jax' or 'openvino', or '' for another engine."""
    return getattr(run, "engine", "")


def engine_name(run: Run) -> str:
    """Returns the name of a network's engine with its device or precision."""
    return getattr(run, "engine_name", "")


def attributes(run: Run) -> dict[str, Any]:
    """Returns name -> value of the attributes that a network has."""
    return {name: getattr(run, name) for name in _ATTRIBUTES if hasattr(run, name)}


def load(path: str | os.PathLike, engine: str = "auto") -> Run:
    """Loads a deblocker for an engine.

    Args:
      path: file of the weights.
      engine: 'jax'; 'openvino'; or 'auto' for OpenVINO if it is installed and JAX has
        only the CPU, else JAX.

    Raises:
      UserError: if there is no such file, if it does not hold a deblocker's weights, or
        if OpenVINO was asked for and does not work here.
    """

    def openvino() -> Run:
        from cqr_jax.restoring import openvino_network

        return openvino_network.OpenvinoNetwork(path)

    def jax() -> Run:
        from cqr_jax.restoring import jax_network

        return jax_network.JaxNetwork(weights.load(path, "deblocker"))

    return choose(engine, openvino, jax)


def choose(
    engine: str, openvino: Callable[[], Callable], jax: Callable[[], Callable]
) -> Callable:
    """Returns a function that runs in an engine.

    Args:
      engine: as in `load`.
      openvino, jax: return the function for each engine. The former raises an
        ImportError if OpenVINO does not work here.

    Raises:
      UserError: if OpenVINO was asked for and does not work here.
    """
    if engine == "openvino" or (engine == "auto" and only_cpu()):
        try:
            return openvino()
        except ImportError as error:
            if engine == "openvino":
                raise UserError(
                    f"--engine=openvino: {error}; use --engine=jax"
                ) from None
    return jax()


def only_cpu() -> bool:
    """Returns whether JAX has no accelerator.

    JAX is only imported if a plugin for accelerators is installed.
    """
    asked = os.environ.get("JAX_PLATFORMS", "")
    if asked:
        return asked == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    names = "jax_plugins", "libtpu"
    if not plugins and not any(map(importlib.util.find_spec, names)):
        return True
    import jax

    return jax.default_backend() == "cpu"


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_folder() -> pathlib.Path:
    """Returns the folder of compiled networks, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(cache, "cqr_jax")


def inputs(run: Run, images: np.ndarray, compression: np.ndarray | None) -> list:
    """Returns the arrays that a deblocker's module takes.

    Args:
      run: network, for its channels and whether it is conditioned.
      images: as in `Run`.
      compression: float32, (count, FEATURES); None for unknown.

    Returns:
      The images, float32, (count, height, width, channels), and for a conditioned
      network the compression.
    """
    if images.dtype == np.uint8:
        images = images.astype(np.float32) / 255
    found = [_with_channels(images, channels(run))]
    if conditioned(run):
        unknown = np.zeros((len(images), FEATURES), np.float32)
        found.append(unknown if compression is None else compression)
    return found


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
            for step in (1, -1):
                turned = np.rot90(images, turns, (1, 2))[:, ::step]
                restored = run(np.ascontiguousarray(turned), *compression)[:, ::step]
                total += np.rot90(restored, -turns, (1, 2))
        return total[:, :height, :width] / 8

    ensembled.__dict__.update(attributes(run))
    return ensembled
