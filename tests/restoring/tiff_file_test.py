"""Tests that TIFF files of all layouts are read correctly or rejected."""

import io
import shutil
import subprocess

import numpy as np
import pytest
import tifffile
from PIL import Image

from cqr_jax.data.jpeg import ImageError
from cqr_jax.restoring import pictures
from cqr_jax.restoring.metadata import Metadata
from cqr_jax.restoring.picture import Picture

RNG = np.random.default_rng(0)
needs_vips = pytest.mark.skipif(not shutil.which("vips"), reason="no vips")


def _tiff(stack, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stack, **options)
    return buffer.getvalue()


def _stack(channels, dtype):
    return RNG.integers(0, np.iinfo(dtype).max + 1, (20, 30, channels), dtype)


PHOTOMETRIC = {1: "minisblack", 3: "rgb", 4: "separated"}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_alpha_is_read_in_all_layouts(
    dtype, channels, separate, compression, big, order
):
    stack = _stack(channels + 1, dtype)
    stack[:, :3, -1] = 200
    data = _tiff(
        np.moveaxis(stack, -1, 0).copy() if separate else stack,
        photometric=PHOTOMETRIC[channels],
        planarconfig="separate" if separate else "contig",
        extrasamples=["unassalpha"],
        compression=compression,
        bigtiff=big,
        byteorder=order,
    )
    found = pictures.decode(data)
    np.testing.assert_array_equal(found.pixels, stack[..., :-1])
    np.testing.assert_array_equal(found.alpha, stack[..., -1])
    assert found.pixels.dtype.isnative


@needs_vips
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transparent", [False, True])
def test_vips_reads_the_written_samples(dtype, channels, transparent, tmp_path):
    stack = _stack(channels + transparent, dtype)
    alpha = stack[..., -1] if transparent else None
    source, target = tmp_path / "a.tif", tmp_path / "a.raw"
    picture = Picture(stack[..., :channels], alpha)
    source.write_bytes(pictures.encode(picture, "tiff"))
    subprocess.run(["vips", "rawsave", source, target], check=True, timeout=60)
    found = np.frombuffer(target.read_bytes(), dtype).reshape(stack.shape)
    np.testing.assert_array_equal(found, stack)


def test_cmyk_of_16_bits_has_no_alpha():
    stack = _stack(4, np.uint16)
    found = pictures.decode(_tiff(stack, photometric="separated"))
    assert found.alpha is None
    np.testing.assert_array_equal(found.pixels, stack)  # 0 is no ink
    with pytest.raises(ImageError, match="take --bits=8"):
        pictures.check(found, "tiff")


@pytest.mark.parametrize("separate", [False, True])
def test_8_bit_cmyk_is_read_and_written(separate):
    stack = _stack(4, np.uint8)
    data = _tiff(
        np.moveaxis(stack, -1, 0).copy() if separate else stack,
        photometric="separated",
        planarconfig="separate" if separate else "contig",
    )
    contig = Image.open(io.BytesIO(_tiff(stack, photometric="separated")))
    found = pictures.decode(data)
    np.testing.assert_array_equal(found.pixels, np.asarray(contig))
    again = pictures.decode(pictures.encode(found, "tiff"))
    np.testing.assert_array_equal(again.pixels, found.pixels)


@pytest.mark.parametrize("name", ["png", "webp", "tiff"])
def test_cmyk_keeps_its_alpha(name):
    stack = _stack(5, np.uint8)
    data = _tiff(
        np.moveaxis(stack, -1, 0).copy(),
        photometric="separated",
        planarconfig="separate",
        extrasamples=["unassalpha"],
    )
    picture = pictures.decode(data)
    np.testing.assert_array_equal(picture.stacked(), stack)
    found = pictures.decode(pictures.encode(picture, name))
    np.testing.assert_array_equal(found.alpha, stack[..., 4])
    rgb = pictures.to_rgb(Image.fromarray(stack[..., :4], "CMYK"), Metadata())
    expected = stack[..., :4] if name == "tiff" else np.asarray(rgb)
    np.testing.assert_array_equal(found.pixels, expected)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (np.int8, "a TIFF with signed samples; convert it to 16-bit"),
        (np.int16, "a TIFF with signed samples"),
        (np.float16, "a TIFF with floating-point or complex samples"),
        (np.float32, "a TIFF with floating-point or complex samples"),
        (np.float64, "a TIFF with floating-point or complex samples"),
        (np.complex64, "a TIFF with floating-point or complex samples"),
        (np.uint64, "a TIFF with 64 bits per sample"),
    ],
)
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_unsupported_samples_are_rejected(dtype, message, shape):
    data = _tiff(np.ones(shape, dtype), photometric=PHOTOMETRIC[(*shape, 1)[2]])
    with pytest.raises(ImageError, match=message):
        pictures.decode(data)


def test_32_bit_samples_are_rejected():
    data = _tiff(np.ones((20, 30, 3), np.uint32), photometric="rgb")
    with pytest.raises(ImageError, match="a TIFF with 32 bits per sample; convert it"):
        pictures.decode(data)
    with pytest.raises(ImageError, match="outside 16 bits"):
        pictures.decode(_tiff(np.full((20, 30), 70_000, np.uint32)))


def test_several_pages_are_rejected():
    data = _tiff(np.zeros((3, 20, 30), np.uint8), photometric="minisblack")
    with pytest.raises(ImageError, match="a TIFF with 3 pages; split it into"):
        pictures.decode(data)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "jpeg"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_truncated_tiff_is_rejected(compression, channels):
    stack = _stack(channels, np.uint8)
    buffer = io.BytesIO()
    if channels == 2 and compression == "jpeg":
        return
    tifffile.imwrite(
        buffer,
        stack if channels > 1 else stack[..., 0],
        photometric="rgb" if channels == 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels == 2 else None,
        compression=compression,
    )
    data = buffer.getvalue()
    assert pictures.decode(data).pixels.shape[:2] == (20, 30)
    for length in (1, 10, len(data) // 3, len(data) - 60):
        with pytest.raises(ImageError):
            pictures.decode(data[:-length])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_orientation_and_resolution_fit_the_pixels(orientation, dtype):
    """Pillow applies some orientations to the pixels, but not to the resolution."""
    exif = Image.Exif()
    exif[0x112] = orientation
    stack = _stack(3, dtype)
    meta = Metadata(exif.tobytes(), dpi=(300.0, 150.0))
    data = pictures.encode(Picture(stack, metadata=meta), "tiff")
    found = pictures.decode(data)
    np.testing.assert_array_equal(found.pixels, stack)
    assert found.metadata.dpi == meta.dpi
    turned = pictures.decode(pictures.encode(found, "png"))
    swapped = orientation > 4
    assert turned.metadata.dpi == pytest.approx(
        meta.dpi[::-1] if swapped else meta.dpi, rel=1e-3
    )
    assert turned.pixels.shape[:2] == ((30, 20) if swapped else (20, 30))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_orientation_that_pillow_applies_is_not_applied_again(orientation):
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        np.arange(20 * 30, dtype=np.uint8).reshape(20, 30),
        bigtiff=True,
        photometric="palette",
        colormap=np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1)),
        extratags=[(274, "H", 1, orientation, True)],
    )
    found = pictures.decode(buffer.getvalue())
    stored = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)
    expected = np.rot90(stored, {1: 0, 3: 2, 6: 3}[orientation])
    np.testing.assert_array_equal(found.pixels[..., 0], expected)
    np.testing.assert_array_equal(pictures.upright(found).pixels, found.pixels)


def test_raw_file_that_begins_with_a_thumbnail_is_rejected():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12)).save(buffer, "TIFF", tiffinfo={254: 1, 330: 8})
    with pytest.raises(ImageError, match="a camera's raw file"):
        pictures.decode(buffer.getvalue())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize(
    "compression", [None, "tiff_lzw", "tiff_adobe_deflate", "group4", "jpeg"]
)
def test_tiffs_written_by_pillow_are_read(mode, compression):
    if (compression == "group4") != (mode == "1" and compression is not None):
        return
    if compression == "jpeg" and mode in ("P", "LA", "RGBA"):
        return
    rgb = Image.fromarray(_stack(3, np.uint8))
    image = rgb.convert(mode) if mode != "P" else rgb.quantize(16)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", compression=compression)
    with Image.open(buffer) as opened:
        shown = np.asarray(
            opened.convert({"1": "L", "P": "RGB", "YCbCr": "RGB"}.get(mode, mode))
        )
    found = pictures.decode(buffer.getvalue()).stacked()
    np.testing.assert_array_equal(np.squeeze(found), shown)


def test_12_bit_samples_are_rejected():
    """They would be read as the lowest of 16 bits, which makes the picture black."""
    stack = RNG.integers(0, 4096, (20, 30)).astype(np.uint16)
    data = _tiff(stack, photometric="minisblack", bitspersample=12, compression=None)
    with pytest.raises(ImageError, match="a TIFF with 12 bits per sample; convert it"):
        pictures.decode(data)
