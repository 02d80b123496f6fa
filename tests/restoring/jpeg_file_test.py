"""Tests of JPEG files that are truncated, not supported, or followed by other data."""

import io
import shutil
import struct
import subprocess

import numpy as np
import pytest
from PIL import Image, ImageFile

from cqr_jax.data.jpeg import ImageError
from cqr_jax.restoring import pictures

RNG = np.random.default_rng(0)
COARSE = Image.fromarray(RNG.integers(0, 256, (15, 19, 3), np.uint8))
PHOTO = COARSE.resize((150, 117), Image.Resampling.BICUBIC)
KINDS = {
    "baseline": {},
    "4:4:4": {"subsampling": 0},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "coarse": {"quality": 5},
    "fine": {"quality": 100},
}
LAST = "The JPEG lacks its end marker."


def _jpeg(image=PHOTO, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _pillows(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("end", [b"", b"\xff", b"\xff\xff", b"\0\0\0"])
def test_jpeg_without_end_marker_gives_all_pixels_and_a_note(kind, mode, end):
    data = _jpeg(PHOTO.convert(mode), **KINDS[kind])
    assert data.endswith(b"\xff\xd9")
    whole = pictures.decode(data, stored=True)
    found = pictures.decode(data[:-2] + end, stored=True)
    np.testing.assert_array_equal(found.pixels, whole.pixels)
    expected = _pillows(data)
    np.testing.assert_array_equal(found.pixels.reshape(expected.shape), expected)
    assert whole.notes == ()
    assert found.notes == (LAST,)
    assert found.compression == whole.compression
    for a, b in zip(found.stored or (), whole.stored or (), strict=True):
        np.testing.assert_array_equal(a.coefficients, b.coefficients)
    assert bool(found.stored) == (mode != "CMYK")


@pytest.mark.skipif(not shutil.which("djpeg"), reason="no djpeg")
@pytest.mark.parametrize("kind", KINDS)
def test_djpeg_decodes_the_same_pixels_without_end_marker(kind, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(_jpeg(**KINDS[kind])[:-2])
    command = ["djpeg", "-dct", "int", "-bmp", str(path)]
    bitmap = subprocess.run(command, capture_output=True, check=False).stdout
    found = pictures.decode(path.read_bytes())
    np.testing.assert_array_equal(found.pixels, _pillows(bitmap))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.6, 0.8, 0.95])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_truncated_jpeg_is_rejected_or_salvaged_up_to_the_cut(kind, share, end):
    """Also if a program added an end marker to the truncated file."""
    data = _jpeg(**KINDS[kind])
    cut = data[: int(share * len(data))] + end
    with pytest.raises(ImageError, match="missing; --salvage restores what is there"):
        pictures.decode(cut, stored=True)
    found = pictures.decode(cut, stored=True, salvage=True)
    assert found.stored is None
    (note,) = found.notes
    assert note.startswith("The file is truncated: its ")
    whole = _pillows(data)
    if kind == "progressive":
        assert "finest details" in note
    else:
        row = int(note.split("below row ")[1].split()[0])
        assert 0 < row < 117
        np.testing.assert_array_equal(found.pixels[:row], whole[:row])
        assert (found.pixels[row:] != whole[row:]).any()


def test_progressive_jpeg_without_its_last_scan_is_rejected_or_salvaged():
    """Such a file decodes without an error, but lacks the lowest bits."""
    data = _jpeg(progressive=True)
    last = data.rindex(b"\xff\xda")
    cut = data[: data.rindex(b"\xff\xc4", 0, last)]
    with pytest.raises(ImageError, match="its finest details are missing"):
        pictures.decode(cut)
    found = pictures.decode(cut, salvage=True)
    assert found.notes == ("The file is truncated: its finest details are missing.",)
    difference = found.pixels.astype(int) - _pillows(data)
    assert 0 < np.abs(difference).max() < 60


def test_jpeg_cut_in_its_last_block_is_read_with_a_note():
    data = _jpeg(subsampling=0)
    found = pictures.decode(data[:-3], stored=True)
    assert found.notes == ("The file is truncated: its last block is incomplete.",)
    assert found.stored is None
    expected = _pillows(data)
    np.testing.assert_array_equal(found.pixels[:112], expected[:112])
    np.testing.assert_array_equal(found.pixels[:, :144], expected[:, :144])


def test_jpeg_cut_before_its_first_pixel_is_rejected():
    data = _jpeg()
    for place in (3, 20, data.index(b"\xff\xda")):
        with pytest.raises(ImageError, match="ends before its first pixel"):
            pictures.decode(data[:place], salvage=True)


@pytest.mark.parametrize("place", [0, 17])
def test_quantisation_step_of_zero_is_rejected(place):
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "gray").save(file, "jpeg", quality=50)
    data = bytearray(file.getvalue())
    data[data.index(b"\xff\xdb") + 5 + place] = 0
    with pytest.raises(ImageError, match="a quantisation step of the JPEG is 0"):
        pictures.decode(bytes(data))


def test_pillows_load_truncated_images_is_not_set():
    """The setting is global: it would affect other threads."""
    data = _jpeg()
    pictures.decode(data[:-2])
    pictures.decode(data[:-900], salvage=True)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize(
    ("marker", "bits", "message"),
    [
        (b"\xff\xc1", 12, "a JPEG with 12 bits per sample, .* convert it"),
        (b"\xff\xc3", 8, r"a lossless JPEG \(SOF3\)"),
        (b"\xff\xc5", 8, "a hierarchical JPEG"),
    ],
)
def test_unsupported_kinds_are_rejected(marker, bits, message):
    data = _jpeg()
    frame = data.index(b"\xff\xc0")
    odd = data[:frame] + marker + data[frame + 2 : frame + 4] + bytes([bits])
    with pytest.raises(ImageError, match=message):
        pictures.decode(odd + data[frame + 5 :])


@pytest.mark.skipif(not shutil.which("cjpeg"), reason="no cjpeg")
@pytest.mark.parametrize("options", [[], ["-progressive"]])
def test_arithmetic_coding_is_read(options, tmp_path):
    path = tmp_path / "a.jpg"
    PHOTO.save(tmp_path / "a.ppm")
    command = ["cjpeg", "-arithmetic", *options, "-outfile", path, tmp_path / "a.ppm"]
    subprocess.run(command, check=True, timeout=60)
    data = path.read_bytes()
    found = pictures.decode(data)
    np.testing.assert_array_equal(found.pixels, _pillows(data))
    assert found.notes == ()


def _segment(marker, content):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def test_data_behind_the_picture_is_ignored():
    """For example a video, another picture or zeros."""
    data = _jpeg()
    for behind in (b"\0\0\0\x18ftypmp42" + bytes(999), _jpeg(COARSE), bytes(100)):
        found = pictures.decode(data + behind)
        np.testing.assert_array_equal(found.pixels, _pillows(data))
        assert found.notes == ()


def test_first_picture_of_an_mpo_is_read_with_a_note():
    buffer = io.BytesIO()
    PHOTO.save(buffer, "MPO", save_all=True, append_images=[PHOTO.rotate(180)])
    found = pictures.decode(buffer.getvalue(), stored=True)
    assert found.stored
    np.testing.assert_array_equal(found.pixels, _pillows(buffer.getvalue()))
    assert found.notes == ("The first of the file's several pictures (MPO) was taken.",)


def _with_xmp(xmp):
    data = _jpeg()
    return data[:2] + _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp) + data[2:]


XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description
 xmlns:GCamera="http://ns.google.com/photos/1.0/camera/"
 xmlns:Container="http://ns.google.com/photos/1.0/container/"
 xmlns:Item="http://ns.google.com/photos/1.0/container/item/"
 xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"
 xmlns:xmpNote="http://ns.adobe.com/xmp/note/"
 xmlns:dc="http://purl.org/dc/elements/1.1/"
 GCamera:MotionPhoto="1" GCamera:MicroVideoOffset='4711' hdrgm:Version="1.0"
 xmpNote:HasExtendedXMP="0123456789ABCDEF" dc:format="image/jpeg">
 <GCamera:MotionPhotoPresentationTimestampUs>5</GCamera:MotionPhotoPresentationTimestampUs>
 <Container:Directory><rdf:Seq><rdf:li rdf:parseType="Resource"><Container:Item
 Item:Mime="video/mp4" Item:Length="4711"/></rdf:li></rdf:Seq></Container:Directory>
 <dc:creator><rdf:Seq><rdf:li>\xc3\x84nne</rdf:li></rdf:Seq></dc:creator>
 </rdf:Description></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff"])
def test_xmp_claims_about_dropped_parts_are_removed(name):
    found = pictures.decode(_with_xmp(XMP) + b"\0\0\0\x18ftypmp42" + bytes(4711))
    assert found.notes == (
        "The video of the motion photo was dropped.",
        "The other pictures or videos in the file were dropped.",
        "The gain map for HDR was dropped.",
        "The extended XMP was dropped.",
    )
    xmp = pictures.decode(pictures.encode(found, name)).metadata.xmp
    for claim in (b"Motion", b"Micro", b"hdrgm:V", b"HasExt", b"Length", b"<Container"):
        assert claim not in xmp
    assert b'dc:format="image/jpeg"' in xmp
    creator = XMP.index(b"<dc:creator>")
    assert XMP[creator:] in xmp


def test_xmp_without_claims_is_unchanged():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" MotionPhoto="1">hdrgm</x:xmpmeta>'
    found = pictures.decode(_with_xmp(xmp))
    assert (found.metadata.xmp, found.notes) == (xmp, ())


def test_profile_in_several_segments_is_joined():
    profile = RNG.bytes(150_000)
    pieces = [profile[i : i + 60_000] for i in range(0, len(profile), 60_000)]
    segments = [
        _segment(0xE2, b"ICC_PROFILE\0" + bytes([i + 1, len(pieces)]) + piece)
        for i, piece in enumerate(pieces)
    ]
    data = _jpeg()
    data = data[:2] + b"".join(reversed(segments)) + data[2:]
    assert pictures.decode(data).metadata.icc_profile == profile


def test_pictures_with_damaged_metadata_are_read():
    data = _jpeg()
    for content in (
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"ICC_PROFILE\0",
    ):
        for marker in (0xE1, 0xE2, 0xED, 0xEE, 0xFE):
            odd = data[:2] + _segment(marker, content) + data[2:]
            found = pictures.decode(odd)
            np.testing.assert_array_equal(found.pixels, _pillows(data))
            for name in ("png", "jpeg", "webp", "tiff", "bmp"):
                again = pictures.decode(pictures.encode(found, name))
                assert again.pixels.shape == found.pixels.shape
