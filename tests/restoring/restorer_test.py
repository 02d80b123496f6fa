"""Pictures through a network: strength, what is carried through, tiles, the whole."""

import io
import os

import jax
import numpy as np
import png
import pytest
from PIL import ExifTags, Image, ImageCms

import cqr_jax
from cqr_jax.data.compression import libjpeg
from cqr_jax.data.jpeg import ImageError
from cqr_jax.errors import UserError
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.restoring import (
    jax_network,
    network,
    pictures,
    projection,
    recompression,
    restorer,
    tiles,
)
from cqr_jax.restoring.metadata import Metadata
from cqr_jax.restoring.picture import Picture
from cqr_jax.training import state
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
    rng = np.random.default_rng(0)  # independent of the order of the tests
    pixels = rng.integers(60, 180, (50, 70, channels), np.uint8)
    picture = Picture(pixels)
    for run in (lambda x: x + np.float32(0.04), lambda x: x**2 / 2 + x / 2):
        (found,) = restorer.restore_pictures(run, [picture])
        moved = found.pixels.mean((0, 1)) - pixels.mean((0, 1))
        assert np.abs(moved).max() < 0.05
    lighter = restorer.restore_pictures(lambda x: x + np.float32(0.04), [picture])
    np.testing.assert_array_equal(next(lighter).pixels, pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("sampling", [None, (1, 1), (2, 2), (1, 2)])
def test_tiny_pictures_keep_their_mean_colour(channels, sampling):
    """Of odd sides too, where samples of chroma stand for pixels that aren't there."""

    def ramp(images):  # which differs from pixel to pixel
        return images + np.arange(images.shape[2], dtype=np.float32) / 999

    for height in (1, 2, 3, 5, 8):
        for width in (1, 2, 3, 5, 8):
            pixels = RNG.integers(90, 150, (height, width, channels), np.uint8)
            told = sampling and libjpeg(30, sampling)
            (found,) = restorer.restore_pictures(
                ramp, [Picture(pixels, compression=told)], dtype=np.uint16
            )
            moved = found.pixels.mean((0, 1)) / 257 - pixels.mean((0, 1))
            assert np.abs(moved).max() < 0.01


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (8, 8), (33, 70)])
def test_flat_pictures_stay_as_they_are(channels, shape):
    """By the weights that come with the package: white stays white."""
    flat = [
        Picture(np.full((*shape, channels), value, np.uint8))
        for value in (0, 37, 128, 255)
    ]
    found = restorer.restore_pictures(restorer.load(), iter(flat))
    for before, after in zip(flat, found, strict=True):
        np.testing.assert_array_equal(after.pixels, before.pixels)


@pytest.mark.parametrize("sampling", [None, (1, 1), (2, 2)])
def test_gray_stored_as_colour_stays_gray(sampling):
    gray = RNG.integers(0, 256, (50, 70, 1), np.uint8)
    picture = Picture(
        gray.repeat(3, -1), compression=sampling and libjpeg(20, sampling)
    )
    (found,) = restorer.restore_pictures(restorer.load(), [picture])
    assert (found.pixels != picture.pixels).any()
    assert not np.ptp(found.pixels, axis=-1).any()


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
    run = jax_network.JaxNetwork(Weights(model, {"params": params}, {}, {}))
    image = RNG.random((232, 264)).astype(np.float32)
    whole = run(image[None])[0]
    (tiled,) = tiles.restore(run, [image], side=176, margin=64, batch=2)
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
    run = jax_network.JaxNetwork(Weights(model, {"params": params}, {}, {}))
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


def test_an_image_without_pixels_is_an_error():
    with pytest.raises(ImageError, match="has no pixels"):
        cqr_jax.restore(Image.new("RGB", (0, 0)))


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


def test_pillows_info_has_what_pillow_knows_alone():
    """Of a PNG with one gray that is transparent, which tells its gamma."""
    buffer = io.BytesIO()
    gray = RNG.integers(0, 256, (40, 50), np.uint8)
    rows = png.Writer(50, 40, greyscale=True, transparent=5, gamma=0.5)
    rows.write(buffer, gray)
    with Image.open(buffer) as opened:
        found = cqr_jax.restore(opened)
    assert found.mode == "LA"
    assert found.info == {}


@pytest.fixture(scope="module")
def colour_weights(tmp_path_factory):
    """Of a network that changes each pixel, by what it is told."""
    return save_fresh(tmp_path_factory.mktemp("weights"), "colour")


def _smooth(height, width, channels, dtype):
    """Noise between a third and two thirds of the range."""
    most = np.iinfo(dtype).max
    return RNG.integers(most // 3, 2 * most // 3, (height, width, channels), dtype)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_colour_network_keeps_what_is_not_its_own(
    colour_weights, channels, dtype, alpha
):
    """Shape, dtype, alpha, metadata and the mean colour."""
    pixels = _smooth(50, 70, channels, dtype)
    given = Picture(
        pixels,
        RNG.integers(0, 255, (50, 70), dtype) if alpha else None,
        libjpeg(30, gray=channels == 1),
        metadata=Metadata(b"exif", b"profile", b"<x/>", (300.0, 300.0)),
    )
    (found,) = restorer.restore_pictures(restorer.load(colour_weights), [given])
    assert (found.pixels.shape, found.pixels.dtype) == (pixels.shape, dtype)
    assert (found.pixels != pixels).mean() > 0.3
    moved = found.pixels.mean((0, 1)) - pixels.mean((0, 1))
    assert np.abs(moved).max() / np.iinfo(dtype).max < 0.2 / 255
    assert found.metadata == given.metadata
    if alpha:
        np.testing.assert_array_equal(found.alpha, given.alpha)
    else:
        assert found.alpha is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_gray_as_rgb_stays_gray_in_a_colour_network(colour_weights, dtype):
    gray = np.repeat(_smooth(50, 70, 1, dtype), 3, axis=-1)
    (found,) = restorer.restore_pictures(
        restorer.load(colour_weights), [Picture(gray, compression=libjpeg(20))]
    )
    assert (found.pixels != gray).any()
    assert (found.pixels == found.pixels[..., :1]).all()


class _Noting:
    """A network that changes nothing."""

    def __init__(self, channels, conditioned):
        self.channels, self.conditioned = channels, conditioned

    def __call__(self, images, compression=None):
        return images


def _jpeg(quality, gray=False, **options):
    """A picture of a JPEG's, with what its file stores."""
    image = Image.fromarray(_smooth(48, 64, 3, np.uint8)).convert(
        "L" if gray else "RGB"
    )
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, **options)
    return pictures.decode(buffer.getvalue(), stored=True)


def test_how_pictures_were_restored(monkeypatch):
    monkeypatch.setattr(projection, "limit", lambda quality: 1.0)
    guesses = iter([libjpeg(12), None])
    monkeypatch.setattr(recompression, "find", lambda _: next(guesses))
    plain = Picture(_smooth(48, 64, 3, np.uint8))
    given = [_jpeg(30), _jpeg(85, gray=True), _jpeg(40)._replace(stored=None)]

    def how(run, pictures_, **options):
        found = restorer.restorations(run, pictures_, **options)
        return [restoration[1:] for restoration in found]

    told = _Noting(3, True)
    assert how(told, [*given, plain, plain]) == [
        (30, "tables", True, False),
        (85, "tables", True, False),
        (40, "tables", False, False),
        (12, "pixels", False, False),
        (None, "nothing", False, False),
    ]
    assert how(told, given[:1], quality_factor=7) == [(7, "hand", False, False)]
    assert how(told, given[:1], projecting=False) == [(30, "tables", False, False)]
    for run in (_Noting(3, False), _Noting(1, True), lambda images: images):
        assert how(run, [given[1]]) == [(None, "nothing", True, False)]
        with pytest.raises(UserError, match="these weights don't take one"):
            restorer.check_quality_factor(run, 50)
    monkeypatch.setattr(projection, "limit", lambda quality: -1.0)
    assert how(told, given[:1]) == [(30, "tables", False, True)]


@pytest.mark.parametrize("factor", [1, 100])
def test_a_quality_factor_by_hand_is_reported_as_it_is(factor):
    (found,) = restorer.restorations(
        _Noting(3, True), [Picture(np.zeros((8, 8, 1), np.uint8))], 1, 64, None, factor
    )
    assert found.quality_factor == factor


def test_what_has_become_another_picture_than_its_file_is_not_projected(
    colour_weights, monkeypatch
):
    monkeypatch.setattr(projection, "limit", lambda quality: 1.0)
    buffer = io.BytesIO()
    first, second = (Image.fromarray(_smooth(64, 80, 3, np.uint8)) for _ in range(2))
    options = {"save_all": True, "append_images": [second]}
    first.save(buffer, "MPO", quality=90, **options)

    def restored(projecting=True, change=lambda image: None):
        with Image.open(io.BytesIO(buffer.getvalue())) as image:
            change(image)
            return np.asarray(
                cqr_jax.restore(
                    image, weights=str(colour_weights), projection=projecting
                )
            )

    def edit(image):
        image.putpixel((3, 4), (0, 0, 0))

    def reduce(image):
        image.draft("RGB", (40, 32))

    assert (restored() != restored(projecting=False)).any()
    for change in (lambda x: x.load(), lambda x: x.seek(1), edit, reduce):
        np.testing.assert_array_equal(
            restored(change=change), restored(False, change=change)
        )
    assert restored(change=reduce).shape == (32, 40, 3)

    with Image.open(buffer) as image:  # as Pillow would have loaded it
        cqr_jax.restore(image, weights=str(colour_weights))
        pixels = np.asarray(image)
    with Image.open(io.BytesIO(buffer.getvalue())) as image:
        np.testing.assert_array_equal(pixels, np.asarray(image))


def test_what_cannot_be_restored():
    with pytest.raises(ValueError, match="strength=2: must be 0 to 1"):
        cqr_jax.restore(np.zeros((9, 9), np.uint8), strength=2)
    for image in (np.zeros((9, 9)), np.zeros(9, np.uint8), np.zeros((0, 9), np.uint8)):
        with pytest.raises(ValueError, match="must be"):
            cqr_jax.restore(image)
    with pytest.raises(TypeError, match="must be a NumPy array or a Pillow image"):
        cqr_jax.restore("photo.jpg")
    with pytest.raises(ImageError, match="colours of mode F"):
        cqr_jax.restore(Image.fromarray(np.zeros((9, 9), np.float32)))


def test_the_public_names_are_listed_and_options_are_named():
    assert {"restore", "UserError", "ImageError"} <= set(dir(cqr_jax))
    with pytest.raises(TypeError, match="positional"):
        cqr_jax.restore(np.zeros((9, 9), np.uint8), 0.5)
