"""Removes XMP properties about parts of a file that are not kept.

Such properties claim, for example, that a video follows the image. They are cut out of
the bytes of the packet; all other bytes stay the same.
"""

import re
from typing import NamedTuple
from xml.parsers import expat


class _Claim(NamedTuple):
    """Properties which claim that the file has a certain part.

    Attributes:
      note: sentence that says that the part was dropped.
      namespaces: namespaces of the properties.
      names: regular expression that matches the full names of the properties.
      requires: note of another claim. If given, the properties are removed only if that
        claim was found too.
    """

    note: str
    namespaces: tuple[str, ...]
    names: str = r"[\w.-]+"
    requires: str = ""


_EXTENDED = "The extended XMP was dropped."
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
        "The other pictures or videos in the file were dropped.",
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
        requires=_EXTENDED,
    ),
)
_ATTRIBUTE = rb"\s+([^\s=/>]+)\s*=\s*(?:\"[^\"]*\"|'[^']*')"
_TAG = re.compile(rb"<[^\s/>]+(?:%s)*\s*/?>" % _ATTRIBUTE)
_ONE_ATTRIBUTE = re.compile(_ATTRIBUTE)
_END_TAG = re.compile(rb"(?:</[^>]*>)?")


class _Property(NamedTuple):
    """Offsets of a property in a packet, and its name."""

    start: int
    end: int
    namespace: str
    name: str


def without_claims(xmp: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Removes properties which claim that the file has parts besides the image.

    These parts, such as the video of a motion photo, a gain map or extended XMP, are
    not written to the output. XMP that is not XML or has a document type is returned
    unchanged.

    Returns:
      The XMP, and a sentence on each kind of dropped part.
    """
    if b"<!DOCTYPE" in xmp or b"<!ENTITY" in xmp:
        return xmp, ()
    try:
        properties = _properties(xmp)
    except (expat.ExpatError, UnicodeDecodeError):
        return xmp, ()
    notes: list[str] = []
    removed: list[_Property] = []
    for claim in _CLAIMS:
        found = [
            x
            for x in properties
            if x.namespace in claim.namespaces and re.fullmatch(claim.names, x.name)
        ]
        if found and (not claim.requires or claim.requires in notes):
            notes.append(claim.note)
            removed += found
    kept, place = [], 0
    for item in sorted(removed):
        if item.start >= place:  # else it is inside a removed property
            kept.append(xmp[place : item.start])
            place = item.end
    return b"".join([*kept, xmp[place:]]), tuple(notes)


def _properties(xmp: bytes) -> list[_Property]:
    """Returns all elements and attributes that are in a namespace.

    Raises:
      ExpatError: if the packet is not XML.
      UnicodeDecodeError: if names are not in UTF-8.
    """
    data = xmp.rstrip(b"\0 \t\r\n")
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.ordered_attributes = True
    found: list[_Property] = []
    namespaces: dict[str, list[str]] = {}  # prefix -> namespaces, innermost last
    open_elements: list[tuple[int, int]] = []  # start and end of the start tag

    def start_namespace(prefix, namespace):
        namespaces.setdefault(prefix or "", []).append(namespace or "")

    def end_namespace(prefix):
        namespaces[prefix or ""].pop()

    def start_element(name, attributes):
        del name, attributes
        start = parser.CurrentByteIndex
        tag = _TAG.match(data, start)
        end = tag.end() if tag else start
        open_elements.append((start, end))
        for x in _ONE_ATTRIBUTE.finditer(data, start, end):
            prefix, _, local = x[1].decode().rpartition(":")
            if prefix and namespaces.get(prefix):
                namespace = namespaces[prefix][-1]
                found.append(_Property(x.start(), x.end(), namespace, local))

    def end_element(name):
        start, tag_end = open_elements.pop()
        namespace, _, local = name.rpartition(" ")
        place = parser.CurrentByteIndex
        end = _END_TAG.match(data, place) if place > start else None
        if tag_end > start:
            stop = end.end() if end else tag_end
            found.append(_Property(start, stop, namespace, local))

    parser.StartNamespaceDeclHandler = start_namespace
    parser.EndNamespaceDeclHandler = end_namespace
    parser.StartElementHandler = start_element
    parser.EndElementHandler = end_element
    parser.Parse(data, True)
    return found
