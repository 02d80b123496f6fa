"""HEIC and AVIF files: pixels by libheif and libavif, and their metadata.

Both are containers of ISO/IEC 23008-12 (HEIF). Pillow reads AVIF, but cuts it to 8 bits
and says nothing of colours that are told by numbers.
"""

import io
import re
from typing import Any, NamedTuple

import numpy as np
from PIL import features

from cqr_jax.data.jpeg import ImageError
from cqr_jax.restoring import exif, limits, metadata
from cqr_jax.restoring.metadata import Metadata

# Brands of files: AVIF before HEIF's general ones, which both may begin with.
_BRANDS = re.compile(rb"....ftyp(.{4})", re.DOTALL)
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2"}
_HEIC |= {b"msf1"}
_AVIF = {b"avif", b"avis"}
_NCLX = re.compile(rb"colrnclx(..)(..)", re.DOTALL)
_EXIF_ITEM = re.compile(rb"(infe.{8})Exif", re.DOTALL)  # libavif skips other types
_AV1 = re.compile(rb"av1C\x81.(.)", re.DOTALL)
# Numbers of ITU-T H.273 that are shown as sRGB everywhere, 2 being "unspecified".
_USUAL_PRIMARIES, _USUAL_TRANSFER = (1, 2), (1, 2, 6, 13)


class Opened(NamedTuple):
    """What a file holds.

    Attributes:
      stack: uint8 or uint16, (height, width, channels), with alpha among them; of HEIC
        upright.
      metadata: of the file, which fit the pixels.
      notes: sentences on what was left out.
    """

    stack: np.ndarray
    metadata: Metadata
    notes: tuple[str, ...] = ()


def kind(data: bytes) -> str | None:
    """'heic' or 'avif' for a file that begins as one; None for others."""
    found = _BRANDS.match(data[:12])
    if not found:
        return None
    length = int.from_bytes(data[:4], "big")
    brands = {data[i : i + 4] for i in range(16, min(length, 256), 4)} | {found[1]}
    if found[1] in _AVIF or (found[1] in _HEIC and brands & _AVIF):
        return "avif"
    return "heic" if found[1] in _HEIC else None


def read_heic(data: bytes, max_pixels: int) -> Opened:
    """The main picture of a HEIC file.

    Raises:
      ImageError: damaged, above `max_pixels`, an animation, or libheif is missing.
    """
    try:
        import pillow_heif
    except ImportError:
        raise ImageError(
            "a file of HEIC, which isn't read without pillow-heif; "
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
        notes.append(f"Of the file's {count} pictures the main one was taken.")
    return Opened(stack, metadata.said_upright(meta), tuple(notes))


def read_avif(data: bytes, max_pixels: int) -> tuple[Opened, int]:
    """An AVIF's picture, and the orientation, as EXIF numbers them, that it is in.

    It is read by the decoder that Pillow has. Pillow's own reading refuses pictures for
    damaged EXIF, and writes it anew where it tells of another orientation.

    Raises:
      ImageError: damaged, above `max_pixels`, an animation, or Pillow lacks libavif.
    """
    if not features.check("avif"):
        raise ImageError(
            "a file of AVIF, which this Pillow isn't built for; install Pillow by pip, "
            "or convert the file to PNG"
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
    if not profile and (told := _NCLX.search(data)):
        numbers = (int.from_bytes(x, "big") for x in told.groups())
        meta = meta._replace(colour=_cicp(*numbers))
    if (bits := max((_bits(x[1][0]) for x in _AV1.finditer(data)), default=8)) > 8:
        notes += (f"Of the {bits} bits a sample of the AVIF 8 were taken.",)
    return Opened(stack, metadata.said_upright(meta), notes), orientation


def _bits(flags: int) -> int:
    """Bits a sample, by the flags high_bitdepth and twelve_bit of AV1."""
    if not flags & 0x40:
        return 8
    return 12 if flags & 0x20 else 10


def _cicp(primaries: int, transfer: int) -> tuple[tuple[bytes, bytes], ...]:
    """The chunk of a PNG that tells of colours; none where they are the usual ones."""
    if primaries in _USUAL_PRIMARIES and transfer in _USUAL_TRANSFER:
        return ()
    return ((b"cICP", bytes([primaries & 255, transfer & 255, 0, 1])),)
