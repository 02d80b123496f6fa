"""Tests of PNG files: transparency, metadata, colour spaces and damage."""

import io
import math
import shutil
import struct
import subprocess
import zlib

import numpy as np
import png
import pytest
from PIL import Image, ImageCms

from cqr_jax.data.jpeg import ImageError
from cqr_jax.restoring import pictures, png_file
from cqr_jax.restoring.metadata import Metadata
from cqr_jax.restoring.picture import Picture

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), np.uint8)
GAMMA = (b"gAMA", struct.pack(">I", 55_555))  # exponent 1.8
WIDE = (
    b"cHRM",
    struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000),
)
needs_vips = pytest.mark.skipif(not shutil.which("vips"), reason="no vips")


def _png(pixels=RGB, **options):
    buffer = io.BytesIO()
    height, width, *more = pixels.shape
    if "greyscale" not in options:
        options["greyscale"] = not more
    writer = png.Writer(width, height, **options)
    writer.write(buffer, pixels.reshape(height, -1).tolist())
    return buffer.getvalue()


def _with(data, *chunks, behind=False):
    """Adds chunks to a file before its pixels, or behind them."""
    found = list(png.Reader(bytes=data).chunks())
    place = len(found) - 1 if behind else 1
    file = io.BytesIO()
    png.write_chunks(file, [*found[:place], *chunks, *found[place:]])
    return file.getvalue()


def _gray(depth):
    pixels = RNG.integers(0, 2**depth, (20, 30)).astype(np.uint16)
    clear = int(pixels[3, 4])
    return pixels, clear, _png(pixels, bitdepth=depth, transparent=clear)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_gray_value_becomes_alpha(depth):
    pixels, clear, data = _gray(depth)
    found = pictures.decode(data)
    most = 65535 if depth == 16 else 255
    expected = pixels.astype(int) * most // (2**depth - 1)
    np.testing.assert_array_equal(found.pixels[..., 0], expected)
    np.testing.assert_array_equal(found.alpha, np.where(pixels == clear, 0, most))
    for name in ("png", "tiff"):
        again = pictures.decode(pictures.encode(found, name))
        np.testing.assert_array_equal(again.pixels, found.pixels)
        np.testing.assert_array_equal(again.alpha, found.alpha)


def test_16_bit_gray_with_a_transparent_value_is_an_error_in_pillow():
    _, _, data = _gray(16)
    words = "no 16-bit gray with transparency"
    with Image.open(io.BytesIO(data)) as image, pytest.raises(ImageError, match=words):
        pictures.from_pillow(image)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_gray_value_of_a_pillow_image_becomes_alpha(depth):
    _, _, data = _gray(depth)
    expected = pictures.decode(data)
    with Image.open(io.BytesIO(data)) as image:
        found = pictures.from_pillow(image)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    np.testing.assert_array_equal(found.alpha, expected.alpha)


@needs_vips
@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_vips_reads_the_same_alpha_before_and_after(depth, tmp_path):
    _, _, data = _gray(depth)
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    first.write_bytes(data)
    second.write_bytes(pictures.encode(pictures.decode(data), "png"))
    raw = []
    for path in (first, second):
        target = path.with_suffix(".raw")
        alpha = path.with_suffix(".v")
        for command in (
            ["vips", "extract_band", path, alpha, "1"],
            ["vips", "rawsave", alpha, target],
        ):
            subprocess.run([str(x) for x in command], check=True, timeout=60)
        raw.append(target.read_bytes())
    assert raw[0] == raw[1]
    assert len(set(raw[0])) > 1


@pytest.mark.parametrize("depth", [8, 16])
def test_transparent_colour_becomes_alpha(depth):
    pixels = RNG.integers(0, 2**depth, (20, 30, 3)).astype(np.uint16)
    clear = tuple(int(x) for x in pixels[3, 4])
    found = pictures.decode(
        _png(pixels, bitdepth=depth, transparent=clear, greyscale=False)
    )
    np.testing.assert_array_equal(found.pixels, pixels)
    is_clear = (pixels == clear).all(-1)
    np.testing.assert_array_equal(found.alpha == 0, is_clear)


def test_damaged_metadata_chunks_are_dropped_and_the_pixels_kept():
    """Chunks with a wrong CRC, and a profile and texts that can't be decompressed."""
    data = _with(
        _png(greyscale=False), (b"tEXt", b"Comment\0hello"), (b"pHYs", bytes(9))
    )
    damaged = data.replace(b"hello", b"hullo")
    found = pictures.decode(damaged)
    np.testing.assert_array_equal(found.pixels, RGB)
    assert found.notes == ("The chunk tEXt is damaged and was dropped.",)
    odd = _with(
        data,
        (b"iCCP", b"icc\0\0garbage"),
        (b"iCCP", b"nothing"),
        (b"zTXt", b"Raw profile type exif\0\0garbage"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0garbage"),
        (b"tEXt", b"Raw profile type exif\0garbage"),
        (b"eXIf", b"garbage"),
        (b"gAMA", b"g"),
        (b"cHRM", b""),
        (b"cICP", b""),
    )
    found = pictures.decode(odd)
    np.testing.assert_array_equal(found.pixels, RGB)
    assert "The colour profile is damaged and was dropped." in found.notes
    for name in ("png", "jpeg", "webp", "tiff", "bmp"):
        pictures.encode(found, name)


@pytest.mark.parametrize("behind", [False, True])
def test_metadata_is_read_before_and_behind_the_pixels(behind):
    exif, xmp = b"II*\0\x08\0\0\0\0\0\0\0\0\0", b"<x/>"
    packed = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)
    chunks = [(b"eXIf", exif), (b"iTXt", packed)]
    found = pictures.decode(_with(_png(greyscale=False), *chunks, behind=behind))
    assert found.metadata.exif == b"Exif\0\0" + exif
    assert found.metadata.xmp == xmp


def test_exif_in_imagemagicks_raw_profile_is_read():
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"
    text = f"\nexif\n{len(exif):8d}\n{exif.hex()}\n".encode()
    chunk = (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    assert pictures.decode(_with(_png(greyscale=False), chunk)).metadata.exif == exif


@pytest.mark.parametrize("options", [{}, {"interlace": True}, {"bitdepth": 16}])
def test_truncated_png_is_rejected_or_salvaged_up_to_the_cut(options):
    data = _png(RGB, greyscale=False, **options)
    whole = pictures.decode(data)
    for cut in (data[:-12], data[:-16]):  # without IEND, and without a CRC
        found = pictures.decode(cut)
        np.testing.assert_array_equal(found.pixels, whole.pixels)
        assert found.notes == ("The PNG lacks its end.",)
    cut = data[: len(data) // 2]
    with pytest.raises(ImageError, match="missing; --salvage restores what is there"):
        pictures.decode(cut)
    found = pictures.decode(cut, salvage=True)
    (note,) = found.notes
    assert note.startswith("The file is truncated: its")
    assert found.pixels.shape == whole.pixels.shape
    if not options.get("interlace"):
        row = int(note.split("below row ")[1].split()[0])
        assert 5 < row < 20
        np.testing.assert_array_equal(found.pixels[:row], whole.pixels[:row])
        assert not found.pixels[row + 1 :].any()


def test_png_with_too_little_data_before_its_end_is_salvaged():
    chunks = dict(png.Reader(bytes=_png(greyscale=False)).chunks())
    chunks[b"IDAT"] = chunks[b"IDAT"][:900]
    file = io.BytesIO()
    png.write_chunks(file, list(chunks.items()))
    with pytest.raises(ImageError, match=r"its rows below row .*--salvage"):
        pictures.decode(file.getvalue())
    found = pictures.decode(file.getvalue(), salvage=True)
    assert found.notes[0].startswith("The file is truncated: its rows below row ")
    np.testing.assert_array_equal(found.pixels[:8], RGB[:8])
    whole = pictures.decode(_png(greyscale=False), salvage=True)
    assert whole.notes == ()


def test_truncated_decompression_bomb_is_rejected_by_its_size():
    data = _png(greyscale=False)[:-20]
    header = struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    huge = data[:16] + header + crc + data[33:]
    with pytest.raises(ImageError, match="100000x100000 is above 200 megapixels"):
        pictures.decode(huge, salvage=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "chunks",
    [
        (GAMMA,),
        (WIDE,),
        (GAMMA, WIDE),
        ((b"sRGB", b"\0"),),
        ((b"cICP", bytes([12, 13, 0, 1])),),
        ((b"cICP", bytes([9, 16, 0, 1])),),
    ],
)
def test_png_keeps_its_colour_chunks(dtype, chunks):
    picture = Picture(RGB.astype(dtype), metadata=Metadata(colour=chunks))
    data = pictures.encode(picture, "png")
    names = [name for name, _ in png.Reader(bytes=data).chunks()]
    assert names[1 : 1 + len(chunks)] == [name for name, _ in chunks]
    found = pictures.decode(data)
    assert found.metadata.colour == chunks
    np.testing.assert_array_equal(found.pixels, picture.pixels)


def _in_srgb(pixels, profile, mode="RGB"):
    """Converts to sRGB by LittleCMS, relative colorimetric."""
    image = Image.fromarray(pixels)
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    target = ImageCms.createProfile("sRGB")
    found = ImageCms.profileToProfile(
        image, source, target, ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB"
    )
    return np.asarray(found).astype(int)


def _encoded(linear):
    linear = np.clip(linear, 0, 1)
    high = 1.055 * linear ** (1 / 2.4) - 0.055
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, high)


@pytest.mark.parametrize("name", ["jpeg", "webp", "tiff"])
def test_colour_chunks_become_a_profile_in_other_formats(name):
    """Compares LittleCMS's conversion by the profile with the formulas."""
    x = RGB / 255
    for chunk, expected in (
        (GAMMA, _encoded(x**1.8)),
        ((b"sRGB", b"\0"), RGB),
        ((b"cICP", bytes([1, 8, 0, 1])), _encoded(x)),
        ((b"cICP", bytes([1, 4, 0, 1])), _encoded(x**2.2)),
    ):
        picture = Picture(RGB, metadata=Metadata(colour=(chunk,)))
        kept = pictures.decode(pictures.encode(picture, name)).metadata
        assert kept.colour == ()
        found = _in_srgb(RGB, kept.icc_profile)
        np.testing.assert_allclose(found, expected, atol=3)


def test_profile_has_the_primaries_of_cicp():
    """Compares Display P3 (cICP 12/13) with its matrix to linear sRGB (CSS Color 4)."""
    picture = Picture(
        RGB, metadata=Metadata(colour=((b"cICP", bytes([12, 13, 0, 1])),))
    )
    profile = pictures.decode(pictures.encode(picture, "tiff")).metadata.icc_profile
    x = RGB / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    to_srgb = np.array(
        [
            [1.2249401763, -0.2249401763, 0.0],
            [-0.0420569547, 1.0420569547, 0.0],
            [-0.0196375546, -0.0786360456, 1.0982736001],
        ]
    )
    found = _in_srgb(RGB, profile)
    inside = ((linear @ to_srgb.T >= 0) & (linear @ to_srgb.T <= 1)).all(-1)
    np.testing.assert_allclose(
        found[inside], _encoded(linear @ to_srgb.T)[inside], atol=3
    )
    assert inside.mean() > 0.3


def test_gray_picture_gets_a_gray_profile():
    gray = RGB[..., :1]
    picture = Picture(gray, metadata=Metadata(colour=(GAMMA,)))
    profile = pictures.decode(pictures.encode(picture, "jpeg")).metadata.icc_profile
    assert profile[16:20] == b"GRAY"
    found = _in_srgb(gray[..., 0], profile)
    expected = _encoded((gray / 255) ** 1.8)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=3)


@pytest.mark.parametrize(("transfer", "shown"), [(16, "PQ"), (18, "HLG")])
def test_hdr_can_be_written_as_png_only(transfer, shown):
    chunks = ((b"cICP", bytes([9, transfer, 0, 1])),)
    picture = Picture(RGB, metadata=Metadata(colour=chunks))
    for name in ("jpeg", "webp", "tiff", "bmp"):
        with pytest.raises(ImageError, match=rf"{shown} \(HDR\).*take --format=png"):
            pictures.check(picture, name)
        assert pictures.fallback(picture, name) == "png"
    pictures.check(picture, "png")


def test_profile_takes_precedence_over_colour_chunks():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    meta = Metadata(icc_profile=profile, colour=(GAMMA,))
    found = pictures.decode(pictures.encode(Picture(RGB, metadata=meta), "jpeg"))
    assert found.metadata.icc_profile == profile


def test_length_of_adam7_rows_equals_that_of_the_encoder():
    for height, width in ((1, 1), (3, 5), (8, 8), (20, 30), (2, 9)):
        pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
        data = _png(pixels, greyscale=False, interlace=True)
        opened = png_file.read(data)
        raw = zlib.decompress(
            b"".join(
                x for name, x in png.Reader(bytes=data).chunks() if name == b"IDAT"
            )
        )
        assert png_file._length(opened.header) == len(raw)
        assert math.prod(pixels.shape) < len(raw)
