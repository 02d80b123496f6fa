"""Conversion of one image to the examples of its sub-images.

This module imports neither TensorFlow nor JAX, because it runs in worker processes.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from cqr_jax.data import jpeg, kinds


def sub_images(
    height: int, width: int, side: int
) -> Iterator[tuple[int, int, int, int]]:
    """Divides an image into sub-images on the 8x8 grid.

    Incomplete 8x8 blocks at the right and bottom are left out. Each axis is divided
    into the fewest pieces no longer than `side`, as equal as the grid allows.

    Args:
      height, width: size of the image in pixels.
      side: longest side of a sub-image in pixels, a multiple of 8.

    Yields:
      (top, left, height, width) in pixels, all multiples of 8.
    """

    def pieces(length: int) -> list[tuple[int, int]]:
        blocks, longest = length // jpeg.BLOCK, side // jpeg.BLOCK
        count = -(-blocks // longest)
        ends = [jpeg.BLOCK * (blocks * i // count) for i in range(count + 1)]
        return [(a, b - a) for a, b in itertools.pairwise(ends)]

    for top, h in pieces(height):
        for left, w in pieces(width):
            yield top, left, h, w


def cut(
    source: str | bytes,
    side: int,
    min_side: int,
    load: Callable[..., np.ndarray] = jpeg.load_luma,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yields (top, left, pixels) of each sub-image of an image; see `examples`.

    By default, the image is loaded as Y.
    """
    image = load(source)
    height, width = image.shape[:2]
    if min(height, width) < min_side:
        raise jpeg.ImageError(
            f"too small: {width}x{height}, sides of at least {min_side} are needed"
        )
    for top, left, rows, columns in sub_images(height, width, side):
        part = image[top : top + rows, left : left + columns]
        yield top, left, np.ascontiguousarray(part)


def examples(
    name: str,
    source: str | bytes,
    kind: str,
    side: int,
    min_side: int,
) -> list[dict]:
    """Makes the records of one image.

    JPEG blocks of a gray image are independent. Compressing a sub-image on the 8x8 grid
    therefore gives exactly the crop of the compressed image.

    Args:
      name: name of the image, which the records keep.
      source: path or bytes of the image file.
      kind: kind of the records, `kinds.LADDER` or `kinds.COLOUR`.
      side: longest side of a sub-image in pixels, a multiple of 8.
      min_side: shortest allowed side of the image in pixels.

    Raises:
      ImageError: if the image can't be used; the message gives the reason.
    """
    load = jpeg.load_luma if kind == kinds.LADDER else jpeg.load_rgb
    found = []
    for top, left, part in cut(source, side, min_side, load):
        record = {
            "name": name,
            "top": top,
            "left": left,
            "height": part.shape[0],
            "width": part.shape[1],
            "clean": jpeg.encode_png(part),
        }
        if kind == kinds.LADDER:
            record["jpegs"] = [jpeg.encode(part, q) for q in kinds.QUALITIES]
        found.append(record)
    return found


def key(example: dict) -> str:
    """Returns the key of an example: the name of its image and its position there."""
    return f"{example['name']}:{example['top']}:{example['left']}"


def examples_or_reason(job: tuple) -> tuple[str, list[dict], str]:
    """Returns (name, `examples(*job)`, reason); the reason is '' unless skipped."""
    try:
        return job[0], examples(*job), ""
    except jpeg.ImageError as error:
        return job[0], [], str(error)
