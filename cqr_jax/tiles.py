"""Images of any size through a network, in overlapping tiles of one size.

What a tile costs in time and memory does not depend on the image, and a network is
compiled once.
"""

import collections
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from cqr_jax.data.jpeg import BLOCK

SIDE = 192
OVERLAP = 24


class _Tile(NamedTuple):
    """Where a tile begins along both axes, and the part that it hands over."""

    top: int
    left: int
    part: tuple[slice, slice]


class _Work:
    """An image on its way: padded, its restored pixels, and how many tiles lack."""

    def __init__(self, y: np.ndarray, side: int, overlap: int):
        self.shape = y.shape
        padding = [(0, max(side - length, -length % BLOCK)) for length in y.shape]
        self.image = np.pad(y, padding, mode="edge")
        self.restored = np.empty_like(self.image)
        rows, columns = (_places(n, side, overlap) for n in self.image.shape)
        self.tiles = [
            _Tile(top, left, (down, across))
            for (top, down), (left, across) in itertools.product(rows, columns)
        ]
        self.lacking = len(self.tiles)


def restore(
    run: Callable[[np.ndarray], np.ndarray],
    images: Iterable[np.ndarray],
    side: int = SIDE,
    overlap: int = OVERLAP,
    batch: int = 1,
) -> Iterator[np.ndarray]:
    """Restores images tile by tile; the tiles of several share a batch.

    Each tile hands over its middle; the borders, where it sees less of the image than
    the whole network would, are dropped but for those of the image itself.

    Args:
      run: restores (batch, side, side), uint8.
      images: uint8, (height, width), of any sizes; each is taken when the batch has
        room for it.
      side: of a tile in pixels, a multiple of 8.
      overlap: pixels dropped at each border of a tile, a multiple of 8, less than half
        of the side.
      batch: tiles at a time.

    Yields:
      The restored images in their order, uint8, (height, width).

    Raises:
      ValueError: side or overlap is not as above.
    """
    if side % BLOCK or overlap % BLOCK or not 0 <= 2 * overlap < side:
        raise ValueError(
            f"side={side} and overlap={overlap}: must be multiples of {BLOCK}, overlap "
            "less than half of side"
        )
    waiting: collections.deque[_Work] = collections.deque()

    def all_tiles():
        for y in images:
            waiting.append(_Work(y, side, overlap))
            for tile in waiting[-1].tiles:
                yield waiting[-1], tile

    stack = np.zeros((batch, side, side), np.uint8)
    stream = all_tiles()
    while group := list(itertools.islice(stream, batch)):
        for i, (work, tile) in enumerate(group):
            rows, columns = (slice(x, x + side) for x in (tile.top, tile.left))
            stack[i] = work.image[rows, columns]
        done = run(stack)
        for (work, tile), y in zip(group, done, strict=False):
            rows, columns = tile.part
            inside = y[
                rows.start - tile.top : rows.stop - tile.top,
                columns.start - tile.left : columns.stop - tile.left,
            ]
            work.restored[tile.part] = inside
            work.lacking -= 1
        while waiting and not waiting[0].lacking:
            work = waiting.popleft()
            height, width = work.shape
            yield work.restored[:height, :width]


def _places(length: int, side: int, overlap: int) -> list[tuple[int, slice]]:
    """Along one axis, each tile's start, and what it hands over."""
    last = length - side
    starts = [*range(0, last, side - 2 * overlap), last]
    ends = [start + side - overlap for start in starts[:-1]] + [length]
    return list(zip(starts, map(slice, [0, *ends[:-1]], ends), strict=True))
