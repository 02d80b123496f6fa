"""Restores images of any size in overlapping tiles.

Time and memory of a tile are bounded whatever the size of the image, and the network is
compiled once.
"""

import collections
import concurrent.futures
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from cqr_jax.data.jpeg import BLOCK
from cqr_jax.prefetch import cancelling, prefetch
from cqr_jax.restoring import network

# benchmarks/results/restoring_choices.md
SIDE = 192  # of tiles that all have the same sides, in pixels
LONGEST = 320  # longest side of other tiles, in pixels
MARGIN = 8  # at the inner borders of a tile, in pixels
_SHORTEST = 64  # of other tiles; the border of a smaller tile is a large part of it


Sides = tuple[int, int]  # height and width of a tile in pixels


class _Span(NamedTuple):
    """One axis of a tile: the pixels that it contributes to, and its weights."""

    start: int  # where the tile begins in the image
    part: slice  # the pixels of the image
    weight: np.ndarray  # of the tile in each of these pixels


class Conditioned(NamedTuple):
    """An image with the features of its compression.

    Attributes:
      image: (height, width) or (height, width, channels).
      compression: (FEATURES,), see `cqr_jax.data.compression`.
    """

    image: np.ndarray
    compression: np.ndarray


class _Work:
    """An image in work: padded, the sum of its tiles so far, the number missing."""

    def __init__(
        self, image: np.ndarray, condition: np.ndarray | None, sides: Sides, margin: int
    ):
        self.condition = condition
        self.shape = image.shape[:2]
        self.sides = sides
        padding = [
            (0, max(side - length, -length % BLOCK))
            for length, side in zip(self.shape, sides, strict=True)
        ]
        padding += [(0, 0)] * (image.ndim - 2)
        needed = np.any(padding)
        self.image = np.pad(image, padding, mode="reflect") if needed else image
        self.restored = np.zeros(self.image.shape, np.float32)
        padded = self.image.shape[:2]
        rows, columns = (_spans(*x, margin) for x in zip(padded, sides, strict=True))
        self.tiles = list(itertools.product(rows, columns))
        self.lacking = len(self.tiles)

    def take(self) -> np.ndarray:
        """Returns the restored image without the padding, and frees the memory."""
        height, width = self.shape
        restored = self.restored[:height, :width]
        del self.image, self.restored
        return restored

    def add(self, tile: tuple[_Span, _Span], values: np.ndarray) -> None:
        """Adds a restored tile, weighted, to the sum."""
        rows, columns = tile
        weight = np.multiply.outer(rows.weight, columns.weight)
        weight = weight.reshape(*weight.shape, *[1] * (values.ndim - 2))
        inside = tuple(
            slice(x.part.start - x.start, x.part.stop - x.start)
            for x in (rows, columns)
        )
        self.restored[rows.part, columns.part] += weight * values[inside]
        self.lacking -= 1


def restore(
    run: network.Run,
    images: Iterable[np.ndarray | Conditioned],
    side: int | None = None,
    margin: int = MARGIN,
    batch: int | None = None,
) -> Iterator[np.ndarray]:
    """Restores images tile by tile. Tiles of several images share a batch.

    If the network takes tiles of any sides, they are chosen for each image, so that the
    tiles cover it with little to spare.

    The network runs on a thread. Meanwhile, the next batch is prepared and the previous
    one is added to its images.

    Neighbouring tiles overlap by twice `margin`. The outer half of that is dropped,
    because a tile sees less of the image there than the network would. Over the inner
    half, one tile fades into the other. At the borders of the image nothing is dropped.

    Args:
      run: the network. It takes the compression if the images are `Conditioned`.
      images: (height, width) or (height, width, channels), of any sizes and one dtype.
        Either all or none are `Conditioned`. Each is taken when the batch has room.
      side: side of a tile in pixels, a multiple of 8. If the network takes tiles of any
        sides, it is the longest side. None for the network's choice.
      margin: in pixels, a multiple of 8, less than half of the side.
      batch: tiles per batch; None for the network's choice.

    Yields:
      The restored images in the order of the input, float32, of their shapes.

    Raises:
      ValueError: side or margin is not as above.
    """
    multiple = network.multiple(run)
    side = side or (LONGEST if multiple else SIDE)
    if multiple:
        side = max(side // multiple, 1) * multiple
    if side % BLOCK or margin % BLOCK or not 0 <= 2 * margin < side:
        raise ValueError(
            f"side={side} and margin={margin}: must be multiples of {BLOCK}, margin "
            "less than half of side"
        )
    batch = batch or network.tile_batch(run)
    waiting: collections.deque[_Work] = collections.deque()

    def all_tiles() -> Iterator[tuple[_Work, tuple[_Span, _Span]]]:
        for image in images:
            condition = None
            if isinstance(image, Conditioned):
                image, condition = image
            sides = side, side
            if multiple:
                sides = fitting(
                    image.shape[:2], side, margin, multiple, network.parallel(run)
                )
            waiting.append(_Work(image, condition, sides, margin))
            for tile in waiting[-1].tiles:
                yield waiting[-1], tile

    def restored(group: _Group) -> tuple[_Group, np.ndarray]:
        return group, _run(run, group, batch)

    with cancelling(concurrent.futures.ThreadPoolExecutor(1)) as pool:
        for group, done in prefetch(pool, restored, _groups(all_tiles(), batch), 1):
            for (work, tile), values in zip(group, done, strict=False):
                work.add(tile, values)
            while waiting and not waiting[0].lacking:
                yield waiting.popleft().take()


# Tiles, each with its image.
_Group = list[tuple[_Work, tuple[_Span, _Span]]]


def _groups(
    stream: Iterable[tuple[_Work, tuple[_Span, _Span]]], batch: int
) -> Iterator[_Group]:
    """Yields batches of consecutive tiles that have the same sides."""
    for _, same in itertools.groupby(stream, lambda x: x[0].sides):
        while group := list(itertools.islice(same, batch)):
            yield group


def _run(run: network.Run, group: _Group, batch: int) -> np.ndarray:
    """Runs the network on tiles, with black ones if it needs a batch of fixed size."""
    height, width = group[0][0].sides
    tiles = [
        work.image[rows.start : rows.start + height, columns.start :][:, :width]
        for work, (rows, columns) in group
    ]
    conditions = [work.condition for work, _ in group if work.condition is not None]
    if network.fixed_batch(run):
        lacking = batch - len(tiles)
        tiles += [np.zeros_like(tiles[0])] * lacking
        conditions += conditions[:1] * lacking
    return run(np.stack(tiles), *([np.stack(conditions)] if conditions else []))


def fitting(
    shape: Sides, longest: int, margin: int, multiple: int, parallel: int
) -> Sides:
    """Returns the sides of the tiles that cover an image with the least work.

    Args:
      shape: height and width of the image in pixels.
      longest: longest side of a tile in pixels, a multiple of `multiple`.
      margin: neighbouring tiles overlap by twice this number of pixels.
      multiple: what the sides are multiples of, in pixels.
      parallel: number of tiles that are computed at the same time.
    """

    def choices(length: int) -> list[tuple[int, int]]:
        """Returns pairs of a number of tiles along an axis, and their side."""
        fewest = max(1, math.ceil((length - 2 * margin) / (longest - 2 * margin)))
        found = []
        for count in range(fewest, fewest + 3):
            side = math.ceil((length + (count - 1) * 2 * margin) / count)
            side = max(side, min(_SHORTEST, longest))
            found.append((count, math.ceil(side / multiple) * multiple))
        return found

    def work(pair) -> int:
        (rows, height), (columns, width) = pair
        return math.ceil(rows * columns / parallel) * height * width

    (_, height), (_, width) = min(itertools.product(*map(choices, shape)), key=work)
    return height, width


def _spans(length: int, side: int, margin: int) -> list[_Span]:
    """Returns the tiles along one axis. Their weights sum to 1 in each pixel."""
    last = length - side
    step = side - 2 * margin
    starts = [*range(0, last, step), last]
    fading = min(margin, step // 2)  # in pixels; at most two tiles share one
    rise = ((np.arange(fading) + 0.5) / fading).astype(np.float32)
    # The middle of the overlap of each tile with the next.
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
