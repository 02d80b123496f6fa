"""HEIC and AVIF files: pixels, decoded by libheif and libavif, and metadata.

Both use the container HEIF (ISO/IEC 23008-12). Pillow reads AVIF, but reduces it to 8
bits and does not report colour spaces given as code points (ITU-T H.273).
"""

import io
import re
from typing import Any, NamedTuple

import numpy as np
from PIL import features

from cqr_jax.data.jpeg import ImageError
from cqr_jax.restoring import exif, limits, metadata
from cqr_jax.restoring.metadata import Metadata

# Brands name the format. Both formats may begin with a general brand of HEIF.
_BRANDS = re.compile(rb"....ftyp(.{4})", re.DOTALL)
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2"}
_HEIC |= {b"msf1"}
_AVIF = {b"avif", b"avis"}
_NCLX = re.compile(rb"colrnclx(..)(..)", re.DOTALL)
_EXIF_ITEM = re.compile(rb"(infe.{8})Exif", re.DOTALL)  # libavif skips unknown types
_AV1 = re.compile(rb"av1C\x81.(.)", re.DOTALL)
# Code points of ITU-T H.273 that viewers show as sRGB; 2 means "unspecified".
_SRGB_PRIMARIES, _SRGB_TRANSFER = (1, 2), (1, 2, 6, 13)


class Opened(NamedTuple):
    """A decoded file.

    Attributes:
      stack: uint8 or uint16, (height, width, channels), including alpha. Pixels of HEIC
        are upright; those of AVIF are as stored.
      metadata: metadata with orientation 1.
      notes: sentences on parts that were dropped.
    """

    stack: np.ndarray
    metadata: Metadata
    notes: tuple[str, ...] = ()


def kind(data: bytes) -> str | None:
    """Returns 'heic' or 'avif' by the header of a file; None for other files."""
    found = _BRANDS.match(data[:12])
    if not found:
        return None
    length = int.from_bytes(data[:4], "big")
    brands = {data[i : i + 4] for i in range(16, min(length, 256), 4)} | {found[1]}
    if found[1] in _AVIF or (found[1] in _HEIC and brands & _AVIF):
        return "avif"
    return "heic" if found[1] in _HEIC else None


def read_heic(data: bytes, max_pixels: int) -> Opened:
    """Decodes the primary image of a HEIC file.

    Raises:
      ImageError: if the image has more than `max_pixels` or premultiplied alpha, or if
        pillow-heif is not installed.
    """
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(
            "a HEIC file, which only pillow-heif can read; "
            "pip install 'cqr_jax[heic]', or convert it to PNG"
        ) from None
    file = pillow_heif.HeifFile(io.BytesIO(data), convert_hdr_to_8bit=False)
    count = len(file)
    image = file[file.primary_index]
    width, height = image.size
    limits.check_size(width, height, max_pixels)
    stack = np.array(image)
    if stack.ndim == 2:
        stack = stack[..., None]
    if image.mode.split(";")[0].endswith("a"):
        raise ImageError("a HEIC with premultiplied alpha; convert it to PNG first")
    info: dict[str, Any] = image.info
    found = exif.named(info.get("exif") or b"")
    nclx = info.get("nclx_profile") or {}
    meta = Metadata(
        found,
        info.get("icc_profile") or b"",
        info.get("xmp") or b"",
        metadata.exif_resolution(found),
    )
    if not meta.icc_profile and nclx:
        meta = meta._replace(
            colour=_cicp(nclx["color_primaries"], nclx["transfer_characteristics"])
        )
    notes = []
    if count > 1:
        notes.append(f"The main one of the file's {count} pictures was taken.")
    return Opened(stack, metadata.reset_orientation(meta), tuple(notes))


def read_avif(data: bytes, max_pixels: int) -> tuple[Opened, int]:
    """Decodes an AVIF file with Pillow's binding of libavif.

    `Image.open` would reject files with damaged EXIF, and re-encode EXIF whose
    orientation differs from that of the container.

    Returns:
      The decoded file, and the orientation of its pixels, 1 to 8 as in EXIF.

    Raises:
      ImageError: if the image has more than `max_pixels`, if the file is an animation,
        or if Pillow is built without libavif.
      ValueError: if libavif can't parse the file.
    """
    if not features.check("avif"):
        raise ImageError(
            "an AVIF file, but this Pillow is built without AVIF; install Pillow by "
            "pip, or convert the file to PNG"
        )
    from PIL import _avif

    notes: tuple[str, ...] = ()
    try:
        decoder = _avif.AvifDecoder(data, "auto", 1)
    except ValueError:
        bare = _EXIF_ITEM.sub(rb"\1skip", data)
        if bare == data:
            raise
        decoder = _avif.AvifDecoder(bare, "auto", 1)
        notes = ("EXIF was dropped: it is damaged.",)
    (width, height), frames, _, profile, found, orientation, xmp = decoder.get_info()
    limits.check_size(width, height, max_pixels)
    limits.check_frames(frames)
    pixels, *_ = decoder.get_frame(0)
    stack = np.frombuffer(pixels, np.uint8).reshape(height, width, -1)
    found = exif.named(found)
    meta = Metadata(found, profile or b"", xmp or b"", metadata.exif_resolution(found))
    if not profile and (nclx := _NCLX.search(data)):
        numbers = (int.from_bytes(x, "big") for x in nclx.groups())
        meta = meta._replace(colour=_cicp(*numbers))
    if (bits := max((_bits(x[1][0]) for x in _AV1.finditer(data)), default=8)) > 8:
        notes += (f"The AVIF was reduced from {bits} to 8 bits per sample.",)
    return Opened(stack, metadata.reset_orientation(meta), notes), orientation


def _bits(flags: int) -> int:
    """Returns the bits per sample, from AV1's flags high_bitdepth and twelve_bit."""
    if not flags & 0x40:
        return 8
    return 12 if flags & 0x20 else 10


def _cicp(primaries: int, transfer: int) -> tuple[tuple[bytes, bytes], ...]:
    """Returns the cICP chunk of a PNG for a colour space, or no chunk for sRGB."""
    if primaries in _SRGB_PRIMARIES and transfer in _SRGB_TRANSFER:
        return ()
    return ((b"cICP", bytes([primaries & 255, transfer & 255, 0, 1])),)
