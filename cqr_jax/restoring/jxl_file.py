"""JPEG XL files: pixels and metadata, or the JPEG file that was recompressed."""

import re
from typing import NamedTuple

import numpy as np

from cqr_jax.data.jpeg import ImageError
from cqr_jax.restoring import exif, limits, metadata
from cqr_jax.restoring.metadata import Metadata

SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
_CODESTREAM = re.compile(rb"jxlc(?=\xff\x0a)|jxlp....(?=\xff\x0a)", re.DOTALL)
_SIDE_BITS = (9, 13, 18, 30)  # lengths of the field that holds a side
# Aspect ratios, width to height, by their codes in the header.
_RATIOS = {1: (1, 1), 2: (6, 5), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


class Opened(NamedTuple):
    """A decoded file.

    Attributes:
      jpeg: the JPEG file that was recompressed losslessly; b'' for other files.
      stack: pixels, uint8 or uint16, (height, width, channels), including alpha; empty
        if there is a JPEG file.
      metadata: metadata with orientation 1; empty if there is a JPEG file.
    """

    jpeg: bytes
    stack: np.ndarray
    metadata: Metadata


def read(data: bytes, max_pixels: int) -> Opened:
    """Reads a JPEG XL file.

    Raises:
      ImageError: if the file is damaged, has more than `max_pixels`, floating-point
        samples or more than 4 channels, is an animation, or if pillow-jxl-plugin is not
        installed.
    """
    try:
        import pillow_jxl
    except ImportError:
        raise ImageError(
            "a JPEG XL file, which only pillow-jxl-plugin can read; "
            "pip install 'cqr_jax[jxl]', or convert it to PNG"
        ) from None
    import imagecodecs

    limits.check_size(*_size(data), max_pixels)
    try:
        is_jpeg, info, content, profile, boxes = pillow_jxl.Decoder(num_threads=0)(data)
    except RuntimeError:  # its message is about building libjxl
        raise ImageError("damaged or truncated: the JPEG XL can't be decoded") from None
    if is_jpeg:
        return Opened(content, np.empty(0), Metadata())
    stack = imagecodecs.jpegxl_decode(data)
    if stack.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            "a JPEG XL with floating-point samples; convert it to a 16-bit PNG"
        )
    if stack.shape[:2] != (info.height, info.width):
        limits.check_frames(len(stack))
    stack = stack.reshape(info.height, info.width, -1)
    if stack.shape[-1] > 4:
        raise ImageError(
            f"a JPEG XL with {stack.shape[-1]} channels, more than the 4 that can be "
            "read; convert it to PNG first"
        )
    named = {box.box_type: box.data for box in reversed(boxes)}
    found = _tiff(named.get(b"Exif", b""))
    meta = Metadata(
        found, profile or b"", named.get(b"xml ", b""), metadata.exif_resolution(found)
    )
    return Opened(b"", stack, metadata.reset_orientation(meta))


def _tiff(box: bytes) -> bytes:
    """Returns the EXIF block in a box, which may begin with the offset of the EXIF."""
    starts = [i for i in map(box.find, (b"II*\0", b"MM\0*")) if i >= 0]
    return exif.NAME + box[min(starts) :] if starts else b""


def _size(data: bytes) -> tuple[int, int]:
    """Returns width and height from the header of the codestream.

    Raises:
      ImageError: if there is no codestream.
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
        return 8 * (1 + take(5)) if small else 1 + take(_SIDE_BITS[take(2)])

    small = take(1)
    height = side()
    if ratio := take(3):
        across, down = _RATIOS[ratio]
        return height * across // down, height
    return side(), height
