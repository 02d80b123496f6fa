"""Segments of JPEG files: metadata, and detection of missing pixels."""

import io
import re
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

from cqr_jax.data.jpeg import BLOCK, ImageError
from cqr_jax.restoring import exif, metadata, photoshop
from cqr_jax.restoring import xmp as xmp_packets
from cqr_jax.restoring.metadata import Found, Metadata

SIGNATURE = b"\xff\xd8\xff"
_END = b"\xff\xd9"
_SOS, _EOI, _DNL = 0xDA, 0xD9, 0xDC
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xCA}
_LOSSLESS = {0xC3, 0xCB}
_ARITHMETIC = {0xC9, 0xCA}
_HIERARCHICAL = {0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF}
_APPLICATION = range(0xE0, 0xF0)
_COMMENT = 0xFE
# Markers that may occur between scans. Any other marker ends the image.
_BETWEEN = {0xC4, 0xCC, _SOS, 0xDB, _DNL, 0xDD, _COMMENT, *_APPLICATION}
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_LONGEST = 65_533  # maximum length of a segment's content in bytes
_INCH = 2.54  # centimetres

_SUPERFLUOUS = re.compile(
    r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9"
)
_TAIL = b"\xaa" * 4096  # bits that begin with 1; libjpeg appends zeros instead


class _Segment(NamedTuple):
    marker: int
    content: bytes  # of a scan: its header
    start: int  # offset of the marker in the file
    end: int  # offset after the content, or after the coded data of a scan


class _Walk(NamedTuple):
    """Segments of a file, up to the end of its first image."""

    segments: list[_Segment]
    ended: bool  # whether the image has an end marker
    end: int  # offset after the image


class Opened(NamedTuple):
    """A parsed JPEG file.

    Attributes:
      found: metadata, and a file that holds only the image and has an end marker.
      scan_end: offset in that file at which the coded data of the last scan end; 0 for
        arithmetic coding, whose decoder may read on even if the file is complete.
      ended: whether the original file has an end marker.
      whole: whether the original file has an end marker, or all scans of all
        coefficients.
      progressive: whether its scans refine each other.
      unit: height and width in pixels of the minimum coded unit.
    """

    found: Found
    scan_end: int
    ended: bool
    whole: bool
    progressive: bool
    unit: tuple[int, int]


def read(data: bytes) -> Opened:
    """Parses a JPEG file.

    Args:
      data: bytes of the file, which begin with `SIGNATURE`.

    Raises:
      ImageError: if the kind of JPEG is not supported, or if the file is truncated
        before its first pixel.
    """
    walk = _walk(data)
    frames = [x for x in walk.segments if x.marker in _FRAMES]
    if frames:
        _check_frame(frames[0])
    if not frames or not any(x.marker == _SOS for x in walk.segments):
        raise ImageError("damaged or truncated: the JPEG ends before its first pixel")
    last = max(i for i, x in enumerate(walk.segments) if x.marker == _SOS)
    pieces = [data[:2]]
    for x in walk.segments[: last + 1]:
        is_jfif = x.marker == 0xE0 and x.content.startswith(b"JFIF\0")
        is_adobe = x.marker == 0xEE and x.content.startswith(b"Adobe")
        if is_jfif or is_adobe or x.marker not in (*_APPLICATION, _COMMENT):
            pieces.append(data[x.start : x.end])
    if pieces[-1].endswith(b"\xff"):  # first byte of a truncated marker
        pieces[-1] = pieces[-1].rstrip(b"\xff")
    whole = walk.ended or _has_all_scans(frames[0], walk.segments)
    image = b"".join([*pieces, _END])
    meta, notes = _metadata(walk, data)
    return Opened(
        Found(image, meta, notes),
        0 if frames[0].marker in _ARITHMETIC else len(image) - len(_END),
        walk.ended,
        whole,
        frames[0].marker in _PROGRESSIVE,
        _unit(frames[0]),
    )


def missing(opened: Opened, pixels: np.ndarray) -> str:
    """Describes the pixels that are missing in a file, as a clause; '' if none are.

    If a decoder runs out of coded data, the pixels depend on the bits after them. In a
    complete file, appended bits change nothing.

    Args:
      opened: the file.
      pixels: decoded pixels, (height, width) or (height, width, channels).
    """
    if not opened.whole:
        return "its finest details are missing"
    if not opened.scan_end:
        return ""
    image = opened.found.data[: opened.scan_end]
    return _differing(decode(b"".join([image, _TAIL, _END])), pixels, opened)


def _differing(other: np.ndarray, pixels: np.ndarray, opened: Opened) -> str:
    """Describes the pixels that depend on the bits after the scan, as `missing` does.

    Args:
      other: pixels that were decoded with other bits after the scan.
      pixels: pixels that were decoded from the file.
      opened: the file.
    """
    if np.array_equal(other, pixels):
        return ""
    height, width = pixels.shape[:2]
    differs = (other != pixels).reshape(height, width, -1).any(-1)
    if opened.progressive:
        return "its finest details are missing"
    top, left = int(differs.any(1).argmax()), int(differs.any(0).argmax())
    # Origin of the last coded unit, minus one pixel, as far as its chroma reaches.
    limits = [
        (n - 1) // side * side - 1
        for n, side in zip((height, width), opened.unit, strict=True)
    ]
    if top >= limits[0] and left >= limits[1] and (top or left):
        return "its last block is incomplete"
    return f"its rows below row {top} of {height} are missing"


def is_slight(clause: str) -> bool:
    """Returns whether the clause of `missing` is about no more than a block."""
    return clause.endswith("block is incomplete")


def decode(data: bytes) -> np.ndarray:
    """Decodes the pixels of a JPEG file as stored, (height, width[, channels])."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return np.asarray(image)


def _walk(data: bytes) -> _Walk:
    segments: list[_Segment] = []
    place, scanned = 2, False
    while True:
        start = data.find(b"\xff", place)
        if start < 0:
            return _Walk(segments, False, len(data))
        place = start + 1
        while data[place : place + 1] == b"\xff":
            place += 1
        if place >= len(data):
            return _Walk(segments, False, len(data))
        marker = data[place]
        if marker == _EOI:
            return _Walk(segments, True, place + 1)
        if scanned and marker not in _BETWEEN:  # another image, or damage
            return _Walk(segments, False, start)
        if marker in (0x00, 0x01, *range(0xD0, 0xD9)):  # markers without a length
            place += 1
            continue
        head = data[place + 1 : place + 3]
        end = place + 1 + int.from_bytes(head, "big")
        if len(head) < 2 or end > len(data) or end < place + 3:
            return _Walk(segments, False, len(data))
        content = data[place + 3 : end]
        if marker == _SOS:
            scanned = True
            behind = _AFTER_SCAN.search(data, end)
            end = behind.start() if behind else len(data)
        segments.append(_Segment(marker, content, start, end))
        place = end


def _check_frame(frame: _Segment) -> None:
    """Raises an ImageError if the kind of JPEG is not supported."""
    bits = frame.content[0] if frame.content else 8
    if frame.marker in _LOSSLESS:
        raise ImageError(
            "a lossless JPEG (SOF3), which has no compression artifacts; convert it to "
            "PNG if it must be restored"
        )
    if frame.marker in _HIERARCHICAL:
        raise ImageError("a hierarchical JPEG, which can't be read; convert it to PNG")
    if bits != 8:
        raise ImageError(
            f"a JPEG with {bits} bits per sample, which can't be read; convert it to a "
            "16-bit PNG or TIFF"
        )


def _unit(frame: _Segment) -> tuple[int, int]:
    """Returns height and width in pixels of the minimum coded unit."""
    factors = frame.content[7::3] or b"\x11"
    return (
        BLOCK * max(1, *(x & 15 for x in factors)),
        BLOCK * max(1, *(x >> 4 for x in factors)),
    )


def _has_all_scans(frame: _Segment, segments: list[_Segment]) -> bool:
    """Returns whether the scans hold all bits of all coefficients of all components."""
    if len(frame.content) < 6:
        return False
    names = frame.content[6 : 6 + 3 * frame.content[5] : 3]
    lacking = {name: np.full(64, 255) for name in names}
    for scan in (x.content for x in segments if x.marker == _SOS):
        count = scan[0] if scan else 0
        if len(scan) < 1 + 2 * count + 3:
            return False
        first, last, bits = scan[1 + 2 * count : 4 + 2 * count]
        for name in scan[1 : 1 + 2 * count : 2]:
            if name in lacking:
                lacking[name][first : last + 1] = bits & 15
    if frame.marker not in _PROGRESSIVE:
        return all((x < 255).any() for x in lacking.values())
    return all((x == 0).all() for x in lacking.values())


def _metadata(walk: _Walk, data: bytes) -> tuple[Metadata, tuple[str, ...]]:
    found_exif = xmp = resources = b""
    comments = []
    density = None
    profile: dict[int, bytes] = {}
    pictures = False
    for marker, content, _, _ in walk.segments:
        if marker == 0xE0 and content.startswith(b"JFIF\0") and len(content) >= 12:
            unit, across, down = struct.unpack_from(">BHH", content, 7)
            scale = {1: 1.0, 2: _INCH}.get(unit)
            if scale:
                density = metadata.resolution(across * scale, down * scale)
        elif marker == 0xE1 and content.startswith(exif.NAME):
            found_exif += content[len(exif.NAME) if found_exif else 0 :]
        elif marker == 0xE1 and content.startswith(_XMP):
            xmp = content[len(_XMP) :]
        elif marker == 0xE2 and content.startswith(_ICC) and len(content) > 14:
            profile[content[12]] = content[14:]
        elif marker == 0xED and content.startswith(_PHOTOSHOP):
            resources += content[len(_PHOTOSHOP) :]
        elif marker == _COMMENT and (comment := content.rstrip(b"\0")):
            comments.append(comment)
        elif marker == 0xE2 and content.startswith(b"MPF\0"):
            pictures = SIGNATURE in data[walk.end :]
    xmp, notes = xmp_packets.without_claims(xmp)
    if pictures and not notes:
        notes += ("The first of the file's several pictures (MPO) was taken.",)
    resources, damaged = photoshop.read(resources)
    if damaged:
        notes += ("Damaged parts of IPTC or of Photoshop's data were dropped.",)
    return (
        Metadata(
            found_exif,
            b"".join(profile[i] for i in sorted(profile)),
            xmp,
            density or metadata.exif_resolution(found_exif),
            resources=resources,
            comments=tuple(comments),
        ),
        notes,
    )


def notes_of(warnings: list[str], data: bytes) -> tuple[str, ...]:
    """Returns a sentence on damage to a file if libjpeg's warnings report any.

    Zeros before the end marker are not damage.

    Args:
      warnings: warnings of libjpeg.
      data: bytes of the file that holds only the image.
    """
    for warning in warnings:
        found = _SUPERFLUOUS.fullmatch(warning)
        padded = found and not data[-2 - int(found[1]) : -2].strip(b"\0")
        if warning.startswith("Corrupt") and not padded:
            return (f"libjpeg reports that the picture is damaged: {warning}.",)
    return ()


def with_texts(data: bytes, meta: Metadata) -> bytes:
    """Adds the comments and Photoshop's resources in metadata to a JPEG file."""
    room = _LONGEST - len(_PHOTOSHOP)
    parts = range(0, len(meta.resources), room)
    added = [_segment(0xED, _PHOTOSHOP + meta.resources[i : i + room]) for i in parts]
    added += [_segment(_COMMENT, x) for x in meta.comments]
    segments = _walk(data).segments
    behind = next(x.start for x in segments if x.marker not in _APPLICATION)
    return b"".join([data[:behind], *added, data[behind:]])


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
