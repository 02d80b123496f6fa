"""The protocol's images: luma conversion and single-channel JPEG, in NumPy and Pillow.

An image here is a `uint8` array of shape (height, width) holding the Y channel as
MATLAB's `rgb2ycbcr` defines it. This module is the only place that says how a file
becomes Y and how Y becomes a JPEG, so that training, validation and evaluation agree.
It imports neither TensorFlow nor JAX: data preparation runs it in worker processes.
"""

import contextlib
import io
import os
import zlib
from collections.abc import Callable
from typing import IO

import numpy as np
from etils import epath
from PIL import Image, ImageOps

from cqr_jax import formats
from cqr_jax.data.ycbcr import STUDIO_LUMA
from cqr_jax.errors import UserError

BLOCK = 8  # side of a JPEG block in pixels
_BAND = 256  # rows converted at a time: in double precision a photograph fills memory


class ImageError(UserError):
    """An image that can't be used, with the reason."""


def luma(rgb: np.ndarray) -> np.ndarray:
    """Y of ITU-R BT.601 in studio range, as MATLAB's `rgb2ycbcr` rounds it.

    Args:
      rgb: uint8, (height, width, 3).

    Returns:
      uint8, (height, width), in 16..235.
    """
    y = np.empty(rgb.shape[:2], np.uint8)
    for top in range(0, len(y), _BAND):
        band = rgb[top : top + _BAND].astype(np.float64)
        y[top : top + _BAND] = np.floor(16.5 + band @ STUDIO_LUMA / 255)
    return y


def encode(y: np.ndarray, quality: int) -> bytes:
    """Baseline single-channel JPEG of `y` (uint8, (height, width)), QF 1 to 100."""
    buffer = io.BytesIO()
    Image.fromarray(y).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """The uint8 (height, width) image of a single-channel JPEG or PNG."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L"))


def compress(y: np.ndarray, quality: int) -> np.ndarray:
    """`y` after one trip through JPEG at `quality`; same shape and dtype."""
    return decode(encode(y, quality))


def encode_png(y: np.ndarray) -> bytes:
    """Lossless PNG of gray (uint8, (height, width)) or RGB (height, width, 3).

    Filtered and Huffman-coded, without a search for repetitions: of photographs the
    default makes larger files, takes four times as long, and twice as long to decode.
    """
    buffer = io.BytesIO()
    Image.fromarray(y).save(buffer, "PNG", compress_type=zlib.Z_HUFFMAN_ONLY)
    return buffer.getvalue()


def load_luma(source: str | os.PathLike | bytes) -> np.ndarray:
    """Reads an image file as Y.

    A gray image is Y as it stands (16-bit gray is scaled to 8 bits); palette, CMYK and
    other colour modes go through RGB; the EXIF orientation is applied; an alpha channel
    is dropped when it is opaque everywhere.

    Args:
      source: a path (gs:// too), or the bytes of the file.

    Returns:
      uint8, (height, width).

    Raises:
      ImageError: missing, unreadable, truncated, too large to be meant, floating
        point, or with transparent pixels (what lies under them is not part of the
        picture).
    """
    with image_errors(), _open(source) as file, Image.open(file) as image:
        return _to_luma(ImageOps.exif_transpose(image))


def load_rgb(source: str | os.PathLike | bytes) -> np.ndarray:
    """Reads an image file as RGB, or as gray where it holds gray alone.

    Palette, CMYK and other colour modes become RGB, 16-bit gray is scaled to 8 bits;
    orientation, alpha, `source` and errors are those of `load_luma`.

    Returns:
      uint8, (height, width, 3), or (height, width) of a gray image.
    """
    with image_errors(), _open(source) as file, Image.open(file) as opened:
        image = _opaque(ImageOps.exif_transpose(opened))
        if image.mode in ("1", "L") or image.mode[0] in "IF":
            return _to_luma(image)
        return np.asarray(image.convert("RGB"))


def load_gray(source: str | os.PathLike | bytes) -> np.ndarray:
    """Reads a Y that was saved as an image, in one channel or in three equal ones.

    Args:
      source: as of `load_luma`.

    Returns:
      uint8, (height, width): the pixels as they stand.

    Raises:
      ImageError: as `load_luma`, or it has colours.
    """
    with image_errors(), _open(source) as file, Image.open(file) as opened:
        image = _opaque(opened)
        if image.mode in ("1", "L") or image.mode[0] in "IF":
            return _to_luma(image)
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)
    if (green != red).any() or (blue != red).any():
        raise ImageError("has colours, but is to hold Y alone, as gray")
    return red


@contextlib.contextmanager
def image_errors():
    """Around reading an image: what Pillow raises becomes an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("not an image, or of a format that isn't read") from None
    except Image.DecompressionBombError:
        raise ImageError("too many pixels (a decompression bomb?)") from None
    except MemoryError:
        raise ImageError("too large for the memory") from None
    # Pillow's plugins raise whatever damaged bytes lead them to.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise ImageError(f"can't be read: {error.strerror}") from None
        reason = " ".join(str(error).split())  # on one line
        raise ImageError(f"damaged or truncated: {reason}") from None


def _open(source: str | os.PathLike | bytes) -> IO[bytes]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return epath.Path(source).open("rb")


def load_named(
    path: str | os.PathLike, load: Callable[..., np.ndarray] = load_luma
) -> np.ndarray:
    """As `load`, with the file named in the error."""
    try:
        return load(path)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def _opaque(image: Image.Image) -> Image.Image:
    """The image without its alpha, which has to be full."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA" if image.mode != "LA" else "LA")
    if np.asarray(image.getchannel("A")).min() < 255:
        raise ImageError("has transparent pixels")
    return image.convert("RGB" if image.mode == "RGBA" else "L")


def _to_luma(image: Image.Image) -> np.ndarray:
    image = _opaque(image)
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"))
    if image.mode.startswith("I"):
        return np.floor(integers_16(image) / 257 + 0.5).astype(np.uint8)
    if image.mode == "F":
        raise ImageError("floating-point pixels have no agreed range")
    return luma(np.asarray(image.convert("RGB")))


def integers_16(image: Image.Image) -> np.ndarray:
    """The uint16 (height, width) pixels of an integer image.

    Raises:
      ImageError: a pixel is negative or above 65535.
    """
    wide = np.asarray(image).astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise ImageError("integer pixels outside 16 bits")
    return wide.astype(np.uint16)


def list_images(folder: str | os.PathLike) -> list[epath.Path]:
    """The image files under `folder`, at any depth, sorted by path.

    Raises:
      UserError: no such folder, or no image in it.
    """
    root = epath.Path(folder)
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder of images")
    paths = [
        parent / file
        for parent, _, files in root.walk()
        for file in files
        if formats.format_of(file)
    ]
    if not paths:
        known = " ".join(formats.SUFFIXES)
        raise UserError(f"{folder}: holds no image (looked for {known})")
    return sorted(paths)
