"""Tests of the compression that is found from a picture's pixels."""

import io

import numpy as np
import pytest
import skimage.data
from PIL import Image

from cqr_jax.data.compression import libjpeg, nearest_quality
from cqr_jax.restoring import recompression
from cqr_jax.restoring.picture import Picture

_SUBSAMPLING = {0: (1, 1), 1: (1, 2), 2: (2, 2)}


def _decoded(image, quality, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, **options)
    with Image.open(buffer) as opened:
        return np.array(opened)


@pytest.mark.parametrize("quality", [5, 10, 20, 35, 60, 75, 90])
@pytest.mark.parametrize("subsampling", _SUBSAMPLING)
def test_quality_factor_and_chroma_sampling_are_found(quality, subsampling):
    for image in (skimage.data.astronaut(), skimage.data.coffee()):
        pixels = _decoded(image[:300, 100:420], quality, subsampling=subsampling)
        found = recompression.find(Picture(pixels))
        assert found == libjpeg(quality, _SUBSAMPLING[subsampling])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_pictures_of_8_and_16_bits_are_recognised(dtype):
    pixels = _decoded(skimage.data.camera(), 40)[..., None].astype(dtype)
    pixels *= np.iinfo(dtype).max // 255
    assert recompression.find(Picture(pixels)) == libjpeg(40, gray=True)


def test_cmyk_pictures_are_recognised_as_their_inverted_rgb():
    rgb = _decoded(skimage.data.coffee(), 40)
    cmyk = np.concatenate([255 - rgb, np.zeros_like(rgb[..., :1])], axis=-1)
    assert recompression.find(Picture(cmyk)) == libjpeg(40)


def test_tables_of_other_encoders_are_told_by_the_nearest_quality_factor():
    """The luma steps are 2 % larger than those of QF 30."""
    tables = [[round(1.02 * x) for x in libjpeg(30).luma], list(libjpeg(30).chroma)]
    buffer = io.BytesIO()
    Image.fromarray(skimage.data.coffee()).save(buffer, "JPEG", qtables=tables)
    with Image.open(buffer) as opened:
        found = recompression.find(Picture(np.array(opened)))
    assert found is None or abs(nearest_quality(found.luma)[0] - 30) <= 2


def test_nothing_is_found_in_pictures_that_were_no_jpegs():
    rng = np.random.default_rng(0)
    levels = np.add.outer(np.arange(256), np.arange(256))[..., None] // 2
    pictures = {
        "blobs": 255 * skimage.data.binary_blobs(256, rng=0)[..., None].astype("u1"),
        "dark": rng.integers(0, 3, (256, 256, 1), np.uint8),
        "flat": np.full((256, 256, 3), 77, np.uint8),
        "noise": rng.integers(0, 256, (256, 256, 3), np.uint8),
        "page": skimage.data.page()[..., None],
        "ramp": np.repeat(levels, 3, 2).astype(np.uint8),
    }
    for name in ("astronaut", "camera", "chelsea", "coffee", "moon"):
        image = getattr(skimage.data, name)()
        pictures[name] = image.reshape(*image.shape[:2], -1)
    found = {name: recompression.find(Picture(x)) for name, x in pictures.items()}
    assert found == dict.fromkeys(pictures)


@pytest.mark.parametrize("size", [(1, 1), (9, 300), (63, 63)])
def test_small_pictures_are_unknown(size):
    pixels = _decoded(skimage.data.coffee()[: size[0], : size[1]], 20)
    assert recompression.find(Picture(pixels)) is None


def test_jpeg_whose_grid_begins_elsewhere_is_unknown():
    pixels = _decoded(skimage.data.coffee(), 20)[3:, 5:]
    assert recompression.find(Picture(np.ascontiguousarray(pixels))) is None
