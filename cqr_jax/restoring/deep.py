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

# Of a TIFF's own tags, the texts that speak of the picture rather than of the file.
TEXT_TAGS = tuple(
    int(tag)
    for tag in (
        ExifTags.Base.ImageDescription,
        ExifTags.Base.Make,
        ExifTags.Base.Model,
        ExifTags.Base.Software,
        ExifTags.Base.DateTime,
        ExifTags.Base.Artist,
        ExifTags.Base.Copyright,
    )
)

_INCH = 0.0254  # metres
XMP_TAG, _ICC_TAG = 700, 34675
_EXTRA_TAG = 338  # ExtraSamples: what each channel is beyond the colours
_UNSPECIFIED, _PREMULTIPLIED = 0, 1
_MIN_IS_WHITE = 0  # PhotometricInterpretation
_PLANAR = 2  # PlanarConfiguration: one channel after the other
_BYTE, _ASCII, _SHORT, _UNDEFINED = 1, 2, 3, 7  # types of TIFF's tags


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
        tags = image.tag_v2
        bits = tags.get(ExifTags.Base.BitsPerSample, ())
        inverted = tags.get(ExifTags.Base.PhotometricInterpretation) == _MIN_IS_WHITE
        if set(bits) == {16} and (len(bits) > 1 or inverted):
            with tifffile.TiffFile(io.BytesIO(data)) as file:
                stack = file.pages[0].asarray()
            if stack.ndim == 2:
                stack = stack[..., None]
            elif tags.get(ExifTags.Base.PlanarConfiguration) == _PLANAR:
                stack = np.moveaxis(stack, 0, -1)
            return _meant(stack, tags.get(_EXTRA_TAG, ()), inverted)
    return None


def _meant(stack: np.ndarray, extra: tuple[int, ...], inverted: bool) -> np.ndarray:
    """A TIFF's pixels as gray or RGB, with plain alpha or none.

    Args:
      stack: as they are stored, (height, width, channels).
      extra: what its ExtraSamples say of the last channels.
      inverted: whether zero is white.
    """
    count = stack.shape[-1] - len(extra)
    colours, more = stack[..., :count], stack[..., count:]
    if inverted:
        colours = 65535 - colours
    if _UNSPECIFIED in extra[:1] or not extra:
        return colours
    alpha = more[..., :1]
    if extra[0] == _PREMULTIPLIED:
        ratio = colours * (65535 / np.maximum(alpha, 1))
        colours = np.minimum(np.rint(ratio), 65535).astype(np.uint16)
    return np.concatenate([colours, alpha], axis=-1)


def encode(picture: "Picture", name: str) -> bytes:
    """The bytes of a gray or RGB file with 16 bits a channel.

    Args:
      picture: of uint16.
      name: 'png', or 'tiff', which gets of EXIF the orientation and `TEXT_TAGS`.
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
        (XMP_TAG, _BYTE, meta.xmp),
    ):
        if value:
            tags.append((tag, kind, len(value), value, True))
    # Pillow reads any bytes as Latin-1: these give them back.
    texts = {
        tag: exif[tag].encode("latin-1", "replace")
        for tag in TEXT_TAGS
        if isinstance(exif.get(tag), str)
    }
    tags += [(tag, _ASCII, len(text) + 1, text, True) for tag, text in texts.items()]
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
