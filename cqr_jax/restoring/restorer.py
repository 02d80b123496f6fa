"""Pictures through the network: planes, tiles, projection, strength."""

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
    quality,
    tiles,
    transparency,
)
from cqr_jax.restoring.colour import Plane
from cqr_jax.restoring.pictures import Picture

WEIGHTS = weights.SHIPPED / "compact-blind.safetensors"
_CONSTANT = 1e-4  # of the range: a plane that varies by less holds nothing to restore


class Restoration(NamedTuple):
    """A restored picture, and how it was restored.

    Attributes:
      picture: the restored picture.
      quality_factor: the quality factor of libjpeg, 1 to 100, nearest to what the
        network was told; None where it was told nothing.
      told_by: where that is from: 'tables' of the JPEG file, 'hand', 'ranker', or
        'nothing'.
      projected: whether the result was projected onto the intervals of its file.
      compressed_before: whether the file was recognised as made from a JPEG, and
        not projected for that reason.
    """

    picture: Picture
    quality_factor: int | None = None
    told_by: str = "nothing"
    projected: bool = False
    compressed_before: bool = False


def restore_pictures(
    run: network.Run,
    pictures: Iterable[Picture],
    strength: float = 1.0,
    side: int = tiles.SIDE,
    dtype: np.typing.DTypeLike | None = None,
    quality_factor: int | None = None,
    projecting: bool = True,
) -> Iterator[Picture]:
    """Restores pictures of any sizes, one batch of tiles after the other.

    A network of colour is told each picture's compression: by a JPEG's tables, or else
    by the ranker where its estimate is sure. Where the picture has the coefficients
    that its file stores, the result is projected onto their intervals, unless the file
    was compressed before.

    Args:
      run: the network, as `load` gives it.
      pictures: taken one at a time, as there is room for their tiles.
      strength: of what the network changes, 0 (nothing) to 1 (all of it).
      side: of a tile in pixels, a multiple of 8.
      dtype: of the pixels that come out, uint8 or uint16; None for that of those that
        came in.
      quality_factor: 1 to 100, to tell the network in place of what the picture tells;
        a lower one removes more. Nothing is projected then.
      projecting: whether to project.

    Yields:
      The pictures restored, in their order. Alpha and metadata are what they were.
    """
    for restoration in restorations(
        run, pictures, strength, side, dtype, quality_factor, projecting
    ):
        yield restoration.picture


def restorations(
    run: network.Run,
    pictures: Iterable[Picture],
    strength: float = 1.0,
    side: int = tiles.SIDE,
    dtype: np.typing.DTypeLike | None = None,
    quality_factor: int | None = None,
    projecting: bool = True,
) -> Iterator[Restoration]:
    """Restores pictures as `restore_pictures` does, and tells how.

    Args:
      run, pictures, strength, side, dtype, quality_factor, projecting: as of
        `restore_pictures`.

    Yields:
      A restoration of each picture, in their order.
    """
    joint = network.channels(run) == 3
    # With its planes, the samples that were restored where they are fewer, and what the
    # network is told, and by what.
    waiting: collections.deque[tuple] = collections.deque()

    def inputs():
        for picture in pictures:
            seen = transparency.filled(picture)
            planes = colour.planes(seen)
            told, by = _told(run, seen, quality_factor)
            if joint:
                samples = [plane.values for plane in planes]
                waiting.append((picture, planes, samples, told, by))
                yield from _images(planes, told)
            else:
                samples = [colour.reduce(plane) for plane in planes]
                waiting.append((picture, planes, samples, told, by))
                yield from samples

    restored = tiles.restore(run, inputs(), side, tiles.OVERLAP, network.tile_batch())
    for first in restored:
        picture, planes, before, told, by = waiting.popleft()
        after = [first]
        while sum(x.shape[2] if x.ndim == 3 else 1 for x in after) < len(planes):
            after.append(next(restored))
        if joint:
            planes = [plane._replace(sampling=(1, 1)) for plane in planes]
            after = [x for image in after for x in np.moveaxis(image, -1, 0)]
        values = list(map(_changed, planes, before, after))
        projected = compressed_before = False
        if projecting and quality_factor is None and _has_intervals(picture):
            compressed_before = projection.was_compressed_before(
                values[0], picture.stored[0], picture.compression
            )
            projected = not compressed_before
        if projected:
            values = list(map(projection.project, values, picture.stored))
        values = [
            plane.values + np.float32(strength) * (new - plane.values)
            for plane, new in zip(planes, values, strict=True)
        ]
        found = colour.with_planes(picture, values, dtype or picture.pixels.dtype)
        yield Restoration(
            transparency.with_hidden(found, picture),
            nearest_quality(told.luma)[0] if told else None,
            by,
            projected,
            compressed_before,
        )


def _changed(plane: Plane, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The plane's values with what a network changed in its samples, as of `change`.

    A plane that is constant stays as it is. The mean stays over the pixels too: at the
    borders of small pictures samples stand for pixels that aren't there.
    """
    if np.ptp(before) < _CONSTANT:
        return plane.values
    values = colour.change(plane, before, np.array(after))
    values -= np.mean(values - plane.values, dtype=np.float64)
    return values


def _told(
    run: network.Run, picture: Picture, quality_factor: int | None
) -> tuple[Compression | None, str]:
    """What a network is told of a picture's compression, None for unknown, and by what.

    The second is `Restoration.told_by`.
    """
    if not can_be_told(run):
        return None, "nothing"
    if quality_factor is not None:
        return libjpeg(quality_factor, gray=picture.pixels.shape[-1] == 1), "hand"
    if picture.compression:
        return picture.compression, "tables"
    estimated = quality.estimate(picture)
    return estimated, "ranker" if estimated else "nothing"


def can_be_told(run: network.Run) -> bool:
    """Whether a network is told the compression: one of colour that makes use of it."""
    return network.channels(run) == 3 and network.conditioned(run)


def check_quality_factor(run: network.Run, quality_factor: int | None) -> None:
    """Raises a UserError if a network can't be told the quality factor it is to be."""
    if quality_factor is not None and not can_be_told(run):
        raise UserError(
            f"quality factor {quality_factor}: these weights can't be told one; leave "
            "it out, or take the weights that come with the package"
        )


def _images(planes: list[Plane], told: Compression | None) -> Iterator[tiles.Told]:
    """Planes as images of three channels: Y, Cb and Cr, and gray ones without colour.

    Black, of CMYK, is told the compression of luma.
    """
    if len(planes) >= 3:
        image = np.stack([plane.values for plane in planes[:3]], axis=-1)
        yield tiles.Told(image, features(told))
    for plane in planes[3:] if len(planes) >= 3 else planes:
        alone = told and Compression(told.luma)
        yield tiles.Told(colour.without_colour(plane.values), features(alone))


def _has_intervals(picture: Picture) -> bool:
    """Whether a picture comes with what its file stores of each plane."""
    stored, channels = picture.stored, picture.pixels.shape[-1]
    return bool(stored and picture.compression and len(stored) == channels)


def load(
    path: str | os.PathLike | None = None, self_ensemble: bool = False
) -> network.Run:
    """The network of a deblocker's weights, kept until the file changes.

    Args:
      path: of the weights; None for `WEIGHTS`.
      self_ensemble: take the mean over flips and turns, `network.self_ensemble`.

    Raises:
      UserError: no such file, or not a deblocker's weights.
    """
    path = os.fspath(path or WEIGHTS)
    changed = os.stat(path).st_mtime_ns if os.path.isfile(path) else 0
    return _load(path, os.path.abspath(path), changed, self_ensemble)


@functools.lru_cache(maxsize=4)
def _load(path: str, where: str, changed: int, self_ensemble: bool) -> network.Run:
    del where, changed  # of another folder, or a newer one, is another file
    run = network.Network(weights.load(path, "deblocker"))
    return network.self_ensemble(run) if self_ensemble else run
