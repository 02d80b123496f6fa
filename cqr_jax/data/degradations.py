"""Realistic colour JPEGs, made from clean crops during training.

An example is a function of its image and of a random generator. The JPEGs are made with
Pillow's libjpeg, which takes any quantisation tables and any chroma sampling;
TensorFlow takes neither.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from cqr_jax.data.compression import SUBSAMPLING_NAMES, Compression, features, libjpeg

MCU = 16  # side in pixels of the minimum coded unit of a JPEG with 4:2:0 sampling
MARGIN = 2 * MCU  # pixels that `example` needs beyond its patch

_MIDDLE = 50  # quality factor that divides the lower range from the upper one


class Mixture(NamedTuple):
    """Probabilities with which examples are drawn.

    Attributes:
      qualities: lowest and highest quality factor (QF).
      low: probability of the range up to QF 50, if `qualities` are on both sides of 50.
        QF is uniform in the range up to 50 and in the range from 50 on.
      gray: probability of a gray JPEG.
      subsampled: probabilities of 4:2:0 and 4:2:2 chroma. Other JPEGs have 4:4:4.
      other_tables: probability of tables that are not libjpeg's.
      double: probability of double compression.
      shifted: probability of a block grid with a random origin, as in a crop that was
        saved as a PNG.
      unknown: probability that the compression is hidden from the network if the block
        grid begins at the corner. If the grid is shifted, this is the probability that
        the compression is given.
    """

    qualities: tuple[int, int]
    low: float
    gray: float
    subsampled: tuple[float, float]
    other_tables: float
    double: float
    shifted: float
    unknown: float


def example(
    image: np.ndarray,
    patch: int,
    mixture: Mixture,
    augment: bool,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws a clean crop, its JPEG and the features of the compression.

    Args:
      image: uint8 RGB, (height, width, 3), with both sides at least patch + `MARGIN`.
      patch: side of the crop in pixels, a multiple of 8.
      mixture: probabilities of the degradations.
      augment: whether to flip and rotate by multiples of 90 degrees at random, before
        compression.
      rng: generator of all draws.

    Returns:
      A tuple of the clean crop (uint8 RGB, (patch, patch, 3)), its decoded JPEG (with
      the same dtype and shape) and `compression.features` (float32).
    """
    image = _square(image, patch + MARGIN, rng)
    if augment:
        turned = np.rot90(image, int(rng.integers(4)))
        image = turned[:, ::-1] if rng.integers(2) else turned
    if gray := rng.random() < mixture.gray:
        y = Image.fromarray(np.ascontiguousarray(image)).convert("L")
        image = np.repeat(np.asarray(y)[..., None], 3, axis=-1)
    clean = before = image
    if rng.random() < mixture.double:
        before = compress(image, draw(mixture, gray, rng))
    # Half of the doubly compressed pictures are cropped between the compressions.
    clean, before = _cut(
        [clean, before], patch + MCU, 1 if rng.random() < 0.5 else MCU, rng
    )
    compression = draw(mixture, gray, rng)
    after = compress(before, compression)
    shifted = rng.random() < mixture.shifted
    clean, after = _cut([clean, after], patch, 1 if shifted else 8, rng)
    known = (rng.random() < mixture.unknown) == shifted
    return clean, after, features(compression if known else None)


def aligned(clean: np.ndarray, quality: int) -> tuple[np.ndarray, np.ndarray]:
    """Compresses a crop by libjpeg with 4:2:0 chroma, as the literature evaluates it.

    Returns:
      The decoded JPEG and the features of its compression, as in `example`.
    """
    compression = libjpeg(quality)
    return compress(clean, compression), features(compression)


def draw(mixture: Mixture, gray: bool, rng: np.random.Generator) -> Compression:
    """Draws a compression: libjpeg's or other tables, and the chroma sampling."""
    lowest, highest = mixture.qualities

    def quality() -> int:
        if lowest >= _MIDDLE or highest <= _MIDDLE:
            return int(rng.integers(lowest, highest + 1))
        if rng.random() < mixture.low:
            return int(rng.integers(lowest, _MIDDLE + 1))
        return int(rng.integers(_MIDDLE, highest + 1))

    half, across = mixture.subsampled
    place = rng.random()
    sampling = (2, 2) if place < half else (1, 2) if place < half + across else (1, 1)
    found = libjpeg(quality(), sampling, gray)
    if rng.random() >= mixture.other_tables:
        return found
    kind = rng.integers(3)
    if kind == 0:  # luma and chroma at different qualities
        other = libjpeg(quality())
        return found if gray else found._replace(chroma=other.chroma)
    slope = rng.uniform(0, 4) if kind == 1 else 0.0
    gamma = rng.uniform(0.4, 1.3)
    noise = np.exp(0.1 * rng.standard_normal(64))

    def changed(table: tuple[int, ...]) -> tuple[int, ...]:
        """Returns a table with the same mean that is flatter or differs in contrast."""
        steps = np.asarray(table, np.float64)
        if kind == 1:
            shape = 1 + slope * np.add.outer(np.arange(8), np.arange(8)).ravel() / 14
        else:
            shape = steps**gamma * noise
        steps = np.rint(shape * steps.mean() / shape.mean())
        return tuple(int(x) for x in np.clip(steps, 1, 255))

    luma = changed(found.luma)
    return found._replace(luma=luma, chroma=found.chroma and changed(found.chroma))


def encode(image: np.ndarray, compression: Compression) -> bytes:
    """Encodes an RGB image as a baseline JPEG.

    If chroma is None, encodes its first channel as a gray JPEG.
    """
    gray = compression.chroma is None
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if gray else image))
    tables = [list(compression.luma)]
    options = {}
    if compression.chroma is not None:
        tables.append(list(compression.chroma))
        options["subsampling"] = SUBSAMPLING_NAMES[compression.sampling]
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", qtables=tables, **options)
    return buffer.getvalue()


def compress(image: np.ndarray, compression: Compression) -> np.ndarray:
    """Encodes an RGB image as JPEG and decodes it with Pillow; keeps the shape."""
    with Image.open(io.BytesIO(encode(image, compression))) as decoded:
        return np.asarray(decoded.convert("RGB"))


def _square(image: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Crops a square at a random position."""
    top, left = (int(rng.integers(n - side + 1)) for n in image.shape[:2])
    return image[top : top + side, left : left + side]


def _cut(
    images: list[np.ndarray], side: int, step: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Crops the same square from each image.

    The coordinates of its corner are random multiples of `step` up to `MCU`.
    """
    top, left = (step * int(x) for x in rng.integers(MCU // step + 1, size=2))
    return [image[top : top + side, left : left + side] for image in images]
