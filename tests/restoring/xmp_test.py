"""Tests that XMP properties about dropped parts are removed."""

import io

import numpy as np
import pytest
from PIL import Image

from cqr_jax.restoring import xmp
from cqr_jax.restoring.metadata import Metadata
from cqr_jax.restoring.picture import Picture
from cqr_jax.restoring.pictures import decode, encode

VIDEO = "The video of the motion photo was dropped."
OTHERS = "The other pictures or videos in the file were dropped."
MAP = "The gain map for HDR was dropped."
EXTENDED = "The extended XMP was dropped."
HEAD = b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">"""
TAIL = b"</rdf:RDF></x:xmpmeta>" + b" " * 99 + b'\n<?xpacket end="w"?>'
GOOGLE = b' xmlns:GCamera="http://ns.google.com/photos/1.0/camera/"'
ADOBE = b' xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"'


def _packet(attributes, content=b""):
    start = HEAD + b'<rdf:Description rdf:about=""' + attributes + b">"
    return start + content + b"</rdf:Description>" + TAIL


CASES = {
    "attribute": (
        (GOOGLE + b' GCamera:MotionPhoto="1"\n GCamera:SpecialTypeID="x"', b""),
        (GOOGLE + b'\n GCamera:SpecialTypeID="x"', b""),
        (VIDEO,),
    ),
    "quotes and signs in values": (
        (GOOGLE + b" GCamera:SpecialTypeID='>\"' GCamera:MicroVideoOffset = '4'", b""),
        (GOOGLE + b" GCamera:SpecialTypeID='>\"'", b""),
        (VIDEO,),
    ),
    "elements": (
        (
            GOOGLE,
            b"\n<GCamera:MotionPhoto>1</GCamera:MotionPhoto>\n<GCamera:MicroVideo/>.",
        ),
        (GOOGLE, b"\n\n."),
        (VIDEO,),
    ),
    "another prefix": (
        (b' xmlns:a="http://ns.adobe.com/hdr-gain-map/1.0/" a:Version="1.0"', b""),
        (b' xmlns:a="http://ns.adobe.com/hdr-gain-map/1.0/"', b""),
        (MAP,),
    ),
    "a list": (
        (
            ADOBE + b' hdrgm:HDRCapacityMin="0"',
            b"<hdrgm:Gamma><rdf:Seq><rdf:li>1</rdf:li></rdf:Seq></hdrgm:Gamma>",
        ),
        (ADOBE, b""),
        (MAP,),
    ),
    "apple": (
        (
            b' xmlns:HDRGainMap="http://ns.apple.com/HDRGainMap/1.0/"',
            b"<HDRGainMap:HDRGainMapVersion>65536</HDRGainMap:HDRGainMapVersion>",
        ),
        (b' xmlns:HDRGainMap="http://ns.apple.com/HDRGainMap/1.0/"', b""),
        (MAP,),
    ),
    "a container": (
        (
            b' xmlns:Container="http://ns.google.com/photos/1.0/container/"'
            b' xmlns:Item="http://ns.google.com/photos/1.0/container/item/"',
            b"<Container:Directory><rdf:Seq>"
            b'<rdf:li rdf:parseType="Resource"><Container:Item Item:Mime="image/jpeg"'
            b' Item:Semantic="Primary"/></rdf:li><rdf:li rdf:parseType="Resource">'
            b'<Container:Item Item:Semantic="GainMap" Item:Length="5"/></rdf:li>'
            b"</rdf:Seq></Container:Directory>",
        ),
        (
            b' xmlns:Container="http://ns.google.com/photos/1.0/container/"'
            b' xmlns:Item="http://ns.google.com/photos/1.0/container/item/"',
            b"",
        ),
        (OTHERS,),
    ),
    "extended": (
        (
            b' xmlns:n="http://ns.adobe.com/xmp/note/" n:HasExtendedXMP="0123"'
            b' xmlns:d="http://ns.google.com/photos/1.0/depthmap/" d:Near="1"',
            b"",
        ),
        (
            b' xmlns:n="http://ns.adobe.com/xmp/note/"'
            b' xmlns:d="http://ns.google.com/photos/1.0/depthmap/"',
            b"",
        ),
        (EXTENDED, "The depth map, sound or original picture in XMP was dropped."),
    ),
    "declared where it is used": (
        (b"", b"<h:Version%s>1</h:Version>" % ADOBE.replace(b"hdrgm", b"h")),
        (b"", b""),
        (MAP,),
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_claims_are_removed_and_other_bytes_stay_the_same(case):
    before, after, notes = CASES[case]
    assert xmp.without_claims(_packet(*before)) == (_packet(*after), notes)
    padded = _packet(*before) + b"\0"
    assert xmp.without_claims(padded)[0] == _packet(*after) + b"\0"


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"no XML",
        b"<a",
        HEAD + GOOGLE,
        b"\xff\xfe<\0a\0/\0>\0",
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        # a claim in a text, in a comment, or in another namespace
        _packet(b"", b'<!-- %s GCamera:MotionPhoto="1" -->MotionPhoto' % GOOGLE),
        _packet(b' xmlns:GCamera="x" GCamera:MotionPhoto="1"'),
        # a depth map in the packet itself
        _packet(b' xmlns:d="http://ns.google.com/photos/1.0/depthmap/" d:Near="1"'),
        _packet(GOOGLE, b'<i xmlns:GCamera="x" GCamera:MotionPhoto="1"/>'),
    ],
)
def test_packets_without_claims_are_unchanged(packet):
    assert xmp.without_claims(packet) == (packet, ())


def test_jpeg_with_gain_map_loses_its_claims_and_mpf_index():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    packet = _packet(ADOBE + b' hdrgm:Version="1.0"')
    main, behind = (
        encode(Picture(x, metadata=Metadata(xmp=packet)), "jpeg")
        for x in (pixels, pixels // 2)
    )
    index = b"\xff\xe2\0\x10MPF\0MM\0*\0\0\0\x08\0\0"
    found = decode(main[:2] + index + main[2:] + behind)
    assert found.notes == (MAP,)
    data = encode(found, "jpeg")
    assert b"MPF\0" not in data
    assert b"hdrgm:Version" not in data
    assert data.count(b"\xff\xd8\xff") == 1


def test_claim_of_a_gain_map_is_removed_from_avif():
    packet = _packet(ADOBE + b' hdrgm:Version="1.0"')
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "AVIF", xmp=packet)
    found = decode(buffer.getvalue())
    assert found.metadata.xmp == _packet(ADOBE)
    assert found.notes == (MAP,)
