"""Luma conversion and single-channel JPEG compression, in NumPy and Pillow.

An image here is a `uint8` array of shape (height, width) that holds the Y channel as
MATLAB's `rgb2ycbcr` defines it, except in `load_rgb` and `encode_png`. Only this module
converts files to Y and Y to JPEG, so that training, validation and evaluation agree. It
imports neither TensorFlow nor JAX, because data preparation runs it in worker
processes.
"""

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from cqr_jax import formats
from cqr_jax.data.ycbcr import STUDIO_LUMA
from cqr_jax.errors import UserError

if TYPE_CHECKING:
    from etils import epath

BLOCK = 8  # side of a JPEG block in pixels
# Rows converted at a time: a whole photograph in double precision would fill memory.
_BAND = 256


class ImageError(UserError):
    """Raised for an image that can't be used; the message gives the reason."""


def luma(rgb: np.ndarray) -> np.ndarray:
    """Converts RGB to Y of ITU-R BT.601 in studio range, rounded as in MATLAB.

    The result equals the Y of MATLAB's `rgb2ycbcr`.

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
    """Encodes `y` (uint8, (height, width)) as a single-channel baseline JPEG.

    The quality factor is 1 to 100.
    """
    buffer = io.BytesIO()
    Image.fromarray(y).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    """Decodes a single-channel JPEG or PNG to a uint8 (height, width) image."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L"))


def compress(y: np.ndarray, quality: int) -> np.ndarray:
    """Encodes `y` as JPEG at `quality` and decodes it; keeps shape and dtype."""
    return decode(encode(y, quality))


def encode_png(y: np.ndarray) -> bytes:
    """Encodes gray (height, width) or RGB (height, width, 3) uint8 as lossless PNG.

    The pixels are filtered and Huffman-coded, without a search for repetitions. For
    photographs, the default strategy makes larger files, takes four times as long to
    encode and twice as long to decode.
    """
    buffer = io.BytesIO()
    Image.fromarray(y).save(buffer, "PNG", compress_type=zlib.Z_HUFFMAN_ONLY)
    return buffer.getvalue()


def load_shape(source: str | os.PathLike | bytes) -> tuple[int, int]:
    """Returns the height and width in an image's header, before EXIF orientation.

    Args:
      source: as in `load_luma`.

    Raises:
      ImageError: if the file is missing, or its header can't be read.
    """
    with image_errors(), _open(source) as file, Image.open(file) as image:
        return image.height, image.width


def load_luma(source: str | os.PathLike | bytes) -> np.ndarray:
    """Reads an image file as Y.

    A gray image is used as Y unchanged, except that 16-bit gray is scaled to 8 bits.
    Palette, CMYK and other colour modes are converted to RGB first. The EXIF
    orientation is applied. An alpha channel is dropped if it is opaque everywhere.

    Args:
      source: a path (gs:// too), or the bytes of the file.

    Returns:
      uint8, (height, width).

    Raises:
      ImageError: if the file is missing, unreadable or truncated, if the image is
        suspiciously large or has floating-point pixels, or if it has transparent
        pixels (the colours under them are not part of the picture).
    """
    with image_errors(), _open(source) as file, Image.open(file) as image:
        return _to_luma(ImageOps.exif_transpose(image))


def load_rgb(source: str | os.PathLike | bytes) -> np.ndarray:
    """Reads an image file as RGB, or as gray if it is gray.

    Palette, CMYK and other colour modes are converted to RGB. 16-bit gray is scaled to
    8 bits. Orientation, alpha, `source` and errors are as in `load_luma`.

    Returns:
      uint8, (height, width, 3), or (height, width) for a gray image.
    """
    with image_errors(), _open(source) as file, Image.open(file) as opened:
        image = _opaque(ImageOps.exif_transpose(opened))
        if image.mode in ("1", "L") or image.mode[0] in "IF":
            return _to_luma(image)
        return np.asarray(image.convert("RGB"))


def load_gray(source: str | os.PathLike | bytes) -> np.ndarray:
    """Reads a Y channel that was saved as an image with one or three equal channels.

    Args:
      source: as in `load_luma`.

    Returns:
      uint8, (height, width): the unchanged pixels.

    Raises:
      ImageError: as in `load_luma`, or if the image has colours.
    """
    with image_errors(), _open(source) as file, Image.open(file) as opened:
        image = _opaque(opened)
        if image.mode in ("1", "L") or image.mode[0] in "IF":
            return _to_luma(image)
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)
    if (green != red).any() or (blue != red).any():
        raise ImageError("has colours, but must hold Y alone, as gray")
    return red


@contextlib.contextmanager
def image_errors() -> Iterator[None]:
    """Converts Pillow's errors in the context to `ImageError`s."""
    try:
        yield
    except ImageError:
        raise
    except Image.UnidentifiedImageError:
        raise ImageError("not an image, or of an unsupported format") from None
    except Image.DecompressionBombError:
        raise ImageError("too many pixels (a decompression bomb?)") from None
    except MemoryError:
        raise ImageError("too large for the memory") from None
    except (struct.error, EOFError):
        raise ImageError("damaged or truncated: the file ends too early") from None
    # Pillow's plugins raise many kinds of errors on damaged bytes.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise ImageError(f"can't be read: {error.strerror}") from None
        reason = " ".join(str(error).split()) or "can't be decoded"  # on one line
        raise ImageError(f"damaged or truncated: {reason}") from None


def _open(source: str | os.PathLike | bytes) -> IO[bytes]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    from etils import epath  # here, because restoring files doesn't need it

    return epath.Path(source).open("rb")


def load_named(path: str | os.PathLike, load: Callable[..., Any] = load_luma) -> Any:
    """Calls `load` and names the file in its errors."""
    try:
        return load(path)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def _opaque(image: Image.Image) -> Image.Image:
    """Returns the image without its alpha channel, which must be opaque."""
    if not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        level = image.info["transparency"]
        if (np.asarray(image) == level).any():
            raise ImageError("has transparent pixels")
        return image
    gray = image.mode in ("1", "L", "LA", "La")
    image = image.convert("LA" if gray else "RGBA")
    if np.asarray(image.getchannel("A")).min() < 255:
        raise ImageError("has transparent pixels")
    return image.convert("L" if gray else "RGB")


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
    """Returns the uint16 (height, width) pixels of an integer image.

    Raises:
      ImageError: if a pixel is negative or above 65535.
    """
    wide = np.asarray(image).astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise ImageError("integer pixels outside 16 bits")
    return wide.astype(np.uint16)


def list_images(folder: str | os.PathLike) -> "list[epath.Path]":
    """Returns the image files under `folder`, at any depth, sorted by path.

    Their suffixes are those of `formats.FORMATS`.

    Raises:
      UserError: if there is no such folder, or it holds no image.
    """
    paths = [path for path in _list_files(folder) if formats.format_of(path)]
    if not paths:
        known = " ".join(formats.SUFFIXES)
        raise UserError(f"{folder}: holds no image (looked for {known})")
    return paths


def unread_images(folder: str | os.PathLike) -> "list[epath.Path]":
    """Returns the image files under `folder` that `list_images` leaves out, sorted.

    Raises:
      UserError: if there is no such folder.
    """
    return [
        path
        for path in _list_files(folder)
        if not formats.format_of(path)
        and (formats.is_read(path) or formats.is_known(path))
    ]


def _list_files(folder: str | os.PathLike) -> "list[epath.Path]":
    from etils import epath

    root = epath.Path(folder)
    if not root.is_dir():
        if root.exists():
            raise UserError(f"{folder}: is a file, not a folder of images")
        raise UserError(f"{folder}: no such folder of images")
    return sorted(parent / file for parent, _, files in root.walk() for file in files)
