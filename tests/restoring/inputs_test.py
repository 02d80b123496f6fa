"""Tests of the formats that are read but not written: GIF, AVIF, HEIC, JPEG XL."""

import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms

from cqr_jax import formats
from cqr_jax.data.jpeg import ImageError
from cqr_jax.restoring import exif, heif_file, pictures
from cqr_jax.restoring.exif import Entry, Tags
from cqr_jax.restoring.metadata import Metadata
from cqr_jax.restoring.picture import Picture
from tests.conftest import check_cause

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), np.uint8)
SMOOTH = np.linspace(0, 255, 20 * 30 * 3).reshape(20, 30, 3).astype(np.uint8)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'


def _exif(orientation):
    short = Entry(3, 1, struct.pack("<H", orientation))
    return exif.block(Tags("<", {0x112: short, 0x13B: Entry(2, 4, b"Ana\0")}))


def _saved(image, name, **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("path", "written", "read", "known"),
    [
        ("a.JPG", "jpeg", True, False),
        ("a.pjpeg", "jpeg", True, False),
        ("a.pjp", "jpeg", True, False),
        ("a.jif", "jpeg", True, False),
        ("a.mpo", None, True, False),
        ("a.GIF", None, True, False),
        ("a.avif", None, True, False),
        ("a.heic", None, True, False),
        ("a.HIF", None, True, False),
        ("a.jxl", None, True, False),
        ("a.CR2", None, False, True),
        ("a.psd", None, False, True),
        ("a.svg", None, False, True),
        ("a.txt", None, False, False),
        ("jpg", None, False, False),
    ],
)
def test_suffixes_map_to_formats(path, written, read, known):
    assert formats.format_of(path) == written
    assert formats.is_read(path) == read
    assert formats.is_known(path) == known


def test_gif_keeps_its_pixels_transparency_and_xmp():
    image = Image.fromarray(RGB // 64 * 64).quantize(64, dither=Image.Dither.NONE)
    xmp = bytes([*range(255, -1, -1)])
    data = _saved(image, "gif", comment=b"")
    block = b"!\xff\x0bXMP DataXMP" + XMP + b"\1" + xmp + b"\0"
    found = pictures.decode(data[:-1] + block + data[-1:])
    np.testing.assert_array_equal(found.pixels, image.convert("RGB"))
    assert found.alpha is None
    assert found.metadata.xmp == XMP
    clear = pictures.decode(_saved(image, "gif", transparency=5))
    np.testing.assert_array_equal(clear.alpha == 0, np.asarray(image) == 5)
    assert clear.pixels.shape == (20, 30, 3)


@pytest.mark.parametrize("name", ["gif", "webp", "png", "avif"])
def test_animation_error_gives_the_frame_count_and_a_split_command(name):
    frames = [Image.fromarray(x) for x in (RGB, 255 - RGB, RGB // 2)]
    data = _saved(frames[0], name, save_all=True, append_images=frames[1:])
    message = r"3 frames; split it .* example with (magick|ffmpeg -i) FILE"
    with pytest.raises(ImageError, match=message):
        pictures.decode(data)


def test_avif_keeps_its_pixels_profile_and_alpha():
    data = _saved(
        Image.fromarray(SMOOTH),
        "avif",
        quality=100,
        subsampling="4:4:4",
        icc_profile=PROFILE,
    )
    found = pictures.decode(data)
    assert abs(found.pixels.astype(int) - SMOOTH).max() < 4
    assert found.metadata.icc_profile == PROFILE
    clear = np.dstack([SMOOTH, SMOOTH[..., 0]])
    data = _saved(Image.fromarray(clear), "avif", quality=100, subsampling="4:4:4")
    found = pictures.decode(data)
    assert abs(found.alpha.astype(int) - SMOOTH[..., 0]).max() < 4
    with pytest.raises(ImageError, match=r"30x20 is above 0.0005 megapixels"):
        pictures.decode(data, max_pixels=500)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_rotated_upright(orientation):
    block = _exif(orientation)
    options = {"exif": block, "xmp": XMP, "quality": 100, "subsampling": "4:4:4"}
    data = _saved(Image.fromarray(SMOOTH), "avif", **options)
    found = pictures.decode(data)
    expected = pictures.upright(Picture(SMOOTH, metadata=Metadata(block)))
    assert found.pixels.shape == expected.pixels.shape
    assert abs(found.pixels.astype(int) - expected.pixels).max() < 4
    assert exif.read(found.metadata.exif).numbers(exif.ORIENTATION, (1,)) == (1,)
    assert b"Ana" in found.metadata.exif
    assert found.metadata.xmp == XMP.replace(b"6", b"1")


def test_avif_with_damaged_exif_is_decoded():
    data = _saved(Image.fromarray(SMOOTH), "avif", exif=_exif(6))
    whole = pictures.decode(data)
    place = data.rindex(b"II*\0")
    dropped = ("EXIF was dropped: it is damaged.",)
    for odd, notes in ((b"IX*\0", dropped), (b"II*\0\xff\xff\xff\xff", ())):
        found = pictures.decode(data[:place] + odd + data[place + len(odd) :])
        assert found.notes == notes
        np.testing.assert_array_equal(found.pixels, whole.pixels)
        for name in formats.FORMATS:
            again = pictures.decode(pictures.encode(found, name))
            assert again.pixels.shape == (30, 20, 3)


def test_avif_code_points_of_colour_become_a_cicp_chunk():
    data = _saved(Image.fromarray(SMOOTH), "avif")
    place = data.index(b"colrnclx") + 8
    for numbers, chunks in (
        ((1, 13), ()),
        ((12, 13), ((b"cICP", b"\x0c\x0d\0\1"),)),
        ((9, 16), ((b"cICP", b"\x09\x10\0\1"),)),
    ):
        odd = data[:place] + struct.pack(">HH", *numbers) + data[place + 4 :]
        found = pictures.decode(odd)
        assert found.metadata.colour == chunks
        assert pictures.decode(pictures.encode(found, "png")).metadata.colour == chunks


def test_avif_of_10_bits_gets_a_note_that_it_was_reduced():
    imagecodecs = pytest.importorskip("imagecodecs")
    deep = SMOOTH.astype(np.uint16) * 4
    found = pictures.decode(imagecodecs.avif_encode(deep, level=100, bitspersample=10))
    assert found.notes == ("The AVIF was reduced from 10 to 8 bits per sample.",)
    assert abs(found.pixels.astype(int) - SMOOTH).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_rotated_upright(orientation):
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    image = pillow_heif.from_pillow(Image.fromarray(SMOOTH))
    xmp = XMP.replace(b"6", b"%d" % orientation)
    options = {"exif": _exif(orientation), "xmp": xmp, "icc_profile": PROFILE}
    image.info["icc_profile"] = PROFILE
    image.info["icc_profile_type"] = "prof"
    image.save(buffer, quality=-1, chroma=444, matrix_coefficients=0, **options)
    found = pictures.decode(buffer.getvalue())
    expected = pictures.upright(Picture(SMOOTH, metadata=Metadata(_exif(orientation))))
    assert found.pixels.shape == expected.pixels.shape
    assert abs(found.pixels.astype(int) - expected.pixels).max() < 4
    meta = found.metadata
    assert exif.read(meta.exif).numbers(exif.ORIENTATION) == (1,)
    assert b"Ana" in meta.exif
    assert meta.icc_profile == PROFILE
    assert meta.xmp == XMP.replace(b"6", b"1")
    again = pictures.decode(pictures.encode(found, "png"))
    np.testing.assert_array_equal(again.pixels, found.pixels)


def test_heic_gives_its_primary_image_and_16_bits():
    pillow_heif = pytest.importorskip("pillow_heif")
    file = pillow_heif.from_pillow(Image.fromarray(SMOOTH))
    file.add_from_pillow(Image.fromarray(255 - SMOOTH))
    buffer = io.BytesIO()
    file.save(buffer, quality=-1, chroma=444, save_all=True, primary_index=1)
    found = pictures.decode(buffer.getvalue())
    assert found.notes == ("The main one of the file's 2 pictures was taken.",)
    assert abs(found.pixels.astype(int) - (255 - SMOOTH)).max() < 6
    with pytest.raises(ImageError, match=r"above 0.0005 megapixels"):
        pictures.decode(buffer.getvalue(), max_pixels=500)
    deep = SMOOTH.astype(np.uint16) * 257
    file = pillow_heif.from_bytes("RGB;16", (30, 20), deep.tobytes())
    buffer = io.BytesIO()
    file.save(buffer, quality=-1, chroma=444)
    found = pictures.decode(buffer.getvalue())
    assert found.pixels.dtype == np.uint16
    assert abs(found.pixels.astype(int) - deep).max() < 600


@pytest.mark.parametrize(
    ("start", "module", "extra"),
    [
        (b"\0\0\0\x18ftypheic", "pillow_heif", "heic"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "pillow_heif", "heic"),
        (b"\xff\x0a", "pillow_jxl", "jxl"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "pillow_jxl", "jxl"),
    ],
)
def test_error_names_the_missing_extra(start, module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"pip install 'cqr_jax\[{extra}\]', or convert it to PNG"
    with pytest.raises(ImageError, match=message):
        pictures.decode(start + bytes(99))


def test_kind_follows_the_brands():
    def kind(main, *others):
        length = struct.pack(">I", 16 + 4 * len(others))
        return heif_file.kind(length + b"ftyp" + main + bytes(4) + b"".join(others))

    assert kind(b"heic", b"mif1") == "heic"
    assert kind(b"avif", b"mif1") == "avif"
    assert kind(b"mif1", b"mif1", b"avif") == "avif"
    assert kind(b"mif1", b"heic") == "heic"
    assert kind(b"mp42") is None


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 2), (20, 30, 3), (20, 30, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_jpeg_xl_keeps_its_samples(shape, dtype):
    pytest.importorskip("pillow_jxl")
    imagecodecs = pytest.importorskip("imagecodecs")
    stack = RNG.integers(0, np.iinfo(dtype).max, shape, dtype)
    found = pictures.decode(imagecodecs.jpegxl_encode(stack, lossless=True))
    np.testing.assert_array_equal(found.stacked().reshape(shape), stack)
    assert found.pixels.shape[-1] in (1, 3)
    with pytest.raises(ImageError, match=r"30x20 is above 0.0005 megapixels"):
        pictures.decode(imagecodecs.jpegxl_encode(stack), max_pixels=500)


def test_jpeg_in_jpeg_xl_is_read_as_that_jpeg():
    pytest.importorskip("pillow_jxl")
    imagecodecs = pytest.importorskip("imagecodecs")
    jpeg = _saved(Image.fromarray(RGB), "jpeg", quality=20, exif=_exif(6))
    packed = imagecodecs.jpegxl_encode_jpeg(jpeg, usecontainer=True)
    found, expected = (pictures.decode(x, stored=True) for x in (packed, jpeg))
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.compression == expected.compression
    assert found.metadata == expected.metadata
    assert found.stored


def test_jpeg_xl_keeps_metadata_and_rejects_animations_and_floats():
    pytest.importorskip("pillow_jxl")
    imagecodecs = pytest.importorskip("imagecodecs")
    options = {"exif": _exif(6), "xmp": XMP, "lossless": True}
    found = pictures.decode(_saved(Image.fromarray(RGB), "JXL", **options))
    np.testing.assert_array_equal(found.pixels, RGB)
    assert exif.read(found.metadata.exif).numbers(exif.ORIENTATION) == (1,)
    assert b"Ana" in found.metadata.exif
    assert found.metadata.xmp == XMP.replace(b"6", b"1")
    assert found.metadata.icc_profile
    for frames in (np.stack([RGB, 255 - RGB]), np.stack([RGB[..., 0]] * 2)):
        with pytest.raises(ImageError, match="an animation of 2 frames"):
            pictures.decode(imagecodecs.jpegxl_encode(frames))
    with pytest.raises(ImageError, match="floating-point"):
        pictures.decode(imagecodecs.jpegxl_encode(RGB.astype(np.float32) / 255))


def _heic(image):
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, exif=_exif(6), xmp=XMP)
    return buffer.getvalue()


def _jxl(image):
    pytest.importorskip("pillow_jxl")
    return _saved(image, "JXL", exif=_exif(6), xmp=XMP)


@pytest.mark.parametrize(
    "save",
    [
        lambda x: _saved(x.quantize(16), "gif", comment=b"a comment"),
        lambda x: _saved(x, "avif", exif=_exif(6), xmp=XMP),
        _heic,
        _jxl,
    ],
    ids=["gif", "avif", "heic", "jxl"],
)
def test_files_with_random_changes_are_decoded_or_raise_image_error(save):
    good, rng = save(Image.fromarray(SMOOTH)), np.random.default_rng(1)
    reasons: list[str] = []
    for _ in range(200):
        data = bytearray(good)
        data[rng.integers(min(len(data), 600))] = rng.integers(256)
        try:
            found = pictures.decode(bytes(data), max_pixels=1_000_000)
        except ImageError as error:
            reasons.append(str(error))
            check_cause(error)
            continue
        again = pictures.decode(pictures.encode(found, "tiff"))
        np.testing.assert_array_equal(again.pixels, found.pixels)
    assert 10 < len(reasons) < 200
    assert not [x for x in reasons if "\n" in x]
