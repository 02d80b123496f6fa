"""TIFF files: metadata, and pixels that Pillow does not read or write correctly."""

import io
import logging
import math
import struct
from typing import NamedTuple

import numpy as np

from cqr_jax.data.jpeg import ImageError
from cqr_jax.restoring import exif, limits, metadata, photoshop
from cqr_jax.restoring.exif import Entry, Tags
from cqr_jax.restoring.metadata import Found, Metadata
from cqr_jax.restoring.picture import Picture

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LONGEST = 2**32 - 2**25  # maximum bytes of pixels, which leaves room for the metadata
_KIND, _SUB_DIRECTORIES = 254, 330
_WIDTH, _LENGTH, _BITS, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 262, 277
_PLANAR, _EXTRA, _FORMAT = 284, 338, 339
_XMP, _ICC, _IPTC, _PHOTOSHOP = 700, 34675, 33723, 34377
_OTHER_METADATA = {_XMP, _ICC, _IPTC, _PHOTOSHOP}
_REDUCED = 1  # bit of NewSubfileType
_UNSPECIFIED, _PREMULTIPLIED = 0, 1  # values of ExtraSamples
_SEPARATE = 2  # value of PlanarConfiguration: one plane per channel
_SIGNED, _FLOAT, _COMPLEX = 2, (3, 6), 5  # values of SampleFormat
_WHITE_IS_ZERO, _RGB = 0, 2  # values of PhotometricInterpretation
_COLOURS = {0: 1, 1: 1, 2: 3, 5: 4}  # PhotometricInterpretation -> channels
_BYTE, _SHORT, _UNDEFINED = 1, 3, 7

# Without a handler, its warnings are printed without the name of the file.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class Opened(NamedTuple):
    """A parsed TIFF file.

    Attributes:
      found: metadata, and a file that holds only the pixels.
      tags: tags of the original file.
    """

    found: Found
    tags: Tags


def read(data: bytes) -> Opened:
    """Parses a TIFF file.

    Args:
      data: bytes of the file, which begin with one of `SIGNATURES`.

    Raises:
      ImageError: if the file has several pages, has samples that are not supported, or
        is damaged.
    """
    try:
        tags = exif.read(data)
        _check(tags)
        _check_length(tags, len(data))
    except (ValueError, struct.error) as error:
        raise ImageError(f"damaged or truncated: {error}") from None
    kept, noted = exif.of_the_picture(tags)
    notes = []
    if noted:
        notes.append("The camera's own notes (MakerNote) were dropped from EXIF.")
    if tags.damaged:
        notes.append("Damaged tags of the TIFF were dropped.")
    meta = Metadata(
        exif.block(kept),
        _value(tags, _ICC),
        _value(tags, _XMP).rstrip(b"\0"),
        metadata.tiff_resolution(tags),
        resources=_resources(tags),
    )
    return Opened(Found(_bare(data, tags), meta, tuple(notes)), tags)


def _value(tags: Tags, tag: int) -> bytes:
    entry = tags.first.get(tag)
    return entry.value if isinstance(entry, Entry) else b""


def _resources(tags: Tags) -> bytes:
    """Returns Photoshop's resources with IPTC, which may have its own tag."""
    resources, _ = photoshop.read(_value(tags, _PHOTOSHOP))
    records = _value(tags, _IPTC).rstrip(b"\0")  # may be padded to whole words
    return (
        b"" if photoshop.iptc(resources) else photoshop.of_iptc(records)
    ) + resources


def _check(tags: Tags) -> None:
    """Raises an ImageError if the file is not supported."""
    limits.check_pages(tags.pages)
    if (*tags.numbers(_KIND, (0,)), 0)[0] & _REDUCED and _SUB_DIRECTORIES in tags.first:
        raise ImageError(
            "a camera's raw file, which begins with a thumbnail; convert it first"
        )
    bits = set(tags.numbers(_BITS, (1,))) or {1}
    formats = set(tags.numbers(_FORMAT, (1,)))
    advice = "convert it to 16-bit unsigned integers"
    if formats & {*_FLOAT, _COMPLEX}:
        raise ImageError(f"a TIFF with floating-point or complex samples; {advice}")
    if _SIGNED in formats:
        raise ImageError(f"a TIFF with signed samples; {advice}")
    single = tags.numbers(_SAMPLES, (1,)) == (1,)
    if not bits <= {1, 2, 4, 8, 16} and not (bits == {32} and single):
        raise ImageError(f"a TIFF with {max(bits)} bits per sample; {advice}")


def _check_length(tags: Tags, length: int) -> None:
    """Raises an ImageError if strips or tiles extend beyond the end of the file."""
    for places, counts in ((273, 279), (324, 325)):
        ends = map(sum, zip(tags.numbers(places), tags.numbers(counts), strict=False))
        if max(ends, default=0) > length:
            raise ImageError("damaged or truncated: the TIFF lacks its end")


def _bare(data: bytes, tags: Tags) -> bytes:
    """Replaces the first directory of a file by one that describes only the pixels.

    Otherwise Pillow would apply the orientation, and could fail on damaged EXIF.
    """
    if _is_big(data) or len(data) > LONGEST:
        return data
    kept, _ = exif.of_the_picture(tags)
    metadata_tags = kept.first.keys() | _OTHER_METADATA | {exif.EXIF, exif.GPS}
    pixels: exif.Directory = {
        tag: x for tag, x in tags.first.items() if tag not in metadata_tags
    }
    return _with_directory(data, pixels, tags.order)


def _is_big(data: bytes) -> bool:
    return data.startswith((b"II+", b"MM\0+"))


def _with_directory(data: bytes, directory: exif.Directory, order: str) -> bytes:
    """Replaces the first directory of a file; the new one is at the end of the file."""
    start = len(data) + len(data) % 2
    head = data[:4] + struct.pack(f"{order}I", start)
    behind = exif.directory_bytes(directory, order, start)
    return b"".join([head, data[8:], bytes(len(data) % 2), behind])


def size(opened: Opened) -> tuple[int, int]:
    """Returns width and height in pixels.

    Raises:
      ImageError: if the file does not give them.
    """
    sides = [opened.tags.numbers(tag, (0,)) for tag in (_WIDTH, _LENGTH)]
    if not all(len(x) == 1 and x[0] for x in sides):
        raise ImageError("damaged or truncated: the TIFF has no width or height")
    return sides[0][0], sides[1][0]


def pixels(opened: Opened) -> tuple[np.ndarray, bool] | None:
    """Reads the pixels of a file if Pillow does not read them correctly or at all.

    Returns:
      uint8 or uint16, (height, width, channels), and whether the last channel is alpha;
      None for a file that Pillow reads correctly.

    Raises:
      ImageError: if the colours are not supported.
    """
    tags = opened.tags
    photometric = (*tags.numbers(_PHOTOMETRIC, (1,)), 1)[0]
    samples = (*tags.numbers(_SAMPLES, (1,)), 1)[0]
    bits = set(tags.numbers(_BITS, (1,)))
    wide = bits == {16}
    odd = bits == {8} and photometric in _COLOURS
    odd = odd and (
        _is_big(opened.found.data)
        or (samples > 1 and tags.numbers(_PLANAR, (1,)) == (_SEPARATE,))
        or samples > (4 if photometric == _RGB else _COLOURS[photometric])
    )
    if not (wide or odd):
        return None
    if photometric not in _COLOURS:
        raise ImageError(
            f"a TIFF with PhotometricInterpretation {photometric} and {max(bits)} bits "
            "per sample, which can't be read; convert it to RGB first"
        )
    import tifffile  # here and below, because most files are no TIFFs

    with tifffile.TiffFile(io.BytesIO(opened.found.data)) as file:
        page = file.pages.first
        stack = page.asarray()
        separate = page.planarconfig == _SEPARATE and samples > 1
    if stack.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"a TIFF with {stack.dtype} samples; convert it to 16-bit unsigned integers"
        )
    if separate:
        stack = np.moveaxis(stack, 0, -1)
    stack = stack.reshape(*stack.shape[:2], -1)
    extra = tags.numbers(_EXTRA)
    inverted = photometric == _WHITE_IS_ZERO
    return _interpret(stack, extra, _COLOURS[photometric], inverted)


def _interpret(
    stack: np.ndarray, extra: tuple[int, ...], count: int, inverted: bool
) -> tuple[np.ndarray, bool]:
    """Converts the pixels of a TIFF to gray, RGB or CMYK, with straight alpha or none.

    Args:
      stack: pixels as stored, (height, width, channels).
      extra: ExtraSamples, which describes the last channels.
      count: number of colour channels.
      inverted: whether zero is white.

    Returns:
      The pixels, and whether the last channel is alpha.

    Raises:
      ImageError: if the file has fewer channels than colours.
    """
    colours, more = stack[..., :count], stack[..., count:]
    most = np.iinfo(stack.dtype).max
    if colours.shape[-1] < count:
        raise ImageError("damaged or truncated: the TIFF lacks colour channels")
    if inverted:
        colours = most - colours
    if not more.shape[-1] or not extra or extra[0] == _UNSPECIFIED:
        return colours, False
    alpha = more[..., :1]
    if extra[0] == _PREMULTIPLIED:
        ratio = colours * (most / np.maximum(alpha, 1))
        colours = np.minimum(np.rint(ratio), most).astype(stack.dtype)
    return np.concatenate([colours, alpha], axis=-1), True


def encode(picture: Picture) -> bytes:
    """Encodes a gray, RGB or CMYK picture of 8 or 16 bits per channel as a TIFF file.

    The file has the byte order of the EXIF, so that the bytes of its values don't
    change.
    """
    import tifffile

    meta, stack = picture.metadata, picture.stacked()
    tags = exif.read(meta.exif) if meta.exif else Tags("<", {})
    channels = picture.pixels.shape[-1]
    single = stack.shape[-1] == 1
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        stack[..., 0] if single else stack,
        byteorder=tags.order,
        photometric={1: "minisblack", 3: "rgb", 4: "separated"}[channels],
        planarconfig=None if single else "contig",
        extrasamples=["unassalpha"] if picture.alpha is not None else None,
        compression="adobe_deflate",
        resolution=_rationals(meta.dpi),
        resolutionunit="INCH" if meta.dpi else None,
        metadata=None,
        software=False,
    )
    data = buffer.getvalue()
    directory = {
        exif.ORIENTATION: Entry(_SHORT, 1, struct.pack(f"{tags.order}H", 1)),
        **exif.read(data).first,
        **tags.first,
    }
    for tag, kind, value in (
        (_ICC, _UNDEFINED, meta.icc_profile),
        (_XMP, _BYTE, meta.xmp),
        (_IPTC, _UNDEFINED, photoshop.iptc(meta.resources)),
        (_PHOTOSHOP, _BYTE, photoshop.without_iptc(meta.resources)),
    ):
        if value:
            directory[tag] = Entry(kind, len(value), value)
    return _with_directory(data, directory, tags.order)


def _rationals(dpi: tuple[float, float] | None):
    """Returns resolutions as 32-bit numerators and denominators."""
    if dpi is None:
        return None
    scales = [10 ** max(0, 8 - len(str(math.ceil(x)))) for x in dpi]
    return tuple((round(x * k), k) for x, k in zip(dpi, scales, strict=True))
