"""Tests of restoring pictures with a colour network."""

import collections
import io

import jax
import numpy as np
import pytest
from PIL import Image

import cqr_jax
from cqr_jax import weights
from cqr_jax.data.compression import features, libjpeg
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
from cqr_jax.restoring.picture import Picture
from cqr_jax.training import state
from data_prep import sources
from tests.conftest import save_fresh

RNG = np.random.default_rng(0)
FIELDS = {
    "width": 6,
    "local_blocks": 0,
    "residual_blocks": 0,
    "scale": 2,
    "channels": 3,
    "deeper_widths": (6,),
    "conditioning": "modulation",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Weights of a small colour network whose output depends on the compression."""
    variables = state.init(Deblocker(**FIELDS), 32, 0)
    moved = jax.tree.map(
        lambda x: x + np.float32(0.05) * RNG.standard_normal(x.shape, np.float32),
        variables,
    )
    moved["params"]["tail"] = jax.tree.map(lambda x: x / 5, moved["params"]["tail"])
    path = tmp_path_factory.mktemp("weights") / "colour.safetensors"
    weights.save(path, "deblocker", FIELDS, moved, {})
    return path


@pytest.fixture(scope="module")
def photograph():
    """uint8 RGB, 75x92."""
    with Image.open(sources.embedded("test")[0]) as image:
        return np.asarray(image.convert("RGB"))[60:135, 100:192]


@pytest.fixture(autouse=True)
def _projected_up_to_a_tenth(tmp_path, monkeypatch):
    limits = tmp_path / "limits.tsv"
    limits.write_text("quality\tlimit\n1\t0.1\n100\t0.1\n")
    monkeypatch.setattr(projection, "LIMITS", limits)


def _jpeg(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


class _Told:
    """A network that records its compression features and changes nothing."""

    channels = 3
    conditioned = True

    def __init__(self):
        self.told = []

    def __call__(self, images, compression):
        self.told += list(compression)
        return images


def _restore(pictures_, **options):
    noted = _Told()
    found = list(restorer.restore_pictures(noted, pictures_, side=128, **options))
    return found, np.unique(noted.told, axis=0)


@pytest.mark.parametrize("sampling", [0, 1, 2])
def test_network_gets_the_tables_of_a_colour_jpeg(photograph, sampling):
    picture = pictures.decode(_jpeg(photograph, quality=30, subsampling=sampling))
    _, told = _restore([picture])
    expected = libjpeg(30, {0: (1, 1), 1: (1, 2), 2: (2, 2)}[sampling])
    np.testing.assert_array_equal(told, [features(expected)])


def test_network_gets_the_table_of_a_gray_jpeg(photograph):
    picture = pictures.decode(_jpeg(photograph[..., 0].copy(), quality=30))
    _, told = _restore([picture])
    np.testing.assert_array_equal(told, [features(libjpeg(30, gray=True))])


@pytest.mark.parametrize("found", [libjpeg(7), None])
def test_network_gets_the_compression_that_the_pixels_tell(
    photograph, monkeypatch, found
):
    monkeypatch.setattr(recompression, "find", lambda _: found)
    _, told = _restore([Picture(photograph)])
    np.testing.assert_array_equal(told, [features(found)])


@pytest.mark.parametrize(("subsampling", "sampling"), [(0, (1, 1)), (2, (2, 2))])
def test_quality_factor_replaces_the_tables_but_not_the_chroma_sampling(
    photograph, subsampling, sampling
):
    jpeg_ = _jpeg(photograph, quality=30, subsampling=subsampling)
    _, told = _restore([pictures.decode(jpeg_, stored=True)], quality_factor=12)
    np.testing.assert_array_equal(told, [features(libjpeg(12, sampling))])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_identity_network_leaves_pictures_unchanged(channels, dtype):
    """Pictures of several sizes share batches; each keeps its pixels and alpha."""
    most = np.iinfo(dtype).max
    given = [
        Picture(
            RNG.integers(0, most, (*shape, channels), dtype),
            RNG.integers(0, most, shape, dtype),
        )
        for shape in ((1, 1), (33, 70), (200, 9), (130, 140))
    ]
    found, _ = _restore(iter(given))
    for before, after in zip(given, found, strict=True):
        np.testing.assert_allclose(before.pixels, after.pixels, atol=most // 65535)
        np.testing.assert_array_equal(before.alpha, after.alpha)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_network_changes_pictures_of_all_modes(path, photograph, mode):
    image = Image.fromarray(photograph).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    picture = pictures.decode(buffer.getvalue(), stored=True)
    run_ = restorer.load(path)
    (found,) = restorer.restore_pictures(run_, [picture], dtype=np.uint16)
    assert found.pixels.shape == picture.pixels.shape
    assert (found.pixels != 257 * picture.pixels.astype(int)).any()


def test_mean_colour_is_kept_if_nothing_is_clipped(path):
    picture = Picture(RNG.integers(100, 156, (64, 96, 3), np.uint8))
    run_ = restorer.load(path)
    (found,) = restorer.restore_pictures(run_, [picture], dtype=np.uint16)
    moved = found.pixels.mean((0, 1)) / 257 - picture.pixels.mean((0, 1))
    assert np.abs(moved).max() < 0.01


def test_gray_stored_as_colour_stays_gray(path, photograph):
    gray = np.repeat(photograph[..., :1], 3, axis=-1)
    for picture in (
        Picture(gray),
        pictures.decode(_jpeg(gray, quality=30), stored=True),
    ):
        (found,) = restorer.restore_pictures(restorer.load(path), [picture])
        assert (found.pixels == found.pixels[..., :1]).all()
        assert (found.pixels != picture.pixels).any()


def test_tiles_of_a_colour_picture_equal_the_whole(path, photograph):
    """The tiles overlap by more than the receptive field."""
    model = Deblocker(**{**FIELDS, "deeper_widths": (), "masks": False})
    variables = state.init(model, 32, 0)
    variables = jax.tree.map(
        lambda x: x + np.float32(0.1) * RNG.standard_normal(x.shape, np.float32),
        variables,
    )
    run_ = jax_network.JaxNetwork(weights.Weights(model, variables, {}, {}))
    image = RNG.uniform(0, 1, (128, 200, 3)).astype(np.float32)
    told = features(libjpeg(20))
    whole = run_(image[None], told[None])[0]
    given = [tiles.Conditioned(image, told), tiles.Conditioned(image[:120], told)]
    first, second = tiles.restore(run_, given, side=128, margin=56, batch=2)
    np.testing.assert_allclose(first, whole, atol=1e-4)
    assert second.shape == (120, 200, 3)


def test_weights_of_the_same_model_share_the_compiled_network(path, photograph):
    held = weights.load(path, "deblocker")
    moved = held._replace(variables=jax.tree.map(lambda x: x + 0.1, held.variables))
    first, second = collections.defaultdict(float), collections.defaultdict(float)
    image = photograph[None, :39, :53].astype(np.float32) / 255  # a size of its own
    before = jax_network.JaxNetwork(held, first)(image)
    after = jax_network.JaxNetwork(moved, second)(image)
    assert np.abs(before - after).max() > 0.01
    assert second["compiling"] < first["compiling"] / 10


def test_self_ensemble_gives_all_turns_the_compression_features():
    seen = []

    def note(images, compression):
        seen.append((images.shape[1:3], tuple(compression[0, 1:3])))
        return images

    note.channels, note.conditioned = 3, True
    ensembled = network.self_ensemble(note)
    assert network.channels(ensembled) == 3
    assert network.conditioned(ensembled)
    images = RNG.uniform(0, 1, (1, 16, 24, 3)).astype(np.float32)
    told = features(libjpeg(30, (1, 2)))[None]
    np.testing.assert_allclose(ensembled(images, told), images, atol=1e-6)
    assert set(seen) == {((16, 24), (0, 1)), ((24, 16), (0, 1))}


def test_pillow_image_that_is_not_loaded_is_projected(path, photograph, monkeypatch):
    data = _jpeg(photograph, quality=90)

    def outside(**options):
        with Image.open(io.BytesIO(data)) as opened:
            if options.pop("loaded", False):
                opened.load()
            found = cqr_jax.restore(opened, weights=str(path), **options)
        stored = pictures.decode(data, stored=True).stored
        y = np.asarray(found.convert("YCbCr"))[..., 0].astype(np.float32) / 255
        return projection.share_outside(y, stored[0])

    monkeypatch.setattr(projection, "limit", lambda quality: 1.0)
    assert outside() < outside(projection=False) / 2
    assert outside(loaded=True) == outside(projection=False)


def test_invalid_quality_factor_is_rejected(path, tmp_path):
    flat = save_fresh(tmp_path, "deblocker")
    image = np.zeros((16, 16), np.uint8)
    with pytest.raises(UserError, match="these weights don't take one"):
        cqr_jax.restore(image, weights=str(flat), quality_factor=20)
    for wrong in (0, 101, 10.5, "10", True):
        with pytest.raises(ValueError, match="must be a whole number of 1 to 100"):
            cqr_jax.restore(image, weights=str(path), quality_factor=wrong)
    expected = cqr_jax.restore(image, weights=str(path), quality_factor=10)
    found = cqr_jax.restore(image, weights=str(path), quality_factor=np.uint8(10))
    np.testing.assert_array_equal(found, expected)
