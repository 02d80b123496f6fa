"""Tests that EXIF is carried byte for byte, and that dropped metadata is noted."""

import io
import json
import shutil
import struct
import subprocess
import warnings

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

from cqr_jax.data.jpeg import ImageError
from cqr_jax.restoring import exif, metadata, pictures
from cqr_jax.restoring.exif import Entry, Tags
from cqr_jax.restoring.metadata import Metadata
from cqr_jax.restoring.picture import Picture

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), np.uint8)
ARTIST, RIGHTS = "Änne Müller 写真".encode() + b"\0", "© 2026 Ana".encode() + b"\0"
NOTE = b"Maker\0\0\0" + bytes(range(200))
NOTED = "The camera's own notes (MakerNote) were dropped from EXIF."
needs_exiftool = pytest.mark.skipif(
    not shutil.which("exiftool"), reason="no exiftool to compare with"
)


def _tags(order):
    """Returns EXIF as cameras write it, with nested directories."""

    def short(value):
        return Entry(3, 1, struct.pack(f"{order}H", value))

    def rational(*values):
        return Entry(
            5, len(values) // 2, struct.pack(f"{order}{len(values)}I", *values)
        )

    first = {
        0x10F: Entry(2, 6, b"Maker\0"),
        0x110: Entry(2, 3, b"M1\0"),
        0x112: short(6),
        0x11A: rational(72, 1),
        0x11B: rational(72, 1),
        0x13B: Entry(2, len(ARTIST), ARTIST),
        0x8298: Entry(2, len(RIGHTS), RIGHTS),
        0x8769: {
            0x829A: rational(1, 250),
            0x8827: short(400),
            0x9000: Entry(7, 4, b"0232"),
            0x9003: Entry(2, 20, b"2026:11:26 07:00:00\0"),
            0x9286: Entry(7, 16, b"UNICODE\0" + "Grüß".encode("utf-16")[2:]),
            0x927C: Entry(7, len(NOTE), NOTE),
            0xA005: {1: Entry(2, 4, b"R98\0"), 2: Entry(7, 4, b"0100")},
            0xA434: Entry(2, 9, b"35mm F/2\0"),
        },
        0x8825: {
            0: Entry(1, 4, b"\2\3\0\0"),
            1: Entry(2, 2, b"N\0"),
            2: rational(47, 1, 22, 1, 301, 10),
        },
    }
    return Tags(order, first)


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_block_is_unchanged_by_reading_and_writing(order):
    tags = _tags(order)
    data = exif.block(tags)
    assert data[:8] == exif.NAME + {"<": b"II", ">": b"MM"}[order]
    assert exif.read(data) == tags
    assert exif.block(exif.read(data)) == data
    assert exif.read(data).numbers(0x112) == (6,)
    assert exif.read(data).rational(0x11A) == 72.0
    seen = Image.Exif()  # another reader
    seen.load(data)
    assert seen[0x10F] == "Maker"
    assert seen.get_ifd(ExifTags.IFD.Exif)[0x829A] == 1 / 250
    assert seen.get_ifd(ExifTags.IFD.GPSInfo)[2] == (47, 22, 30.1)
    assert seen.get_ifd(ExifTags.IFD.Interop)[1] == "R98"


def _exiftool(path):
    command = ["exiftool", "-j", "-G1", "-u", str(path)]
    found = subprocess.run(command, capture_output=True, check=False, timeout=60).stdout
    (tags,) = json.loads(found)
    return tags


@needs_exiftool
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exiftool_reads_the_same_exif_before_and_after(order, name, dtype, tmp_path):
    if dtype == np.uint16 and name not in ("png", "tiff"):
        return
    block = exif.block(_tags(order))
    picture = Picture(RGB.astype(dtype), metadata=Metadata(block))
    first, second = tmp_path / "first.jpg", tmp_path / f"second.{name}"
    first.write_bytes(pictures.encode(picture._replace(pixels=RGB), "jpeg"))
    second.write_bytes(pictures.encode(picture, name))
    before, after = _exiftool(first), _exiftool(second)
    groups = ("ExifIFD", "GPS", "InteropIFD")
    texts = ("IFD0:Artist", "IFD0:Copyright", "IFD0:Make", "IFD0:Model")
    assert before["IFD0:Artist"].startswith("Änne")
    for key, value in before.items():
        if key in texts or key.split(":")[0] in groups:
            if name == "tiff" and "Maker" in key:
                continue
            assert after.get(key) == value, key
    if name == "tiff":
        assert "ExifTool:Warning" not in after
        assert NOTE not in second.read_bytes()
    turn = after["IFD0:Orientation"]
    assert turn == (
        "Horizontal (normal)" if name in ("png", "webp") else "Rotate 90 CW"
    )


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(20, 30, 1), (20, 30, 3)])
@pytest.mark.parametrize("transparent", [False, True])
def test_tiff_keeps_the_values_of_exif(order, dtype, shape, transparent):
    pixels = RNG.integers(0, np.iinfo(dtype).max, shape, dtype)
    alpha = pixels[..., 0] if transparent else None
    tags = _tags(order)
    meta = Metadata(exif.block(tags), b"profile", b"<x/>", (300.0, 150.0))
    fitted = pictures.fitted(Picture(pixels, alpha, metadata=meta), "tiff")
    assert fitted.notes == (NOTED,)
    assert pictures.fitted(fitted, "tiff") == fitted
    data = pictures.encode(fitted, "tiff")
    found = pictures.decode(data)
    np.testing.assert_array_equal(found.pixels, pixels)
    np.testing.assert_array_equal(found.alpha, alpha)
    kept = exif.read(found.metadata.exif).first
    expected = {tag: x for tag, x in tags.first.items() if tag not in (0x11A, 0x11B)}
    expected[0x8769] = {t: x for t, x in expected[0x8769].items() if t != 0x927C}
    assert kept == expected
    assert found.metadata[1:4] == meta[1:4]
    assert found.notes == ()
    with tifffile.TiffFile(io.BytesIO(data)) as file:  # another reader
        page = file.pages.first
        stack = pixels if alpha is None else np.dstack([pixels, alpha])
        np.testing.assert_array_equal(page.asarray(), np.squeeze(stack))
        assert page.tags[0x8769].value["ISOSpeedRatings"] == 400
        assert len(file.pages) == 1
    again = pictures.encode(found, "tiff")  # from TIFF to TIFF
    assert exif.read(pictures.decode(again).metadata.exif).first == expected


def test_maker_note_of_a_tiff_is_dropped_with_a_note():
    tags = _tags("<")
    with_notes = Tags("<", {0x8769: tags.first[0x8769]})
    data = pictures.encode(Picture(RGB), "tiff")
    directory = {**exif.read(data).first, **with_notes.first}
    start = len(data)
    data = data[:4] + struct.pack("<I", start) + data[8:]
    data += exif.directory_bytes(directory, "<", start)
    found = pictures.decode(data)
    assert found.notes == (NOTED,)
    assert NOTE not in found.metadata.exif
    np.testing.assert_array_equal(found.pixels, RGB)


def test_damaged_exif_entries_are_dropped_and_the_others_kept():
    data = bytearray(exif.block(_tags("<")))
    place = data.index(struct.pack("<HH", 0x13B, 2))
    struct.pack_into("<I", data, place + 8, 10**9)  # offset of its text
    tags = exif.read(bytes(data))
    assert tags.damaged
    assert 0x13B not in tags.first
    assert tags.first[0x8298] == _tags("<").first[0x8298]
    picture = Picture(RGB, metadata=Metadata(bytes(data)))
    assert (
        "Damaged entries of EXIF were dropped."
        in pictures.fitted(picture, "tiff").notes
    )
    pictures.encode(picture, "tiff")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("order", "<>")
def test_exif_directories_beyond_the_end_are_dropped(order, count):
    """Three numbers in place of an offset are a number that struct can't take."""
    data = bytearray(exif.block(_tags(order)))
    place = data.index(struct.pack(order + "HHI", 0x8769, 4, 1))
    struct.pack_into(order + "II", data, place + 4, count, len(data) - 12 * count)
    data[-12:] = b"\xf0" * 12
    if count == 1:
        struct.pack_into(order + "I", data, place + 8, 2**32 - 1)
    tags = exif.read(bytes(data))
    assert tags.damaged
    assert 0x8769 not in tags.first
    picture = Picture(RGB, metadata=Metadata(bytes(data)))
    pictures.encode(pictures.fitted(picture, "png"), "png")


@pytest.mark.parametrize("data", [b"", b"II", b"MM\0", b"II*\0\x08"])
def test_short_exif_has_no_directory(data):
    for read in (exif.read, exif.reset_orientation):
        with pytest.raises(ValueError, match=r"."):
            read(data)


def test_exif_directories_that_point_to_themselves_are_read():
    data = bytearray(exif.block(_tags(">")))
    place = data.index(struct.pack(">HHI", 0x8769, 4, 1))
    struct.pack_into(">I", data, place + 8, 8)
    tags = exif.read(bytes(data))  # the EXIF directory is the first directory
    assert exif.read(exif.block(tags)).first == tags.first


def test_an_absurd_count_drops_its_own_entry_alone():
    entries = [
        struct.pack("<HHII", 271, 2, 0x7FFFFFFF, 8),
        struct.pack("<HHII", 272, 2, 10, 8),
        struct.pack("<HHII", 306, 2, 20, 8),
    ]
    head = b"II*\0" + struct.pack("<I", 8 + 20) + bytes(20)
    tags = exif.read(head + struct.pack("<H", 3) + b"".join(entries) + bytes(4))
    assert tags.damaged
    assert set(tags.first) == {272, 306}


def test_exif_values_that_overlap_take_no_more_memory_than_the_block():
    count, values = 1000, bytes(20_000)
    entries = b"".join(
        struct.pack("<HHII", 40_000 + i, 7, len(values), 8) for i in range(count)
    )
    directory = struct.pack("<H", count) + entries + bytes(4)
    head = b"II*\0" + struct.pack("<I", 8 + len(values))
    tags = exif.read(head + values + directory)
    assert tags.damaged
    read = sum(len(x.value) for x in tags.first.values())
    assert 0 < read <= 2 * len(head + values + directory)


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("dpi", [4294967295.0, 1e300, 70000.0])
def test_files_with_absurd_resolutions_are_written_and_read(name, dpi):
    picture = Picture(RGB, metadata=Metadata(dpi=(dpi, dpi)))
    fitted = pictures.fitted(picture, name)
    found = pictures.decode(pictures.encode(picture, name))
    if name != "jpeg":
        np.testing.assert_array_equal(found.pixels, RGB)
    if dpi > 1e9 and name != "webp":
        (note,) = fitted.notes
        assert note.startswith("The resolution of")
        assert found.metadata.dpi is None or name == "bmp"  # Pillow writes 96 then


def test_absurd_resolution_in_exif_is_accepted():
    tags = _tags("<").first | {
        0x11A: Entry(5, 1, struct.pack("<II", 2**32 - 1, 1)),
        0x11B: Entry(5, 1, struct.pack("<II", 2**32 - 1, 1)),
    }
    picture = Picture(RGB, metadata=Metadata(exif.block(Tags("<", tags))))
    data = pictures.encode(picture, "jpeg")
    for name in ("jpeg", "png", "webp", "tiff", "bmp"):
        pictures.decode(pictures.encode(pictures.decode(data), name))
    zero = tags | {0x11A: Entry(5, 1, bytes(8))}
    assert metadata.exif_resolution(exif.block(Tags("<", zero))) is None


@pytest.mark.parametrize("source", ["jpeg", "tiff", "webp"])
@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff"])
def test_long_profile_is_dropped_from_png_only(source, name):
    """Pillow opens no PNG with a profile of more than 1 MiB."""
    profile = RNG.bytes(1_200_000)
    data = pictures.encode(Picture(RGB, metadata=Metadata(icc_profile=profile)), source)
    picture = pictures.decode(data)
    assert picture.metadata.icc_profile == profile
    fitted = pictures.fitted(picture, name)
    written = pictures.encode(picture, name)
    with Image.open(io.BytesIO(written)) as image:
        image.load()
    kept = pictures.decode(written).metadata.icc_profile
    if name == "png":
        (note,) = fitted.notes
        assert note.startswith("The colour profile of 1.2 MB was dropped")
        assert kept == b""
    else:
        assert (kept, fitted.notes) == (profile, ())


@pytest.mark.parametrize("source", ["tiff", "png", "webp"])
@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff"])
def test_long_xmp_is_dropped_from_jpeg_only(source, name):
    xmp = b"<x>" + bytes(RNG.integers(97, 123, 1_500_000, np.uint8)) + b"</x>"
    data = pictures.encode(Picture(RGB, metadata=Metadata(xmp=xmp)), source)
    picture = pictures.decode(data)
    assert picture.metadata.xmp == xmp
    written = pictures.encode(picture, name)
    with Image.open(io.BytesIO(written)) as image:
        image.load()
    fitted = pictures.fitted(picture, name)
    if name == "jpeg":
        assert fitted.notes == (
            "XMP of 1500 kB was dropped: JPEG holds at most 65 kB.",
        )
    else:
        assert fitted.notes == ()
        assert pictures.decode(written).metadata.xmp == xmp


def test_xmp_that_is_not_utf_8_is_dropped_from_png():
    picture = Picture(RGB, metadata=Metadata(xmp=b"\xff\xfe<\0x\0"))
    fitted = pictures.fitted(picture, "png")
    assert fitted.notes == ("XMP was dropped: it is not in UTF-8.",)
    pictures.decode(pictures.encode(picture, "png"))
    found = pictures.decode(pictures.encode(picture, "tiff"))
    assert found.metadata.xmp == picture.metadata.xmp.rstrip(b"\0")


def test_bmp_drops_profile_exif_and_xmp_with_notes():
    held = Metadata(icc_profile=b"profile", exif=exif.block(_tags("<")), xmp=b"<x/>")
    fitted = pictures.fitted(Picture(RGB, metadata=held), "bmp")
    names = ("The colour profile", "EXIF", "XMP")
    assert fitted.notes == tuple(f"{x} was dropped: BMP can't hold it." for x in names)
    assert fitted.metadata == Metadata()


def test_pictures_with_garbage_as_metadata_are_written_without_warnings():
    for i in range(60):
        garbage = [RNG.bytes(int(n)) for n in RNG.integers(0, 400, 3)]
        head = (b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0", b"Exif\0\0MM\0*\0\0\0\x08")
        meta = Metadata(head[i % 3] + garbage[0], garbage[1], garbage[2])
        for name in ("jpeg", "png", "webp", "tiff", "bmp"):
            with warnings.catch_warnings(action="error"):
                data = pictures.encode(Picture(RGB, metadata=meta), name)
                found = pictures.decode(data)
            assert found.pixels.size == RGB.size


def test_error_suggests_a_format_that_can_hold_the_picture():
    alpha = np.zeros((20, 30), np.uint8)
    for name in ("jpeg", "bmp"):
        with pytest.raises(ImageError, match=r"transparency.*; take --format=png"):
            pictures.check(Picture(RGB, alpha), name)
        assert pictures.fallback(Picture(RGB, alpha), name) == "png"
        assert pictures.fallback(Picture(RGB), name) == name
    with pytest.raises(ImageError, match="take --bits=8"):
        pictures.check(Picture(np.zeros((9, 9, 4), np.uint8)), "tiff", np.uint16)
    assert pictures.fallback(Picture(RGB), "bmp", np.uint16) == "png"
    assert (
        pictures.fallback(Picture(np.zeros((1, 17000, 3), np.uint8)), "webp") == "png"
    )


def test_an_entry_without_values_is_as_if_missing():
    """The entry is ResolutionUnit (296). Then the unit is the inch."""
    unit = Entry(3, 0, b"")
    x, y = (Entry(5, 1, struct.pack("<2I", value, 1)) for value in (300, 150))
    tags = Tags("<", {282: x, 283: y, 296: unit})
    assert metadata.tiff_resolution(tags) == (300.0, 150.0)
