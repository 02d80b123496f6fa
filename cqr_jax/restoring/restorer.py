"""Pictures through the network: planes, tiles, strength."""

import collections
import functools
import os
from collections.abc import Iterable, Iterator

import numpy as np

from cqr_jax import weights
from cqr_jax.restoring import colour, network, tiles
from cqr_jax.restoring.pictures import Picture

WEIGHTS = weights.SHIPPED / "compact-blind.safetensors"


def restore_pictures(
    run: network.Run,
    pictures: Iterable[Picture],
    strength: float = 1.0,
    side: int = tiles.SIDE,
    dtype: np.typing.DTypeLike | None = None,
) -> Iterator[Picture]:
    """Restores pictures of any sizes, one batch of tiles after the other.

    Args:
      run: the network, as `load` gives it.
      pictures: taken one at a time, as there is room for their tiles.
      strength: of what the network changes, 0 (nothing) to 1 (all of it).
      side: of a tile in pixels, a multiple of 8.
      dtype: of the pixels that come out, uint8 or uint16; None for that of those that
        came in.

    Yields:
      The pictures restored, in their order. Alpha and metadata are what they were.
    """
    waiting: collections.deque[tuple] = collections.deque()  # with planes and samples

    def samples():
        for picture in pictures:
            planes = colour.planes(picture)
            reduced = [colour.reduce(plane) for plane in planes]
            waiting.append((picture, planes, reduced))
            yield from reduced

    restored = tiles.restore(run, samples(), side, tiles.OVERLAP, network.tile_batch())
    for first in restored:
        picture, planes, before = waiting.popleft()
        after = [first, *(next(restored) for _ in planes[1:])]
        values = [
            colour.change(plane, old, new, strength)
            for plane, old, new in zip(planes, before, after, strict=True)
        ]
        yield colour.with_planes(picture, values, dtype or picture.pixels.dtype)


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
    run = network.runner(weights.load(path, "deblocker"))
    return network.self_ensemble(run) if self_ensemble else run
