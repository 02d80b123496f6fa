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
OVERLAP = 16


class _Span(NamedTuple):
    """Along one axis: what of a tile counts, and how much of it in each pixel."""

    start: int  # of the tile
    part: slice  # of the image
    weight: np.ndarray


class Told(NamedTuple):
    """An image with what the network is told of it.

    Attributes:
      image: (height, width) or (height, width, channels).
      compression: (FEATURES,), of `cqr_jax.data.compression`.
    """

    image: np.ndarray
    compression: np.ndarray


class _Work:
    """An image on its way: padded, the sum of its tiles so far, and how many lack."""

    def __init__(self, image: np.ndarray | Told, side: int, overlap: int):
        self.told = None
        if isinstance(image, Told):
            image, self.told = image
        self.shape = sides = image.shape[:2]
        padding = [(0, max(side - length, -length % BLOCK)) for length in sides]
        padding += [(0, 0)] * (image.ndim - 2)
        self.image = np.pad(image, padding, mode="reflect")
        self.restored = np.zeros(self.image.shape, np.float32)
        axes = (_spans(length, side, overlap) for length in self.image.shape[:2])
        self.tiles = list(itertools.product(*axes))
        self.lacking = len(self.tiles)


def restore(
    run: Callable[..., np.ndarray],
    images: Iterable[np.ndarray | Told],
    side: int = SIDE,
    overlap: int = OVERLAP,
    batch: int = 1,
) -> Iterator[np.ndarray]:
    """Restores images tile by tile; the tiles of several share a batch.

    Neighbouring tiles lap over each other by twice `overlap`. The outer half of that,
    where a tile sees less of the image than the whole network would, is dropped; over
    the inner half one tile fades into the other. At the borders of the image nothing
    is dropped.

    Args:
      run: restores (batch, side, side), or with channels behind, of the images' dtype,
        to float32; it is also given what it is told, (batch, FEATURES), if anything.
      images: (height, width), or with channels behind, of any sizes and one dtype; all
        of them or none told of. Each is taken when the batch has room for it.
      side: of a tile in pixels, a multiple of 8.
      overlap: in pixels, a multiple of 8, less than half of the side.
      batch: tiles at a time.

    Yields:
      The restored images in their order, float32, of their shapes.

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
        for image in images:
            waiting.append(_Work(image, side, overlap))
            for tile in waiting[-1].tiles:
                yield waiting[-1], tile

    stream = all_tiles()
    while group := list(itertools.islice(stream, batch)):
        tiles = [
            work.image[rows.start : rows.start + side, columns.start :][:, :side]
            for work, (rows, columns) in group
        ]
        told = [work.told for work, _ in group if work.told is not None]
        lacking = batch - len(tiles)
        tiles += [np.zeros_like(tiles[0])] * lacking
        told += told[:1] * lacking
        done = run(np.stack(tiles), *([np.stack(told)] if told else []))
        for (work, (rows, columns)), tile in zip(group, done, strict=False):
            weight = np.multiply.outer(rows.weight, columns.weight)
            weight = weight.reshape(*weight.shape, *[1] * (tile.ndim - 2))
            inside = tuple(
                slice(x.part.start - x.start, x.part.stop - x.start)
                for x in (rows, columns)
            )
            work.restored[rows.part, columns.part] += weight * tile[inside]
            work.lacking -= 1
        while waiting and not waiting[0].lacking:
            work = waiting.popleft()
            height, width = work.shape
            yield work.restored[:height, :width]


def _spans(length: int, side: int, overlap: int) -> list[_Span]:
    """Tiles along one axis; their weights add up to 1 in each pixel."""
    last = length - side
    step = side - 2 * overlap
    starts = [*range(0, last, step), last]
    fading = min(overlap, step // 2)  # pixels; no three tiles share one
    rise = ((np.arange(fading) + 0.5) / fading).astype(np.float32)
    # The middle of what each tile shares with the next.
    middles = [(left + side + right) // 2 for left, right in itertools.pairwise(starts)]
    begins = [0, *(x - fading // 2 for x in middles)]
    ends = [*(x + fading // 2 for x in middles), length]
    spans = []
    for start, begin, end in zip(starts, begins, ends, strict=True):
        weight = np.ones(end - begin, np.float32)
        if begin > 0:
            weight[:fading] = rise
        if end < length:
            weight[len(weight) - fading :] = rise[::-1]
        spans.append(_Span(start, slice(begin, end), weight))
    return spans
