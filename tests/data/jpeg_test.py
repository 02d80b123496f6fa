"""Tests of luma conversion, JPEG compression and the reading of image files."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from cqr_jax.data import jpeg


def _file(image: Image.Image, format="PNG", **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **kwargs)
    return buffer.getvalue()


def test_luma_of_primaries_equals_values_computed_by_hand():
    # 16 + 65.481 = 81.481, 16 + 128.553 = 144.553, 16 + 24.966 = 40.966, by hand.
    colours = [[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    y = jpeg.luma(np.array(colours, np.uint8))
    np.testing.assert_array_equal(y, [[16, 235, 81, 145, 41]])
    assert y.dtype == np.uint8


def test_luma_of_several_bands_equals_the_formula():
    rgb = np.random.default_rng(0).integers(0, 256, (700, 5, 3), np.uint8)
    exact = 16 + rgb @ np.array([65.481, 128.553, 24.966]) / 255
    np.testing.assert_array_equal(jpeg.luma(rgb), np.floor(exact + 0.5))


def test_gray_is_used_as_y_unchanged(image):
    np.testing.assert_array_equal(jpeg.load_luma(_file(Image.fromarray(image))), image)


def test_16_bit_gray_is_scaled():
    wide = np.array([[0, 257, 65535, 128, 129]], np.uint16)
    y = jpeg.load_luma(_file(Image.fromarray(wide)))
    np.testing.assert_array_equal(y, [[0, 1, 255, 0, 1]])


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "RGBA", "LA", "1"])
def test_colour_modes_are_converted_by_way_of_rgb(image, mode):
    colour = Image.merge("RGB", [Image.fromarray(image // k) for k in (1, 2, 3)])
    kind = "TIFF" if mode == "CMYK" else "PNG"
    converted = (
        colour.convert("L").convert(mode) if mode in "LA1" else colour.convert(mode)
    )
    y = jpeg.load_luma(_file(converted, kind))
    gray = mode in ("LA", "1")
    expected = (
        np.asarray(converted.convert("L"))
        if gray
        else jpeg.luma(np.asarray(converted.convert("RGB")))
    )
    np.testing.assert_array_equal(y, expected)


def test_exif_orientation_is_applied(image):
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers rotate by 90 degrees clockwise
    y = jpeg.load_luma(_file(Image.fromarray(image), exif=exif))
    np.testing.assert_array_equal(y, np.rot90(image, -1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_with_an_unused_transparent_level_is_gray(image, dtype):
    pixels = np.minimum(image, 254).astype(dtype) * (257 if dtype == np.uint16 else 1)
    for level, transparent in ((np.iinfo(dtype).max, False), (int(pixels[0, 0]), True)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", transparency=level)
        if transparent:
            with pytest.raises(jpeg.ImageError, match="transparent"):
                jpeg.load_luma(buffer.getvalue())
            continue
        found = jpeg.load_luma(buffer.getvalue())
        np.testing.assert_array_equal(found, np.minimum(image, 254))


def test_transparent_pixels_are_refused(image):
    transparent = Image.merge("LA", [Image.fromarray(image), Image.fromarray(image)])
    with pytest.raises(jpeg.ImageError, match="transparent"):
        jpeg.load_luma(_file(transparent))


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_unreadable_data_is_an_image_error(data):
    words = "not an image, or of an unsupported format|ends too early|truncated"
    with pytest.raises(jpeg.ImageError, match=words):
        jpeg.load_luma(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_truncated_file_is_an_image_error(image, kind):
    data = _file(Image.fromarray(image), kind)
    with pytest.raises(jpeg.ImageError, match="truncated"):
        jpeg.load_luma(data[: len(data) // 2])


def test_any_error_of_a_library_becomes_an_image_error():
    told = pytest.raises(jpeg.ImageError, match="damaged or truncated: 'short'")
    with told, jpeg.image_errors():
        raise KeyError("short")
    told = pytest.raises(jpeg.ImageError, match="truncated: the file ends too early")
    with told, jpeg.image_errors():
        struct.unpack_from("<I", b"abc")


def test_floating_point_is_refused(image):
    data = _file(Image.fromarray(image.astype(np.float32)), "TIFF")
    with pytest.raises(jpeg.ImageError, match="floating"):
        jpeg.load_luma(data)


def test_jpeg_is_baseline_and_single_channel(image):
    with Image.open(io.BytesIO(jpeg.encode(image, 10))) as decoded:
        assert decoded.mode == "L"
        assert "progressive" not in decoded.info
        # The standard luminance table at QF 10: 16 * 5 = 80 for the DC coefficient.
        assert decoded.quantization[0][0] == 80


@pytest.mark.parametrize("quality", [1, 10, 30])
def test_jpeg_of_a_sub_image_on_the_grid_equals_the_crop(image, quality):
    whole = jpeg.compress(image, quality)[16:64, 8:72]
    part = jpeg.compress(np.ascontiguousarray(image[16:64, 8:72]), quality)
    np.testing.assert_array_equal(part, whole)


def test_tensorflow_decodes_as_pillow_does(image):
    import tensorflow as tf

    data = jpeg.encode(image, 20)
    accurate = tf.image.decode_and_crop_jpeg(
        data, [8, 16, 48, 40], channels=1, dct_method="INTEGER_ACCURATE"
    )
    np.testing.assert_array_equal(accurate[..., 0], jpeg.decode(data)[8:56, 16:56])


def test_folder_without_images_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(jpeg.UserError, match="holds no image"):
        jpeg.list_images(tmp_path)
