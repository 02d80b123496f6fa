"""16 bits a channel, which Pillow cuts to 8 but in gray: PNG and TIFF."""

import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import png
import tifffile
from PIL import ExifTags, Image, TiffImagePlugin

if TYPE_CHECKING:
    from cqr_jax.restoring.pictures import Picture

_INCH = 0.0254  # metres
_XMP_TAG, _ICC_TAG = 700, 34675
_BYTE, _SHORT, _UNDEFINED = 1, 3, 7  # types of TIFF's tags


def pixels(image: Image.Image, data: bytes) -> np.ndarray | None:
    """The pixels of a file that has more than Pillow gives.

    Args:
      image: the file, opened by Pillow.
      data: its bytes.

    Returns:
      uint16, (height, width, channels), alpha among them; None for any other file.
    """
    if image.format == "PNG" and data[24] == 16 and data[25] != 0:  # depth, colours
        reader = png.Reader(bytes=data)
        reader.preamble()
        reader.sbit = None  # it would shift the pixels right; they fill 16 bits
        width, height, rows, info = reader.asDirect()
        flat = np.vstack([np.asarray(row, np.uint16) for row in rows])
        return flat.reshape(height, width, info["planes"])
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits = image.tag_v2.get(ExifTags.Base.BitsPerSample, ())
        if len(bits) > 1 and set(bits) == {16}:
            stack = tifffile.imread(io.BytesIO(data))
            return stack if stack.shape[-1] == len(bits) else np.moveaxis(stack, 0, -1)
    return None


def encode(picture: "Picture", name: str) -> bytes:
    """The bytes of a gray or RGB file with 16 bits a channel.

    Args:
      picture: of uint16.
      name: 'png', or 'tiff', which gets of EXIF the orientation alone.
    """
    stack = picture.stacked()
    return _png(stack, picture) if name == "png" else _tiff(stack, picture)


def _png(stack: np.ndarray, picture: "Picture") -> bytes:
    height, width, channels = stack.shape
    writer = png.Writer(
        width, height, greyscale=channels < 3, alpha=channels % 2 == 0, bitdepth=16
    )
    buffer = io.BytesIO()
    writer.write(buffer, stack.reshape(height, -1))
    header, *rest = png.Reader(bytes=buffer.getvalue()).chunks()
    meta, chunks = picture.metadata, []
    if meta.icc_profile:
        chunks.append((b"iCCP", b"icc\0\0" + zlib.compress(meta.icc_profile)))
    if meta.dpi:
        per_metre = (round(x / _INCH) for x in meta.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", *per_metre, 1)))
    if meta.exif:
        chunks.append((b"eXIf", meta.exif.removeprefix(b"Exif\0\0")))
    if meta.xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp" + b"\0" * 5 + meta.xmp))
    whole = io.BytesIO()
    png.write_chunks(whole, [header, *chunks, *rest])
    return whole.getvalue()


def _tiff(stack: np.ndarray, picture: "Picture") -> bytes:
    meta = picture.metadata
    exif = Image.Exif()
    exif.load(meta.exif)
    orientation = exif.get(ExifTags.Base.Orientation, 1)
    tags = [(int(ExifTags.Base.Orientation), _SHORT, 1, orientation, True)]
    for tag, kind, value in (
        (_ICC_TAG, _UNDEFINED, meta.icc_profile),
        (_XMP_TAG, _BYTE, meta.xmp),
    ):
        if value:
            tags.append((tag, kind, len(value), value, True))
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        stack if stack.shape[-1] > 1 else stack[..., 0],
        photometric="rgb" if stack.shape[-1] > 1 else "minisblack",
        planarconfig="contig" if stack.shape[-1] > 1 else None,
        extrasamples=["unassalpha"] if picture.alpha is not None else None,
        compression="adobe_deflate",
        resolution=meta.dpi,
        resolutionunit="INCH" if meta.dpi else None,
        extratags=tags,
        metadata=None,
        software=False,
    )
    return buffer.getvalue()
