"""Pictures through the network: planes, tiles, strength."""

import collections
import functools
import os
from collections.abc import Iterable, Iterator

import jax
import numpy as np

from cqr_jax import weights
from cqr_jax.restoring import colour, network, tiles
from cqr_jax.restoring.pictures import Picture

WEIGHTS = weights.SHIPPED / "compact-blind.safetensors"
_TILES = {"cpu": 2}  # at a time on each device; elsewhere:
_MORE_TILES = 16


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
    waiting: collections.deque[tuple[Picture, list[colour.Plane]]] = collections.deque()

    def samples():
        for picture in pictures:
            waiting.append((picture, colour.planes(picture)))
            yield from map(colour.reduce, waiting[-1][1])

    platform = jax.local_devices()[0].platform
    batch = _TILES.get(platform, _MORE_TILES) * jax.local_device_count()
    restored = tiles.restore(run, samples(), side, tiles.OVERLAP, batch)
    for first in restored:
        picture, planes = waiting.popleft()
        values = [
            colour.add(plane, strength * (after - colour.reduce(plane)))
            for plane, after in zip(
                planes, [first, *(next(restored) for _ in planes[1:])], strict=True
            )
        ]
        yield colour.with_planes(picture, values, dtype or picture.pixels.dtype)


@functools.cache
def load(path: str | os.PathLike = WEIGHTS) -> network.Run:
    """The network of a deblocker's weights; the second time it is there already.

    Raises:
      UserError: no such file, or not a deblocker's weights.
    """
    return network.runner(weights.load(path, "deblocker"))
