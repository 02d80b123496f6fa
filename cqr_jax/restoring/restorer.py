"""Pictures through the network: planes, tiles, projection, strength."""

import collections
import functools
import os
from collections.abc import Iterable, Iterator

import numpy as np

from cqr_jax import weights
from cqr_jax.data.compression import Compression, features, libjpeg
from cqr_jax.restoring import colour, network, projection, quality, tiles
from cqr_jax.restoring.colour import Plane
from cqr_jax.restoring.pictures import Picture

WEIGHTS = weights.SHIPPED / "compact-blind.safetensors"
_CONSTANT = 1e-4  # of the range: a plane that varies by less holds nothing to restore


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
    joint = network.channels(run) == 3
    # With its planes, and the samples that were restored where they are fewer.
    waiting: collections.deque[tuple] = collections.deque()

    def inputs():
        for picture in pictures:
            planes = colour.planes(picture)
            if joint:
                waiting.append((picture, planes, [plane.values for plane in planes]))
                yield from _images(planes, _told(picture, quality_factor))
            else:
                samples = [colour.reduce(plane) for plane in planes]
                waiting.append((picture, planes, samples))
                yield from samples

    restored = tiles.restore(run, inputs(), side, tiles.OVERLAP, network.tile_batch())
    for first in restored:
        picture, planes, before = waiting.popleft()
        after = [first]
        while sum(x.shape[2] if x.ndim == 3 else 1 for x in after) < len(planes):
            after.append(next(restored))
        if joint:
            planes = [plane._replace(sampling=(1, 1)) for plane in planes]
            after = [x for image in after for x in np.moveaxis(image, -1, 0)]
        values = [
            plane.values
            if np.ptp(old) < _CONSTANT
            else colour.change(plane, old, np.array(new))
            for plane, old, new in zip(planes, before, after, strict=False)
        ]
        if projecting and quality_factor is None:
            values = _projected(picture, values)
        values = [
            plane.values + np.float32(strength) * (new - plane.values)
            for plane, new in zip(planes, values, strict=True)
        ]
        yield colour.with_planes(picture, values, dtype or picture.pixels.dtype)


def _told(picture: Picture, quality_factor: int | None) -> Compression | None:
    """What the network is told of a picture's compression; None for unknown."""
    if quality_factor is not None:
        return libjpeg(quality_factor, gray=picture.pixels.shape[-1] == 1)
    return picture.compression or quality.estimate(picture)


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


def _projected(picture: Picture, values: list[np.ndarray]) -> list[np.ndarray]:
    """The planes within the intervals that the picture's file tells, if it does."""
    stored, compression = picture.stored, picture.compression
    if stored is None or compression is None or len(stored) != len(values):
        return values
    if projection.was_compressed_before(values[0], stored[0], compression):
        return values
    return list(map(projection.project, values, stored))


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
