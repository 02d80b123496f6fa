"""Restores pictures: planes, tiles, projection, strength."""

import collections
import functools
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from cqr_jax import weights
from cqr_jax.data.compression import Compression, features, libjpeg, nearest_quality
from cqr_jax.errors import UserError
from cqr_jax.restoring import (
    colour,
    network,
    projection,
    recompression,
    tiles,
    transparency,
)
from cqr_jax.restoring.coefficients import Component
from cqr_jax.restoring.colour import Plane
from cqr_jax.restoring.picture import Picture

_CONSTANT = 1e-4  # of the range; a plane that varies less has nothing to restore


class Restoration(NamedTuple):
    """A restored picture, and how it was restored.

    Attributes:
      picture: the restored picture.
      quality_factor: the quality factor of libjpeg, 1 to 100, nearest to what the
        network received; None if it received none.
      quality_factor_from: the source of that quality factor: 'tables' of the JPEG file,
        'hand', 'pixels' (`recompression.find`), or 'nothing'.
      projected: whether the result was projected onto the intervals of its file.
      compressed_before: whether the file was recognised as made from a JPEG, and
        not projected for that reason.
    """

    picture: Picture
    quality_factor: int | None = None
    quality_factor_from: str = "nothing"
    projected: bool = False
    compressed_before: bool = False


def restore_pictures(
    run: network.Run,
    pictures: Iterable[Picture],
    strength: float = 1.0,
    side: int | None = None,
    dtype: np.typing.DTypeLike | None = None,
    quality_factor: int | None = None,
    projecting: bool = True,
) -> Iterator[Picture]:
    """Restores pictures of any sizes, one batch of tiles after the other.

    A colour network receives the compression of each picture. It is read from a JPEG's
    tables. For other pictures it is found from the pixels where possible. If the
    picture has the coefficients that its file stores, the result is projected onto
    their quantisation intervals, unless the file was compressed before.

    Args:
      run: the network, from `load`.
      pictures: are taken one at a time, when there is room for their tiles.
      strength: share of the network's change that is applied, 0 (none) to 1 (all).
      side: longest side of a tile in pixels, a multiple of 8; None for the network's
        choice.
      dtype: dtype of the output pixels, uint8 or uint16; None for that of the input.
      quality_factor: 1 to 100; the network receives it instead of the picture's
        own. A lower one removes more. Results are not projected then.
      projecting: whether results are projected.

    Yields:
      The restored pictures in the order of the input. Alpha and metadata are unchanged.

    Raises:
      UserError: if the arrays of the weights don't fit their model. OpenVINO finds this
        at the first picture.
    """
    for restoration in restorations(
        run, pictures, strength, side, dtype, quality_factor, projecting
    ):
        yield restoration.picture


def restorations(
    run: network.Run,
    pictures: Iterable[Picture],
    strength: float = 1.0,
    side: int | None = None,
    dtype: np.typing.DTypeLike | None = None,
    quality_factor: int | None = None,
    projecting: bool = True,
) -> Iterator[Restoration]:
    """Restores pictures as `restore_pictures` does, and reports how.

    Args:
      run, pictures, strength, side, dtype, quality_factor, projecting: as in
        `restore_pictures`.

    Yields:
      The restoration of each picture, in the order of the input.

    Raises:
      UserError: as in `restore_pictures`.
    """
    joint = network.channels(run) == 3
    # Of each picture: its planes, the samples that go through the network, the
    # compression that the network receives, and the source of that.
    waiting: collections.deque[tuple] = collections.deque()

    def inputs() -> Iterator[np.ndarray | tiles.Conditioned]:
        for picture in pictures:
            seen = transparency.filled(picture)
            samples = colour.samples(seen)
            planes = colour.planes(seen, samples)
            compression, by = _compression(run, seen, quality_factor)
            before = [x.values if joint else colour.reduce(x) for x in planes]
            waiting.append((picture, planes, before, compression, by))
            yield from _images(samples, compression) if joint else before

    restored = tiles.restore(run, inputs(), side)
    for first in restored:
        picture, planes, before, compression, by = waiting.popleft()
        after = [first]
        while sum(x.shape[2] if x.ndim == 3 else 1 for x in after) < len(planes):
            after.append(next(restored))
        if joint:
            planes = [plane._replace(sampling=(1, 1)) for plane in planes]
            after = [x for image in after for x in np.moveaxis(image, -1, 0)]
        values = list(map(_changed, planes, before, after))
        del first, after  # frees memory
        projected = compressed_before = False
        if projecting and quality_factor is None and _has_intervals(picture):
            values, projected = _projected(values, picture.stored, picture.compression)
            compressed_before = not projected
        if strength < 1:
            values = [
                plane.values + np.float32(strength) * (new - plane.values)
                for plane, new in zip(planes, values, strict=True)
            ]
        found = colour.with_planes(picture, values, dtype or picture.pixels.dtype)
        yield Restoration(
            transparency.with_hidden(found, picture),
            nearest_quality(compression.luma)[0] if compression else None,
            by,
            projected,
            compressed_before,
        )


def _projected(
    values: list[np.ndarray], stored: tuple[Component, ...], compression: Compression
) -> tuple[list[np.ndarray], bool]:
    """Projects planes onto the intervals of a file that was not compressed before.

    Returns:
      The values, and whether they were projected.
    """
    if projection.was_compressed_before(values[0], stored[0], compression):
        return values, False
    for i, component in enumerate(stored):
        values[i] = projection.project(values[i], component)  # frees each plane
    return values, True


def _changed(plane: Plane, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Returns the plane's values with the network's change, see `colour.change`.

    A constant plane stays as it is. The mean over the pixels is kept too. It differs
    from the mean over the samples where samples at the border stand for pixels outside
    the picture.
    """
    if np.ptp(before) < _CONSTANT:
        return plane.values
    values = colour.change(plane, before, np.array(after))
    values -= np.mean(values - plane.values, dtype=np.float64)
    return values


def _compression(
    run: network.Run, picture: Picture, quality_factor: int | None
) -> tuple[Compression | None, str]:
    """Returns the compression that a network receives, and its source.

    The compression is None if it is unknown. The source is
    `Restoration.quality_factor_from`.
    """
    if not takes_compression(run):
        return None, "nothing"
    if quality_factor is not None:
        gray = picture.pixels.shape[-1] == 1
        sampling = colour.chroma_sampling(picture)
        return libjpeg(quality_factor, sampling, gray), "hand"
    if picture.compression:
        return picture.compression, "tables"
    found = recompression.find(picture)
    return found, "pixels" if found else "nothing"


def takes_compression(run: network.Run) -> bool:
    """Returns whether a network takes the compression as an input."""
    return network.channels(run) == 3 and network.conditioned(run)


def check_quality_factor(run: network.Run, quality_factor: int | None) -> None:
    """Raises a UserError for a quality factor that a network doesn't take."""
    if quality_factor is not None and not takes_compression(run):
        raise UserError(
            f"quality factor {quality_factor}: these weights don't take one; leave "
            "it out, or use the weights of the package"
        )


def _images(
    samples: np.ndarray, compression: Compression | None
) -> Iterator[tiles.Conditioned]:
    """Yields images of three channels: Y, Cb and Cr, or gray without colour.

    For the black plane of CMYK, the network receives the compression of luma.
    """
    channels = samples.shape[-1]
    if channels >= 3:
        yield tiles.Conditioned(samples[..., :3], features(compression))
    for i in range(3 if channels >= 3 else 0, channels):
        alone = compression and Compression(compression.luma)
        image = colour.without_colour(samples[..., i])
        yield tiles.Conditioned(image, features(alone))


def _has_intervals(picture: Picture) -> bool:
    """Returns whether a picture has the stored coefficients of each of its planes."""
    stored, channels = picture.stored, picture.pixels.shape[-1]
    return bool(stored and picture.compression and len(stored) == channels)


def load(
    path: str | os.PathLike | None = None,
    self_ensemble: bool = False,
    engine: str = "auto",
) -> network.Run:
    """Loads a deblocker. The network is cached until the file changes.

    Args:
      path: file of the weights; None for `weights.DEBLOCKER`.
      self_ensemble: whether to average over flips and turns, `network.self_ensemble`.
      engine: as in `network.load`.

    Raises:
      UserError: there is no such file, it does not hold a deblocker's weights, or the
        engine does not work here.
    """
    path = os.fspath(path or weights.DEBLOCKER)
    changed = os.stat(path).st_mtime_ns if os.path.isfile(path) else 0
    return _load(path, os.path.abspath(path), changed, self_ensemble, engine)


@functools.lru_cache(maxsize=4)
def _load(
    path: str, where: str, changed: int, self_ensemble: bool, engine: str
) -> network.Run:
    del where, changed  # only part of the cache's key
    run = network.load(path, engine)
    return network.self_ensemble(run) if self_ensemble else run
