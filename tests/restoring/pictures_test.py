"""Tests of decoding and encoding files, with their metadata."""

import io
import struct

import numpy as np
import png
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms, ImageOps

from cqr_jax import formats
from cqr_jax.data.jpeg import ImageError
from cqr_jax.restoring import pictures, profiles
from cqr_jax.restoring.metadata import Metadata
from cqr_jax.restoring.picture import Picture
from tests.conftest import check_cause

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), np.uint8)


def _saved(image, name, **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def metadata():
    """Metadata of all kinds, encoded by Pillow."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "Maker"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLength] = 35.0
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
    return Metadata(exif.tobytes(), profile, xmp, (300.0, 150.0))


def _facts(exif: bytes):
    found = Image.Exif()
    found.load(exif)
    return (
        found.get(ExifTags.Base.Orientation),
        found.get(ExifTags.Base.Make),
        found.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLength),
        found.get_ifd(ExifTags.IFD.GPSInfo).get(ExifTags.GPS.GPSLatitudeRef),
    )


@pytest.mark.parametrize("name", ["png", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transparent", [False, True])
def test_lossless_formats_keep_all_pixels(name, channels, transparent):
    alpha = RNG.integers(0, 256, (20, 30), np.uint8) if transparent else None
    picture = Picture(RGB[..., :channels], alpha)
    if name == "bmp" and transparent:
        with pytest.raises(ImageError, match="transparency, which bmp can't hold"):
            pictures.encode(picture, name)
        return
    found = pictures.decode(pictures.encode(picture, name))
    seen = np.ones_like(alpha, bool) if name != "webp" or not transparent else alpha > 0
    # WebP has no gray, and may change pixels that are fully transparent.
    expected = np.broadcast_to(picture.pixels, found.pixels.shape)
    np.testing.assert_array_equal(found.pixels[seen], expected[seen])
    np.testing.assert_array_equal(found.alpha, alpha)


@pytest.mark.parametrize("name", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transparent", [False, True])
def test_16_bit_formats_keep_pixels_and_metadata(name, channels, transparent, metadata):
    pixels = RNG.integers(0, 65536, (20, 30, channels), np.uint16)
    alpha = RNG.integers(0, 65536, (20, 30), np.uint16) if transparent else None
    picture = Picture(pixels, alpha, metadata=metadata)
    data = pictures.encode(picture, name)
    found = pictures.decode(data)
    if name == "png":  # rotated upright
        pixels = np.rot90(pixels, -1)
        alpha = None if alpha is None else np.rot90(alpha, -1)
    np.testing.assert_array_equal(found.pixels, pixels)
    np.testing.assert_array_equal(found.alpha, alpha)
    kept = found.metadata
    assert (kept.icc_profile, kept.xmp) == (metadata.icc_profile, metadata.xmp)
    dpi = metadata.dpi if name == "tiff" else metadata.dpi[::-1]
    assert kept.dpi == pytest.approx(dpi, rel=1e-3)
    turn = 1 if name == "png" else 6
    assert _facts(kept.exif) == (turn, *_facts(metadata.exif)[1:])
    if name == "tiff" and channels == 1 and transparent:
        return  # Pillow does not read it
    with Image.open(io.BytesIO(data)) as image:  # another reader accepts it
        assert image.getexif().get(ExifTags.Base.Orientation) == turn


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff", "bmp"])
@pytest.mark.parametrize("source", ["jpeg", "png", "webp", "tiff"])
def test_metadata_is_carried_from_format_to_format(name, source, metadata):
    first = pictures.encode(Picture(RGB, metadata=metadata), source)
    found = pictures.decode(first)
    found = pictures.decode(pictures.encode(found, name)).metadata
    expected = metadata
    if source == "png" or (source != "webp" and name in ("png", "bmp")):  # turned
        expected = expected._replace(dpi=metadata.dpi[::-1])
    if name == "bmp":
        expected = Metadata(dpi=expected.dpi)
    if "webp" in (name, source):
        expected = expected._replace(dpi=None)
    facts = _facts(expected.exif)
    if not {source, name} <= {"jpeg", "tiff"} and expected.exif:
        facts = 1, *facts[1:]  # the pixels were rotated
    assert (found.icc_profile, found.xmp) == (expected.icc_profile, expected.xmp)
    assert _facts(found.exif) == facts
    if expected.dpi is None:
        assert found.dpi in (None, (72.0, 72.0)) or name == "bmp"  # defaults
    else:
        assert found.dpi == pytest.approx(expected.dpi, rel=1e-3)


@pytest.mark.parametrize("name", ["png", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_written_upright(name, orientation):
    """Except for TIFF, viewers that ignore EXIF show them upright too."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    tagged = Image.fromarray(RGB)
    tagged.info["exif"] = exif.tobytes()
    upright = np.asarray(ImageOps.exif_transpose(tagged))
    xmp = b"<a tiff:Orientation='%d'><tiff:Orientation>%d</tiff:Orientation></a>"
    xmp %= orientation, orientation
    picture = Picture(RGB, metadata=Metadata(exif.tobytes(), xmp=xmp))
    data = pictures.encode(picture, name)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image), upright)
    found = pictures.upright(pictures.decode(data))
    np.testing.assert_array_equal(found.pixels, upright)
    assert _facts(found.metadata.exif)[0] in (None, 1)
    if name in ("png", "webp"):
        assert found.metadata.xmp == xmp.replace(b"%d" % orientation, b"1")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", ["png", "webp"])
def test_only_orientation_and_thumbnail_of_exif_change(name, order):
    """The thumbnail is dropped because it is not rotated (EXIF 2.3, section 4.6)."""

    def exif(orientation, thumbnail):
        text = "© Müller\0".encode()
        head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
        second = 8 + 2 + 2 * 12 + 4 + len(text)
        entries = [
            struct.pack(f"{order}HHIHH", 0x112, 3, 1, orientation, 0),
            struct.pack(f"{order}HHII", 0x8298, 2, len(text), second - len(text)),
        ]
        width = struct.pack(f"{order}HHIHH", 0x100, 3, 1, 160, 0)
        return b"".join(
            [
                *(b"Exif\0\0", head, struct.pack(f"{order}H", 2), *entries),
                struct.pack(f"{order}I", second if thumbnail else 0),
                *(text, struct.pack(f"{order}H", 1), width, bytes(4)),
            ]
        )

    picture = Picture(RGB, metadata=Metadata(exif(6, thumbnail=True)))
    found = pictures.decode(pictures.encode(picture, name))
    np.testing.assert_array_equal(found.pixels, np.rot90(RGB, -1))
    assert found.metadata.exif == exif(1, thumbnail=False)


def test_palettes_become_rgb():
    image = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    found = pictures.decode(_saved(image, "png"))
    np.testing.assert_array_equal(found.pixels, expected)
    assert found.alpha is None
    found = pictures.decode(_saved(image, "png", transparency=3))
    np.testing.assert_array_equal(found.pixels, expected)
    np.testing.assert_array_equal(found.alpha, 255 * (np.asarray(image) != 3))


@pytest.mark.parametrize("mode", ["1", "LA", "RGBA"])
def test_bilevel_and_alpha_modes_are_decoded(mode):
    image = Image.fromarray(RGB).convert(mode)
    found = pictures.decode(_saved(image, "png"))
    stack = found.pixels
    if found.alpha is not None:
        stack = np.concatenate([stack, found.alpha[..., None]], -1)
    expected = np.asarray(image.convert("L") if mode == "1" else image)
    np.testing.assert_array_equal(np.squeeze(stack), expected)


def test_cmyk_is_kept_in_tiff_and_becomes_rgb_in_png():
    image = Image.fromarray(RGB).convert("CMYK")
    found = pictures.decode(_saved(image, "tiff"))
    np.testing.assert_array_equal(found.pixels, np.asarray(image))
    again = pictures.decode(pictures.encode(found, "tiff"))
    np.testing.assert_array_equal(again.pixels, found.pixels)
    # Pillow's CMYK has no black here, so that the way back to RGB is exact.
    rgb = pictures.decode(pictures.encode(found, "png"))
    np.testing.assert_array_equal(rgb.pixels, RGB)


@pytest.mark.parametrize(
    ("subsampling", "expected"), [(0, (1, 1)), (1, (1, 2)), (2, (2, 2))]
)
@pytest.mark.parametrize("progressive", [False, True])
def test_compression_of_a_jpeg_has_its_tables_and_sampling(
    subsampling, expected, progressive
):
    data = _saved(
        Image.fromarray(RGB),
        "jpeg",
        subsampling=subsampling,
        progressive=progressive,
        quality=30,
    )
    found = pictures.decode(data)
    assert found.compression.sampling == expected
    with Image.open(io.BytesIO(data)) as image:
        assert found.compression.luma == tuple(image.quantization[0])
        np.testing.assert_array_equal(found.pixels, np.asarray(image))
    gray = pictures.decode(_saved(Image.fromarray(RGB[..., 0]), "jpeg"))
    assert gray.compression.chroma is None
    assert gray.pixels.shape == (20, 30, 1)


def _pages():
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    return _saved(frames[0], "tiff", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"text", "not an image"),
        (_saved(Image.fromarray(RGB), "jpeg")[:-100], "damaged or truncated"),
        (_saved(Image.fromarray(RGB), "png")[:-100], "damaged or truncated"),
        (_pages(), "a TIFF with 2 pages; split it .* example with tiffsplit FILE"),
        (
            _saved(Image.fromarray(RGB), "png")[:40],
            r"damaged or truncated|not an image",
        ),
        (_saved(Image.fromarray(RGB[..., 0] / 9.0), "tiff"), "floating-point"),
    ],
)
def test_invalid_files_are_rejected(data, message):
    with pytest.raises(ImageError, match=message):
        pictures.decode(data)


def test_bytes_of_exif_texts_are_unchanged():
    """They are mostly UTF-8, which Pillow reads as Latin-1."""
    exif, text = Image.Exif(), "© Ana".encode()
    exif[ExifTags.Base.Copyright] = "## Ana"
    metadata = Metadata(exif.tobytes().replace(b"## Ana", text))
    for name in ("png", "tiff"):
        data = pictures.encode(Picture(_wide(20, 30, 3), metadata=metadata), name)
        assert text in data


def test_exif_does_not_set_size_or_colours_of_a_tiff():
    """EXIF may hold the size of a JPEG before it was resized, or say YCbCr."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageWidth], exif[ExifTags.Base.ImageLength] = 4000, 10
    exif[ExifTags.Base.PhotometricInterpretation] = 6
    exif[ExifTags.Base.Make] = "Maker"
    picture = Picture(RGB, metadata=Metadata(exif.tobytes()))
    found = pictures.decode(pictures.encode(picture, "tiff"))
    np.testing.assert_array_equal(found.pixels, RGB)
    assert _facts(found.metadata.exif)[1] == "Maker"


def _tiff(stack, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stack, **options)
    return buffer.getvalue()


def _wide(*shape):
    return RNG.integers(0, 65536, shape, np.uint16)


@pytest.mark.parametrize("compression", ["lzw", "packbits", "zlib"])
def test_16_bit_tiffs_of_other_writers_are_read(compression):
    wide = _wide(20, 30, 3)
    data = _tiff(wide, photometric="rgb", compression=compression)
    np.testing.assert_array_equal(pictures.decode(data).pixels, wide)
    data = _tiff(wide[None], photometric="rgb", compression=compression)
    np.testing.assert_array_equal(pictures.decode(data).pixels, wide)
    apart = np.moveaxis(wide, -1, 0).copy()
    data = _tiff(apart, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(pictures.decode(data).pixels, wide)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_samples_are_interpreted_by_their_tags(dtype):
    """Zero as white, premultiplied alpha, and a channel that is not alpha."""
    top = np.iinfo(dtype).max
    gray = _wide(20, 30).astype(dtype)
    found = pictures.decode(_tiff(gray, photometric="miniswhite"))
    np.testing.assert_array_equal(found.pixels[..., 0], top - gray)

    stack = _wide(20, 30, 4).astype(dtype)
    data = _tiff(stack, photometric="rgb", extrasamples=["unspecified"])
    found = pictures.decode(data)
    assert found.alpha is None
    np.testing.assert_array_equal(found.pixels, stack[..., :3])

    stack[..., 3] = np.maximum(stack[..., 3], top // 2)
    alpha = stack[..., 3:]
    stack[..., :3] = stack[..., :3] * (alpha / top)
    data = _tiff(stack, photometric="rgb", extrasamples=["assocalpha"])
    found = pictures.decode(data)
    np.testing.assert_array_equal(found.alpha, stack[..., 3])
    plain = stack[..., :3] * (top / alpha)
    np.testing.assert_allclose(found.pixels, np.minimum(plain, top), atol=1)


def test_sbit_does_not_reduce_16_bit_pixels():
    """Cameras and scanners give the number of significant bits in sBIT."""
    wide = RNG.integers(0, 2**16, (20, 30, 3), np.uint16)
    header, *rest = png.Reader(bytes=pictures.encode(Picture(wide), "png")).chunks()
    file = io.BytesIO()
    png.write_chunks(file, [header, (b"sBIT", bytes([12, 12, 12])), *rest])
    np.testing.assert_array_equal(pictures.decode(file.getvalue()).pixels, wide)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_damaged_exif_is_dropped_from_tiff_only(dtype):
    picture = Picture(RGB.astype(dtype), metadata=Metadata(b"Exif\0\0damaged"))
    (note,) = pictures.fitted(picture, "tiff").notes
    assert note == "EXIF was dropped: it is damaged (no byte order)."
    found = pictures.decode(pictures.encode(picture, "tiff"))
    np.testing.assert_array_equal(found.pixels, picture.pixels)
    # Other formats keep its bytes.
    found = pictures.decode(pictures.encode(picture, "png"))
    assert found.metadata == picture.metadata


def test_images_above_max_pixels_are_rejected():
    data = _saved(Image.fromarray(RGB), "png")
    with pytest.raises(ImageError, match=r"30x20 is above 0\.0005 megapixels"):
        pictures.decode(data, max_pixels=500)
    assert pictures.decode(data, max_pixels=600).pixels.shape == (20, 30, 3)


def test_encoding_rejects_alpha_or_16_bits_that_a_format_lacks():
    alpha = np.zeros((20, 30), np.uint8)
    with pytest.raises(ImageError, match="transparency, which jpeg can't hold"):
        pictures.encode(Picture(RGB, alpha), "jpeg")
    with pytest.raises(ImageError, match="16 bits are more than webp can hold"):
        pictures.encode(Picture(RGB.astype(np.uint16)), "webp")


@pytest.mark.parametrize(("name", "longest"), [("jpeg", 65500), ("webp", 16383)])
def test_longest_sides_and_metadata_are_written(name, longest):
    """The limits are those of the libraries."""
    long = Picture(np.zeros((1, longest + 1, 3), np.uint8))
    with pytest.raises(ImageError, match=f"pixels long, {name} can hold {longest}"):
        pictures.check(long, name)
    fits = Picture(long.pixels[:, 1:])
    assert pictures.decode(pictures.encode(fits, name)).pixels.shape == (1, longest, 3)
    for field, most in (("exif", 65533), ("xmp", 65504)):
        full = Picture(RGB, metadata=Metadata(**{field: bytes(most)}))
        over = Picture(RGB, metadata=Metadata(**{field: bytes(most + 1)}))
        assert bytes(most) in pictures.encode(full, "jpeg")
        assert not pictures.fitted(full, "jpeg").notes
        assert pictures.fitted(over, "jpeg").notes
        assert bytes(most) not in pictures.encode(over, "jpeg")


@pytest.mark.parametrize(
    ("start", "shown"),
    [
        (b"\0\0\0\x18ftypcrx ", "CR3"),
        (b"\0\0\0\x18ftypmp42", "a video"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"8BPS\0\1", "PSD"),
        (b"%PDF-1.7", "PDF"),
        (b"<?xml version='1.0'?>\n<svg width='9'/>", "SVG"),
    ],
)
def test_error_names_other_formats(start, shown):
    with pytest.raises(ImageError, match=f"a file of {shown}.*; convert it to PNG"):
        pictures.decode(start + bytes(99))


def test_other_formats_are_not_opened():
    """Pillow would run the program in an EPS file, for example."""
    with pytest.raises(ImageError, match=r"a file of PostScript.*; convert it to PNG"):
        pictures.decode(_saved(Image.fromarray(RGB), "eps"))
    with pytest.raises(ImageError, match="of an unsupported format"):
        pictures.decode(_saved(Image.fromarray(RGB), "pcx"))


def test_metadata_behind_the_pixels_of_a_pillow_png_is_read():
    data = pictures.encode(Picture(RGB, metadata=Metadata(xmp=b"<x/>")), "png")
    header, xmp, *rest, end = png.Reader(bytes=data).chunks()
    assert xmp[0] == b"iTXt"
    file = io.BytesIO()
    png.write_chunks(file, [header, *rest, xmp, end])
    with Image.open(file) as image:
        assert pictures.from_pillow(image).metadata.xmp == b"<x/>"


@pytest.mark.parametrize("name", list(formats.FORMATS))
def test_files_with_random_damage_are_decoded_or_raise_image_error(name):
    good = pictures.encode(Picture(RGB), name)
    rng = np.random.default_rng(1)
    refused = 0
    for i in range(300):
        data = bytearray(good)
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        if i % 2:
            data = data[: rng.integers(1, len(data))]
        try:
            found = pictures.decode(bytes(data), max_pixels=1_000_000)
            assert found.pixels.size
        except ImageError as error:
            refused += 1
            check_cause(error)
    assert 30 < refused < 300


def test_webp_gets_no_profile_for_gray():
    """WebP has no gray. The gamma of a gray PNG becomes a profile of RGB."""
    gray = profiles.of_chunks(((b"gAMA", struct.pack(">I", 45455)),), gray=True)
    picture = Picture(RGB[..., :1], metadata=Metadata(icc_profile=gray))
    assert pictures.fitted(picture, "webp").notes == (
        "The colour profile was dropped: it is for gray, which WebP can't hold.",
    )
    found = pictures.decode(pictures.encode(picture, "webp"))
    assert found.metadata.icc_profile == b""
    np.testing.assert_array_equal(found.pixels, np.repeat(RGB[..., :1], 3, axis=-1))
    chunks = ((b"gAMA", struct.pack(">I", 45455)),)
    picture = Picture(RGB[..., :1], metadata=Metadata(colour=chunks))
    found = pictures.decode(pictures.encode(picture, "webp"))
    assert found.metadata.icc_profile[16:20] == b"RGB "


def test_a_reduced_jpeg_has_no_compression():
    """The blocks of a thumbnail are not those of the file."""
    data = _saved(Image.fromarray(np.tile(RGB, (16, 16, 1))), "JPEG", quality=10)
    for reduce in (
        lambda x: x.thumbnail((100, 100)),
        lambda x: x.draft(None, (90, 60)),
    ):
        image = Image.open(io.BytesIO(data))
        reduce(image)
        assert pictures.from_pillow(image).compression is None
    image = Image.open(io.BytesIO(data))
    image.thumbnail((10_000, 10_000))
    assert pictures.from_pillow(image).compression is not None
