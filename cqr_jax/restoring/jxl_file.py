"""JPEG XL files: the JPEG that one was made from, or pixels, and their metadata."""

import re
from typing import NamedTuple

import numpy as np

from cqr_jax.data.jpeg import ImageError
from cqr_jax.restoring import exif, limits, metadata
from cqr_jax.restoring.metadata import Metadata

SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
_CODESTREAM = re.compile(rb"jxlc(?=\xff\x0a)|jxlp....(?=\xff\x0a)", re.DOTALL)
_SIZES = (9, 13, 18, 30)  # bits of a side
# Numbers that stand for a width, as parts of the height.
_RATIOS = {1: (1, 1), 2: (6, 5), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


class Opened(NamedTuple):
    """What a file holds.

    Attributes:
      jpeg: the JPEG file that it was made from without loss; empty for others.
      stack: of others the pixels, uint8 or uint16, (height, width, channels).
      metadata: of others.
    """

    jpeg: bytes
    stack: np.ndarray
    metadata: Metadata


def read(data: bytes, max_pixels: int) -> Opened:
    """What a JPEG XL file holds.

    Raises:
      ImageError: damaged, above `max_pixels`, an animation, of floating-point samples,
        or the plugin is missing.
    """
    try:
        import pillow_jxl
    except ImportError:
        raise ImageError(
            "a file of JPEG XL, which isn't read without pillow-jxl-plugin; "
            "pip install 'cqr_jax[jxl]', or convert it to PNG"
        ) from None
    import imagecodecs

    limits.check_size(*_size(data), max_pixels)
    try:
        is_jpeg, info, content, profile, boxes = pillow_jxl.Decoder(num_threads=0)(data)
    except RuntimeError:  # which gives advice on building libjxl
        raise ImageError("damaged or truncated: the JPEG XL can't be decoded") from None
    if is_jpeg:
        return Opened(content, np.empty(0), Metadata())
    stack = imagecodecs.jpegxl_decode(data)
    if stack.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            "a JPEG XL of floating-point samples; convert it to PNG of 16 bits"
        )
    if stack.shape[:2] != (info.height, info.width):
        limits.check_frames(len(stack))
    stack = stack.reshape(info.height, info.width, -1)
    if stack.shape[-1] > 4:
        raise ImageError("a JPEG XL of other channels; convert it to PNG first")
    named = {box.box_type: box.data for box in reversed(boxes)}
    found = _tiff(named.get(b"Exif", b""))
    meta = Metadata(
        found, profile or b"", named.get(b"xml ", b""), metadata.exif_resolution(found)
    )
    return Opened(b"", stack, metadata.said_upright(meta))


def _tiff(box: bytes) -> bytes:
    """EXIF as a JPEG holds it, of a box that may tell where in it the EXIF begins."""
    starts = [i for i in map(box.find, (b"II*\0", b"MM\0*")) if i >= 0]
    return exif.NAME + box[min(starts) :] if starts else b""


def _size(data: bytes) -> tuple[int, int]:
    """Width and height, from the first bits of the coded image.

    Raises:
      ImageError: it isn't there.
    """
    start = 0
    if not data.startswith(b"\xff\x0a"):
        found = _CODESTREAM.search(data)
        if not found:
            raise ImageError("damaged or truncated: the JPEG XL holds no image")
        start = found.end()
    bits = int.from_bytes(data[start + 2 : start + 16], "little")

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def side() -> int:
        return 8 * (1 + take(5)) if small else 1 + take(_SIZES[take(2)])

    small = take(1)
    height = side()
    if ratio := take(3):
        across, down = _RATIOS[ratio]
        return height * across // down, height
    return side(), height
