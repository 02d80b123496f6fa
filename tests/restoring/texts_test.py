"""Tests that IPTC, comments and texts are carried from format to format."""

import io
import json
import shutil
import struct
import subprocess
import zlib

import numpy as np
import png
import pytest
import tifffile
from PIL import Image

from cqr_jax.restoring import photoshop
from cqr_jax.restoring.metadata import Metadata
from cqr_jax.restoring.picture import Picture
from cqr_jax.restoring.pictures import decode, encode, fitted

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
GREETING = "Grüße".encode()
CREATOR, TITLE = "Änne".encode(), b"The harbour"
needs_exiftool = pytest.mark.skipif(
    not shutil.which("exiftool"), reason="no exiftool to compare with"
)


def _record(number, data, group=2):
    return struct.pack(">BBBH", 0x1C, group, number, len(data)) + data


def _resource(number, data, name=b""):
    named = bytes([len(name)]) + name
    named += bytes(len(named) % 2)
    head = b"8BIM" + struct.pack(">H", number) + named
    return head + struct.pack(">I", len(data)) + data + bytes(len(data) % 2)


# In UTF-8, by the escape sequence of record 1:90.
IPTC = _record(90, b"\x1b%G", 1) + _record(80, CREATOR) + _record(5, TITLE)
RIGHTS, URL = _resource(1034, b"\1"), _resource(1035, b"https://example.org", b"url")
THUMBNAIL = _resource(1036, b"\0\0\0\1" + b"thumbnail" * 9)
RESOURCES = _resource(1028, IPTC) + RIGHTS + URL


def _segment(marker, content):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def _jpeg(*segments):
    data = encode(Picture(RGB), "jpeg")
    return data[:2] + b"".join(_segment(*x) for x in segments) + data[2:]


def _with_all(resources=RESOURCES, comment=GREETING):
    return _jpeg((0xED, b"Photoshop 3.0\0" + resources), (0xFE, comment))


def test_thumbnails_and_copies_are_removed_from_resources():
    copies = b"".join(_resource(n, b"copy") for n in (1033, 1039, 1058, 1059, 1060))
    assert photoshop.read(THUMBNAIL + RESOURCES + copies) == (RESOURCES, False)
    assert photoshop.iptc(RESOURCES) == IPTC
    assert photoshop.without_iptc(RESOURCES) == RIGHTS + URL
    assert photoshop.of_iptc(IPTC) == _resource(1028, IPTC)
    assert photoshop.of_iptc(b"other") == b""
    for length in (2, 9, 20):
        assert photoshop.read(RESOURCES[:-length]) == (RESOURCES[: -len(URL)], True)
    assert photoshop.read(b"") == (b"", False)


@pytest.mark.parametrize("name", ["jpeg", "png", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_iptc_is_carried_without_its_thumbnail(name, dtype):
    if dtype == np.uint16 and name == "jpeg":
        return
    found = decode(_with_all(THUMBNAIL + RESOURCES))
    assert found.notes == ()
    data = encode(found._replace(pixels=found.pixels.astype(dtype)), name)
    assert b"thumbnail" not in data
    assert decode(data).metadata.resources == RESOURCES
    assert decode(encode(decode(data), name)).metadata.resources == RESOURCES


@needs_exiftool
@pytest.mark.parametrize("name", ["jpeg", "png", "tiff"])
def test_exiftool_reads_iptc_and_comments(name, tmp_path):
    path = tmp_path / f"a.{name}"
    path.write_bytes(encode(decode(_with_all()), name))
    command = ["exiftool", "-j", "-G0", "-charset", "iptc=UTF8", str(path)]
    run = subprocess.run(command, capture_output=True, check=True, timeout=60)
    (tags,) = json.loads(run.stdout)
    assert tags["IPTC:By-line"] == "Änne"
    assert tags["IPTC:ObjectName"] == "The harbour"
    assert tags["Photoshop:URL"] == "https://example.org"
    assert "ExifTool:Warning" not in tags
    comment = {"jpeg": "File:Comment", "png": "PNG:Comment"}.get(name)
    assert comment is None or tags[comment] == "Grüße"


def test_long_resources_take_several_segments():
    long = _resource(1028, IPTC + _record(120, bytes(30_000)) * 5)
    found = decode(encode(Picture(RGB, metadata=Metadata(resources=long)), "jpeg"))
    assert found.metadata.resources == long


def test_iptc_of_tiff_is_read_from_either_tag():
    """IPTC has a tag of its own, but may be in Photoshop's tag instead, or in both."""
    for extra in (
        [(33723, 7, len(IPTC), IPTC, True)],
        [(34377, 1, len(RESOURCES), RESOURCES, True)],
        [
            (33723, 7, len(IPTC), IPTC, True),
            (34377, 1, len(RESOURCES), RESOURCES, True),
        ],
    ):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, RGB, photometric="rgb", extratags=extra, metadata=None)
        found = decode(buffer.getvalue()).metadata.resources
        assert photoshop.iptc(found) == IPTC
        assert found.count(b"8BIM") == (
            1 if len(extra) == 1 and extra[0][1] == 7 else 3
        )


@pytest.mark.parametrize(
    ("comment", "chunk"),
    [
        (b"plain", (b"tEXt", b"Comment\0plain")),
        ("Grüße".encode(), (b"iTXt", b"Comment\0\0\0\0\0" + "Grüße".encode())),
        (b"Gr\xfc\xdfe", (b"tEXt", b"Comment\0Gr\xfc\xdfe")),
    ],
)
def test_jpeg_comments_become_png_texts_and_comments_again(comment, chunk):
    data = encode(decode(_with_all(b"", comment + b"\0")), "png")
    chunks = list(png.Reader(bytes=data).chunks())
    assert chunk in [(bytes(name), bytes(content)) for name, content in chunks]
    with Image.open(io.BytesIO(data)) as image:
        shown = image.text["Comment"]
    assert shown == ("plain" if comment == b"plain" else "Grüße")
    back = decode(encode(decode(data), "jpeg"))
    assert back.metadata.comments == (shown.encode(),)
    same = decode(encode(decode(_with_all(b"", comment)), "jpeg"))
    assert same.metadata.comments == (comment,)


def test_png_texts_keep_their_chunks():
    texts = [
        (b"tEXt", b"Author\0\xc4nne"),
        (b"zTXt", b"Description\0\0" + zlib.compress(b"a harbour")),
        (b"iTXt", b"Title\0\1\0de\0Titel\0" + zlib.compress("Häfen".encode())),
    ]
    header, *rest = png.Reader(bytes=encode(Picture(RGB), "png")).chunks()
    buffer = io.BytesIO()
    png.write_chunks(buffer, [header, *texts, *rest])
    found = decode(buffer.getvalue())
    assert [x.chunk for x in found.metadata.texts] == texts
    values = [x.value.decode() for x in found.metadata.texts]
    assert values == ["Änne", "a harbour", "Häfen"]
    again = encode(found, "png")
    written = [(bytes(a), bytes(b)) for a, b in png.Reader(bytes=again).chunks()]
    assert [x for x in written if x[0] in (b"tEXt", b"zTXt", b"iTXt")] == texts
    for name, shown in (("jpeg", "JPEG"), ("webp", "WebP"), ("tiff", "TIFF")):
        assert fitted(found, name).notes == (
            f"The PNG's text (Author, Description, Title) was dropped: {shown} can't "
            "hold it.",
        )


def test_texts_too_long_for_other_readers_are_dropped():
    long = (b"zTXt", b"Long\0\0" + zlib.compress(bytes(2_000_000)))
    header, *rest = png.Reader(bytes=encode(Picture(RGB), "png")).chunks()
    buffer = io.BytesIO()
    png.write_chunks(buffer, [header, long, *rest])
    found = decode(buffer.getvalue())
    assert found.notes == ("The text Long of 2.0 MB was dropped: it is too long.",)
    assert found.metadata.texts == ()


@pytest.mark.parametrize(("name", "shown"), [("webp", "WebP"), ("bmp", "BMP")])
def test_dropped_comments_and_resources_are_noted(name, shown):
    found = fitted(decode(_with_all()), name)
    assert found.notes == (
        f"The comment was dropped: {shown} can't hold it.",
        f"IPTC was dropped: {shown} can't hold it.",
    )
    other = fitted(decode(_jpeg((0xED, b"Photoshop 3.0\0" + RIGHTS))), name)
    assert other.notes == (f"Photoshop's data was dropped: {shown} can't hold it.",)


def test_resources_before_a_damaged_one_are_kept():
    found = decode(_with_all(RESOURCES[:-5]))
    assert found.metadata.resources == RESOURCES[: -len(URL)]
    assert found.notes == (
        "Damaged parts of IPTC or of Photoshop's data were dropped.",
    )


def test_comment_of_a_gif_is_read():
    buffer = io.BytesIO()
    Image.fromarray(RGB).quantize(16).save(buffer, "GIF", comment=b"made by hand")
    assert decode(buffer.getvalue()).metadata.comments == (b"made by hand",)
