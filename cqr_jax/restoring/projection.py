"""Keeps what was restored within what a JPEG file tells of its original.

A JPEG stores each DCT coefficient as the nearest multiple of its quantisation step. So
the coefficient of the encoder's input lay within half a step of the stored one, and
projecting a restored image onto these intervals can only bring it nearer to that input.

If the file was made from a JPEG, however, that input holds the artifacts of the first
compression, and projecting would bring them back. Such files are told by how often the
network leaves the intervals (`share_outside`, `limit`).
"""

import csv
import functools
import pathlib

import numpy as np
from scipy.fft import dct

from cqr_jax import weights
from cqr_jax.data.compression import Compression, nearest_quality
from cqr_jax.data.jpeg import BLOCK
from cqr_jax.restoring import colour
from cqr_jax.restoring.coefficients import Component

LIMITS = weights.SHIPPED / "projection-limits.tsv"
_FAR = 0.75  # steps from a stored coefficient at which a restored one counts as outside

# Orthonormal DCT-II of 8 samples, as a matrix: coefficients = _DCT @ samples.
_DCT = dct(np.eye(BLOCK), axis=0, norm="ortho").astype(np.float32)
_ROWS = 32 * BLOCK  # transformed at a time


def share_outside(plane: np.ndarray, component: Component) -> float:
    """How many of a plane's coefficients lie outside: over 0.75 steps from the stored.

    Args:
      plane: restored, float32 in [0, 1], (height, width).
      component: what the file stores of it.

    Returns:
      A share of all coefficients, 0 to 1.
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
    """The plane with each of its DCT coefficients within half a step of the stored one.

    A plane of fewer samples than pixels is projected at their resolution: a sample is
    the mean of its pixels, as libjpeg's encoder takes it, and what changes in it is
    added to each of them. This is the orthogonal projection onto the images that the
    file can be of, so that it brings the plane nearer to each of these.

    Args:
      plane: restored, float32 in [0, 1], (height, width).
      component: what the file stores of it.

    Returns:
      float32, of the same shape.
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
    """Whether a file was made from a JPEG, by its restored luma.

    Args:
      plane: luma, restored, float32 in [0, 1], (height, width).
      component: what the file stores of it.
      compression: of the file.
    """
    quality, _ = nearest_quality(compression.luma)
    return share_outside(plane, component) > limit(quality)


def limit(quality: int) -> float:
    """The share of coefficients outside from which a file counts as compressed before.

    Chosen on photographs held out from training, by `python -m benchmarks.projection`.

    Args:
      quality: the quality factor of the file, 1 to 100.
    """
    qualities, limits = _read_limits(LIMITS)
    return float(np.interp(quality, qualities, limits))


@functools.cache
def _read_limits(path: pathlib.Path) -> tuple[list[float], list[float]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [float(x["quality"]) for x in rows], [float(x["limit"]) for x in rows]


def _samples(plane: np.ndarray, component: Component) -> np.ndarray:
    """The plane's samples as the DCT takes them, filled up to whole blocks."""
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
    """Rows of whole blocks, some at a time."""
    return (slice(top, top + _ROWS) for top in range(0, len(samples), _ROWS))


def _tiled(steps: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """The steps of all coefficients, in the places of `samples`."""
    height, width = samples.shape
    return np.tile(steps, (height // BLOCK, width // BLOCK))


def _blocks(x: np.ndarray) -> np.ndarray:
    """(8 m, 8 n) -> (m, n, 8, 8)."""
    height, width = x.shape
    x = x.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    return x.swapaxes(1, 2)


def _whole(blocks: np.ndarray) -> np.ndarray:
    """Undoes `_blocks`."""
    rows, columns = blocks.shape[:2]
    return blocks.swapaxes(1, 2).reshape(rows * BLOCK, columns * BLOCK)


def _transform(samples: np.ndarray) -> np.ndarray:
    """The DCT of each block, in its place."""
    return _whole(_DCT @ _blocks(samples) @ _DCT.T)


def _invert(coefficients: np.ndarray) -> np.ndarray:
    """Undoes `_transform`."""
    return _whole(_DCT.T @ _blocks(coefficients) @ _DCT)
