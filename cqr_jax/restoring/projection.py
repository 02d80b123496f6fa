"""Projects restored images onto the quantisation intervals of their JPEG files.

A JPEG stores each DCT coefficient as the nearest multiple of its quantisation step. The
coefficient of the encoder's input lay within half a step of the stored one. Projecting
a restored image onto these intervals can only bring it nearer to that input.

If the file was made from another JPEG, the encoder's input has the artifacts of the
first compression, and projection would bring them back. Such files are recognised by
the share of luma coefficients that the network moves by more than 0.75 steps from the
stored ones (`share_outside`, `limit`).
"""

import csv
import functools
import pathlib

import numpy as np

from cqr_jax import weights
from cqr_jax.data.compression import Compression, nearest_quality
from cqr_jax.data.jpeg import BLOCK
from cqr_jax.restoring import colour
from cqr_jax.restoring.coefficients import Component

LIMITS = weights.SHIPPED / "projection-limits.tsv"
_FAR = 0.75  # in steps; a coefficient further than this from the stored one is outside

# Orthonormal DCT-II of 8 samples, as a matrix: coefficients = _DCT @ samples. It is
# written out because importing scipy.fft would take longer than a small photograph.
_COSINES = np.cos(np.pi / BLOCK * np.outer(np.arange(BLOCK), np.arange(BLOCK) + 0.5))
_DCT = (_COSINES * np.sqrt([1 / BLOCK] + [2 / BLOCK] * (BLOCK - 1))[:, None]).astype(
    np.float32
)
_ROWS = 32 * BLOCK  # rows that are transformed together


def share_outside(plane: np.ndarray, component: Component) -> float:
    """Returns the share of coefficients more than 0.75 steps from the stored ones.

    Args:
      plane: restored plane, float32 in [0, 1], (height, width).
      component: the stored coefficients of the plane.

    Returns:
      The share, 0 to 1.
    """
    outside = 0
    samples = _samples(plane, component)
    for rows in _bands(samples):
        off = _transform(samples[rows]) / _tiled(component.steps, samples[rows])
        outside += int(
            np.count_nonzero(
                np.abs(off - component.coefficients[rows]) > np.float32(_FAR)
            )
        )
    return outside / samples.size


def project(plane: np.ndarray, component: Component) -> np.ndarray:
    """Moves each DCT coefficient of a plane to within half a step of the stored one.

    Subsampled chroma is projected at its own resolution. A sample is the mean of its
    pixels, as in libjpeg's encoder. The change of a sample is added to each of its
    pixels. This is the orthogonal projection onto the convex set of planes that the
    encoder maps to the stored coefficients. It therefore brings the plane nearer to
    each of them.

    Args:
      plane: restored plane, float32 in [0, 1], (height, width).
      component: the stored coefficients of the plane.

    Returns:
      The projected plane, float32, of the same shape.
    """
    samples = _samples(plane, component)
    change = np.empty_like(samples)
    for rows in _bands(samples):
        found = _transform(samples[rows])
        steps = _tiled(component.steps, found)
        stored = component.coefficients[rows] * steps
        within = np.clip(found, stored - steps / 2, stored + steps / 2)
        change[rows] = _invert(within - found)
    change /= 255
    height, width = plane.shape
    down, across = component.sampling
    return plane + change.repeat(down, 0).repeat(across, 1)[:height, :width]


def was_compressed_before(
    plane: np.ndarray, component: Component, compression: Compression
) -> bool:
    """Returns whether a file was made from another JPEG, judged by its restored luma.

    Args:
      plane: restored luma, float32 in [0, 1], (height, width).
      component: the stored coefficients of luma.
      compression: compression of the file.
    """
    quality, _ = nearest_quality(compression.luma)
    return share_outside(plane, component) > limit(quality)


def limit(quality: int) -> float:
    """Returns the share above which a file counts as compressed before.

    `python -m benchmarks.projection` chose the limits on photographs that are not used
    for training.

    Args:
      quality: quality factor of the file, 1 to 100.
    """
    qualities, limits = _read_limits(LIMITS)
    return float(np.interp(quality, qualities, limits))


@functools.cache
def _read_limits(path: pathlib.Path) -> tuple[list[float], list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [float(x["quality"]) for x in rows], [float(x["limit"]) for x in rows]


def _samples(plane: np.ndarray, component: Component) -> np.ndarray:
    """Returns level-shifted 8-bit samples, float32, padded to whole blocks."""
    samples = colour.reduce(colour.Plane(plane, component.sampling))
    filling = [
        (0, whole - length)
        for whole, length in zip(
            component.coefficients.shape, samples.shape, strict=True
        )
    ]
    samples = np.pad(samples, filling, mode="edge")
    return (samples - np.float32(component.middle)) * np.float32(255)


def _bands(samples: np.ndarray):
    """Yields slices of rows, in whole blocks, to limit the memory of a transform."""
    return (slice(top, top + _ROWS) for top in range(0, len(samples), _ROWS))


def _tiled(steps: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Repeats the steps of one block for all blocks of `samples`."""
    height, width = samples.shape
    return np.tile(steps, (height // BLOCK, width // BLOCK))


def _blocks(x: np.ndarray) -> np.ndarray:
    """Reshapes (8 m, 8 n) to (m, n, 8, 8)."""
    height, width = x.shape
    x = x.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return x.swapaxes(1, 2)


def _unblock(blocks: np.ndarray) -> np.ndarray:
    """Inverts `_blocks`."""
    rows, columns = blocks.shape[:2]
    return blocks.swapaxes(1, 2).reshape(rows * BLOCK, columns * BLOCK)


def _transform(samples: np.ndarray) -> np.ndarray:
    """Returns the DCT of each block, at the place of the block."""
    return _unblock(_DCT @ _blocks(samples) @ _DCT.T)


def _invert(coefficients: np.ndarray) -> np.ndarray:
    """Inverts `_transform`."""
    return _unblock(_DCT.T @ _blocks(coefficients) @ _DCT)
