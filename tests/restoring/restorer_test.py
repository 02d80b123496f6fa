"""Pictures through a network: strength, what is carried through, tiles, the whole."""

import os

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

import cqr_jax
from cqr_jax import state
from cqr_jax.data.compression import libjpeg
from cqr_jax.data.jpeg import ImageError
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.restoring import network, restorer, tiles
from cqr_jax.restoring.pictures import Picture
from cqr_jax.weights import Weights
from tests.conftest import save_fresh

RNG = np.random.default_rng(0)


def _contrast(images):
    """A network that moves each pixel by ten levels of 255 away from the middle."""
    return images + np.sign(images - 0.5) * np.float32(10 / 255)


def test_weights_that_change_are_read_again(tmp_path):
    path = save_fresh(tmp_path, "deblocker")
    first = restorer.load(path)
    assert restorer.load(str(path)) is first
    stamp = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(stamp, stamp))
    assert restorer.load(path) is not first


def test_strength_scales_the_change():
    pixels = np.where(np.indices((50, 70, 1)).sum(0) % 2, 60, 160).astype(np.uint8)
    for strength, moved in ((0, 0), (0.5, 5), (1, 10)):
        (found,) = restorer.restore_pictures(_contrast, [Picture(pixels)], strength)
        expected = np.where(pixels > 100, 160 + moved, 60 - moved)
        np.testing.assert_array_equal(found.pixels, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mean_colour_stays(channels):
    """Whatever the network does to the mean of luma or chroma."""
    pixels = RNG.integers(60, 180, (50, 70, channels), np.uint8)
    picture = Picture(pixels)
    for run in (lambda x: x + np.float32(0.04), lambda x: x**2 / 2 + x / 2):
        (found,) = restorer.restore_pictures(run, [picture])
        moved = found.pixels.mean((0, 1)) - pixels.mean((0, 1))
        assert np.abs(moved).max() < 0.05
    lighter = restorer.restore_pictures(lambda x: x + np.float32(0.04), [picture])
    np.testing.assert_array_equal(next(lighter).pixels, pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("sampling", [None, (1, 1), (2, 2), (1, 2)])
def test_a_network_that_does_nothing(channels, sampling):
    """Several sizes in a row; each gets its own planes back, and keeps its alpha."""
    pictures = [
        Picture(
            RNG.integers(0, 256, (*shape, channels), np.uint8),
            RNG.integers(0, 256, shape, np.uint8),
            sampling and libjpeg(30, sampling),
        )
        for shape in ((1, 1), (33, 70), (200, 9), (100, 100))
    ]
    found = restorer.restore_pictures(lambda x: x, iter(pictures), side=64)
    for before, after in zip(pictures, found, strict=True):
        np.testing.assert_array_equal(before.pixels, after.pixels)
        np.testing.assert_array_equal(before.alpha, after.alpha)


def test_more_bits_than_came_in():
    pixels = RNG.integers(20, 200, (50, 70, 3), np.uint8)
    (found,) = restorer.restore_pictures(
        lambda x: x, [Picture(pixels)], dtype=np.uint16
    )
    np.testing.assert_allclose(found.pixels, 257.0 * pixels, atol=1)


@pytest.fixture(scope="module")
def small():
    """A deblocker with weights other than those it starts with, which do nothing."""
    model = Deblocker(width=4, local_blocks=0, residual_blocks=0, scale=2, key_pool=8)
    variables = state.init(model, 48, 0)
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32),
        variables["params"],
    )
    return model, params


def _without_attention(params):
    def clear(path, x):
        attention = any(getattr(key, "key", "") == "non_local" for key in path)
        return np.zeros_like(x) if attention and path[-2].key == "out" else x

    return jax.tree_util.tree_map_with_path(clear, params)


@pytest.mark.parametrize("local", [True, False])
def test_tiled_equals_whole(small, local):
    """To float tolerance without attention; what attention makes of tiles is small."""
    model, params = small
    params = _without_attention(params) if local else params
    run = network.Network(Weights(model, {"params": params}, {}, {}))
    image = RNG.random((232, 264)).astype(np.float32)
    whole = run(image[None])[0]
    (tiled,) = tiles.restore(run, [image], side=176, overlap=64, batch=2)
    assert np.abs(whole - image).max() > 0.1
    difference = np.abs(tiled - whole).max()
    assert difference < (1e-5 if local else 0.05)
    if not local:
        assert difference > 1e-5


def test_self_ensemble_is_the_mean_over_flips_and_turns():
    """Of a network whose change depends on the place, and of a real one."""
    images = RNG.random((2, 16, 24)).astype(np.float32)

    def ramp(images):  # by the column: 0, 1, 2, ...
        return images + np.arange(images.shape[2], dtype=np.float32)

    # Half of the eight see columns, from either side, the others rows: 23 / 2, 15 / 2.
    mean = network.self_ensemble(ramp)(images) - images
    np.testing.assert_allclose(mean, (23 + 15) / 4, rtol=1e-6)


def test_self_ensemble_keeps_blocks_at_the_corner():
    """Of an image of 13x18 pixels, each of which is the number of its block."""
    rows, columns = np.indices((13, 18)) // 8
    images = (10.0 * rows + columns).astype(np.float32)[None]

    def mean_of_blocks(images):
        _, height, width = images.shape
        blocks = images.reshape(1, height // 8, 8, width // 8, 8)
        return np.broadcast_to(
            blocks.mean((2, 4), keepdims=True), blocks.shape
        ).reshape(images.shape)

    found = network.self_ensemble(mean_of_blocks)(images)
    np.testing.assert_allclose(found, images, rtol=1e-6)


def test_self_ensemble_does_not_mind_how_an_image_lies(small):
    model, params = small
    run = network.Network(Weights(model, {"params": params}, {}, {}))
    image = RNG.random((1, 40, 56)).astype(np.float32)
    turned = np.rot90(image, 1, (1, 2))[:, ::-1].copy()
    found = network.self_ensemble(run)(image)
    again = network.self_ensemble(run)(turned)
    np.testing.assert_allclose(np.rot90(again[:, ::-1], -1, (1, 2)), found, atol=1e-5)
    assert np.abs(found - run(image)).max() > 1e-3


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3), (40, 50, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays(shape, dtype):
    image = RNG.integers(0, np.iinfo(dtype).max, shape, dtype)
    found = cqr_jax.restore(image)
    assert (found.shape, found.dtype) == (shape, dtype)
    assert (found != image).any()
    np.testing.assert_array_equal(cqr_jax.restore(image, strength=0), image)
    if shape[-1] == 4:
        np.testing.assert_array_equal(found[..., 3], image[..., 3])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK"])
def test_pillows_images(mode):
    image = Image.fromarray(RNG.integers(0, 256, (40, 50, 3), np.uint8)).convert(mode)
    found = cqr_jax.restore(image)
    assert (found.mode, found.size) == (mode, (50, 40))
    np.testing.assert_array_equal(
        np.asarray(cqr_jax.restore(image, strength=0)), np.asarray(image)
    )


def test_pillows_images_keep_what_they_carry(tmp_path):
    image = Image.fromarray(RNG.integers(0, 256, (40, 50, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = tmp_path / "a.jpg"
    image.save(path, exif=exif, icc_profile=profile, dpi=(300, 300))
    with Image.open(path) as opened:
        found = cqr_jax.restore(opened)
    assert found.getexif()[ExifTags.Base.Orientation] == 6
    assert (found.info["icc_profile"], found.info["dpi"]) == (profile, (300, 300))
    palette = image.quantize(16)
    palette.info["transparency"] = 3
    assert cqr_jax.restore(palette).info == {}


def test_what_cannot_be_restored():
    with pytest.raises(ValueError, match="strength=2: is 0 to 1"):
        cqr_jax.restore(np.zeros((9, 9), np.uint8), strength=2)
    for image in (np.zeros((9, 9)), np.zeros(9, np.uint8), np.zeros((0, 9), np.uint8)):
        with pytest.raises(ValueError, match="must be"):
            cqr_jax.restore(image)
    with pytest.raises(ValueError, match="must be a NumPy array or one of Pillow's"):
        cqr_jax.restore("photo.jpg")
    with pytest.raises(ImageError, match="colours of mode F"):
        cqr_jax.restore(Image.fromarray(np.zeros((9, 9), np.float32)))
