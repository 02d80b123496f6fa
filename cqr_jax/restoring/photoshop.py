"""Photoshop's image resources, which hold IPTC in JPEGs and TIFFs.

A resource is a signature, a number, a name and its data, all of an even length.
"""

import re
import struct

_IPTC = 1028
# Thumbnails, and copies of what the file holds elsewhere: colour profile, EXIF, XMP.
_THUMBNAILS_AND_COPIES = {1033, 1036, 1039, 1058, 1059, 1060}
_SIGNATURE = re.compile(rb"8BIM|MeSa|AgHg|PHUT|DCSR")


def read(data: bytes) -> tuple[bytes, bool]:
    """The resources that speak of the picture, and whether some are damaged.

    Thumbnails, and copies of other metadata, are left out, and what can't be read.
    """
    found, whole = _split(data)
    kept = (part for number, part, _ in found if number not in _THUMBNAILS_AND_COPIES)
    return b"".join(kept), not whole


def iptc(resources: bytes) -> bytes:
    """IPTC's records among resources; nothing where there are none."""
    found, _ = _split(resources)
    return b"".join(content for number, _, content in found if number == _IPTC)


def without_iptc(resources: bytes) -> bytes:
    """The other resources."""
    found, _ = _split(resources)
    return b"".join(part for number, part, _ in found if number != _IPTC)


def of_iptc(records: bytes) -> bytes:
    """A resource of IPTC's records; nothing for bytes that are none."""
    if not records.startswith(b"\x1c"):
        return b""
    head = b"8BIM" + struct.pack(">HHI", _IPTC, 0, len(records))
    return head + records + bytes(len(records) % 2)


def _split(data: bytes) -> tuple[list[tuple[int, bytes, bytes]], bool]:
    """Each resource's number, bytes and content; whether all bytes are in them."""
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
