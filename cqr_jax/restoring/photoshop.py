"""Photoshop's image resources, which hold IPTC in JPEG and TIFF files.

A resource consists of a signature, a number, a name, a length and its content. Name and
content are padded to even lengths.
"""

import re
import struct

_IPTC = 1028
# Thumbnails, and copies of colour profile, EXIF and XMP, which files hold elsewhere.
_THUMBNAILS_AND_COPIES = {1033, 1036, 1039, 1058, 1059, 1060}
_SIGNATURE = re.compile(rb"8BIM|MeSa|AgHg|PHUT|DCSR")


def read(data: bytes) -> tuple[bytes, bool]:
    """Removes thumbnails and copies of other metadata from resources.

    Returns:
      The other resources up to the first damaged one, and whether any is damaged.
    """
    found, intact = _split(data)
    kept = (part for number, part, _ in found if number not in _THUMBNAILS_AND_COPIES)
    return b"".join(kept), not intact


def iptc(resources: bytes) -> bytes:
    """Returns the IPTC records in resources; b'' if there are none."""
    found, _ = _split(resources)
    return b"".join(content for number, _, content in found if number == _IPTC)


def without_iptc(resources: bytes) -> bytes:
    """Returns the resources other than IPTC."""
    found, _ = _split(resources)
    return b"".join(part for number, part, _ in found if number != _IPTC)


def of_iptc(records: bytes) -> bytes:
    """Returns a resource with IPTC records; b'' if the bytes are not IPTC records."""
    if not records.startswith(b"\x1c"):
        return b""
    head = b"8BIM" + struct.pack(">HHI", _IPTC, 0, len(records))
    return head + records + bytes(len(records) % 2)


def _split(data: bytes) -> tuple[list[tuple[int, bytes, bytes]], bool]:
    """Splits resources up to the first damaged one.

    Returns:
      The number, bytes and content of each resource, and whether all could be read.
    """
    found = []
    place = 0
    while place + 12 <= len(data) and _SIGNATURE.match(data, place):
        (number,) = struct.unpack_from(">H", data, place + 4)
        name = 1 + data[place + 6]
        start = place + 6 + name + name % 2 + 4
        if start > len(data):
            break
        (length,) = struct.unpack_from(">I", data, start - 4)
        if start + length > len(data):
            break
        end = min(start + length + length % 2, len(data))
        part = data[place:end] + bytes((end - place) % 2)
        found.append((number, part, data[start : start + length]))
        place = end
    return found, not data[place:].strip(b"\0")
