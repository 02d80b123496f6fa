"""XMP without what it claims of parts of its file that aren't carried.

Properties are taken out of the packet's bytes; the rest stays byte for byte.
"""

import re
from typing import NamedTuple
from xml.parsers import expat


class _Claim(NamedTuple):
    """Properties that speak of a part of the file.

    Attributes:
      note: what became of that part.
      spaces: the namespaces of the properties.
      names: what their names match as a whole.
      needs: whether they count only where another claim with this note was found.
    """

    note: str
    spaces: tuple[str, ...]
    names: str = r"[\w.-]+"
    needs: str = ""


_EXTENDED = "The extended part of XMP was dropped."
_CLAIMS = (
    _Claim(
        "The video of the motion photo was dropped.",
        (
            "http://ns.google.com/photos/1.0/camera/",
            "http://ns.oplus.com/photos/1.0/camera/",
        ),
        r"MotionPhoto\w*|MicroVideo\w*|OLivePhoto\w*|VideoLength",
    ),
    _Claim(
        "The further pictures or videos in the file were dropped.",
        (
            "http://ns.google.com/photos/1.0/container/",
            "http://ns.google.com/photos/dd/1.0/container/",
        ),
    ),
    _Claim(
        "The gain map for HDR was dropped.",
        (
            "http://ns.adobe.com/hdr-gain-map/1.0/",
            "http://ns.apple.com/HDRGainMap/1.0/",
        ),
    ),
    _Claim(_EXTENDED, ("http://ns.adobe.com/xmp/note/",), "HasExtendedXMP"),
    _Claim(
        "The depth map, sound or original picture in XMP was dropped.",
        (
            "http://ns.google.com/photos/1.0/depthmap/",
            "http://ns.google.com/photos/1.0/image/",
            "http://ns.google.com/photos/1.0/audio/",
        ),
        needs=_EXTENDED,
    ),
)
_ATTRIBUTE = rb"\s+([^\s=/>]+)\s*=\s*(?:\"[^\"]*\"|'[^']*')"
_TAG = re.compile(rb"<[^\s/>]+(?:%s)*\s*/?>" % _ATTRIBUTE)
_ONE_ATTRIBUTE = re.compile(_ATTRIBUTE)
_END_TAG = re.compile(rb"(?:</[^>]*>)?")


class _Piece(NamedTuple):
    """A property's place in a packet, and its name."""

    start: int
    end: int
    space: str
    name: str


def without_claims(xmp: bytes) -> tuple[bytes, tuple[str, ...]]:
    """XMP without what it claims of parts behind the picture.

    Those parts (a motion photo's video, a gain map, extended XMP) aren't restored and
    aren't carried. XMP that isn't XML, or has a document type, stays as it is.

    Returns:
      The XMP, and a sentence for each kind of part.
    """
    if b"<!DOCTYPE" in xmp or b"<!ENTITY" in xmp:
        return xmp, ()
    try:
        pieces = _properties(xmp)
    except (expat.ExpatError, UnicodeDecodeError):
        return xmp, ()
    notes: list[str] = []
    gone: list[_Piece] = []
    for claim in _CLAIMS:
        found = [
            x
            for x in pieces
            if x.space in claim.spaces and re.fullmatch(claim.names, x.name)
        ]
        if found and (not claim.needs or claim.needs in notes):
            notes.append(claim.note)
            gone += found
    kept, place = [], 0
    for piece in sorted(gone):
        if piece.start >= place:  # else it is within a property that is gone
            kept.append(xmp[place : piece.start])
            place = piece.end
    return b"".join([*kept, xmp[place:]]), tuple(notes)


def _properties(xmp: bytes) -> list[_Piece]:
    """All elements and attributes that are in a namespace.

    Raises:
      ExpatError: not XML.
      UnicodeDecodeError: names that aren't in UTF-8.
    """
    data = xmp.rstrip(b"\0 \t\r\n")
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.ordered_attributes = True
    found: list[_Piece] = []
    spaces: dict[str, list[str]] = {}  # prefix -> namespaces, the innermost last
    open_elements: list[tuple[int, int]] = []  # their start, and where their tag ends

    def declared(prefix, space):
        spaces.setdefault(prefix or "", []).append(space or "")

    def undeclared(prefix):
        spaces[prefix or ""].pop()

    def started(name, attributes):
        del name, attributes
        start = parser.CurrentByteIndex
        tag = _TAG.match(data, start)
        end = tag.end() if tag else start
        open_elements.append((start, end))
        for x in _ONE_ATTRIBUTE.finditer(data, start, end):
            prefix, _, local = x[1].decode().rpartition(":")
            if prefix and spaces.get(prefix):
                found.append(_Piece(x.start(), x.end(), spaces[prefix][-1], local))

    def ended(name):
        start, tag_end = open_elements.pop()
        space, _, local = name.rpartition(" ")
        place = parser.CurrentByteIndex
        end = _END_TAG.match(data, place) if place > start else None
        if tag_end > start:
            found.append(_Piece(start, end.end() if end else tag_end, space, local))

    parser.StartNamespaceDeclHandler = declared
    parser.EndNamespaceDeclHandler = undeclared
    parser.StartElementHandler, parser.EndElementHandler = started, ended
    parser.Parse(data, True)
    return found
