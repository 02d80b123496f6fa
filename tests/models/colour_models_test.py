"""Tests of the colour deblocker: pyramid, conditioning, colour spaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cqr_jax.data import jpeg
from cqr_jax.data.compression import FEATURES, features, libjpeg
from cqr_jax.models import colour
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.training import state

SMALL = {
    "width": 6,
    "local_blocks": 0,
    "residual_blocks": 0,
    "scale": 2,
    "channels": 3,
    "deeper_widths": (4, 8),
}


def _noisy(variables):
    """Returns variables with noise, so that none is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + np.float32(0.1) * rng.standard_normal(x.shape, np.float32),
        variables,
    )


def _told(*qualities):
    return np.stack([features(libjpeg(q) if q else None) for q in qualities])


@pytest.mark.parametrize(
    ("conditioning", "shape"),
    [
        ("none", (17, 31)),
        ("planes", (3, 5)),
        ("modulation", (33, 47)),
    ],
)
def test_deblocker_takes_any_size_and_starts_as_the_identity(conditioning, shape):
    model = Deblocker(**SMALL, conditioning=conditioning)
    image = jax.random.uniform(jax.random.key(1), (2, *shape, 3))
    inputs = (image,) if conditioning == "none" else (image, _told(10, 90))
    variables = state.init(model, 32, 0)
    apply = jax.jit(model.apply)
    np.testing.assert_array_equal(apply(variables, *inputs), image)
    assert not np.allclose(apply(_noisy(variables), *inputs), image)


@pytest.mark.parametrize("conditioning", ["planes", "modulation"])
@pytest.mark.parametrize("masks", [True, False])
def test_compression_of_an_image_affects_that_image_only(conditioning, masks):
    model = Deblocker(
        **SMALL, conditioning=conditioning, outer_masks=masks, masks=masks
    )
    image = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
    variables = _noisy(state.init(model, 16, 0))
    apply = jax.jit(model.apply)
    both = apply(variables, image, _told(10, 90))
    other = apply(variables, image, _told(0, 90))
    assert np.abs(both[0] - other[0]).max() > 1e-4
    np.testing.assert_allclose(both[1], other[1], atol=1e-6)


def test_chroma_depends_on_luma_across_the_image():
    model = Deblocker(**SMALL)
    variables = _noisy(state.init(model, 32, 0))

    def middle_of_cb(image):
        return model.apply(variables, image)[0, 16, 16, 1]

    image = jax.random.uniform(jax.random.key(1), (1, 32, 32, 3))
    seen = np.abs(jax.jit(jax.grad(middle_of_cb))(image)[0])
    assert seen[..., 0].sum() > 0
    assert (seen[[0, -1]] > 0).any()  # through the lowest level, across the image


def test_modulation_scales_and_shifts_the_input_of_the_relu():
    """The expected output is computed by hand: the input of the ReLU is 2 x + 1."""
    from cqr_jax.models.layers import ResidualBlock

    block = ResidualBlock()
    x = jnp.full((1, 3, 3, 1), 0.5)
    params = block.init(jax.random.key(0), x, jnp.ones((1, 1)))["params"]
    centre = np.zeros((3, 3, 1, 1), np.float32)
    centre[1, 1] = 1
    params["inner"]["kernel"] = params["out"]["kernel"] = centre
    params["modulation"] = {
        "kernel": np.zeros((1, 2), np.float32),
        "bias": np.array([1, 1], np.float32),
    }
    found = block.apply({"params": params}, x, jnp.ones((1, 1)))
    np.testing.assert_allclose(found, 0.5 + (2 * 0.5 + 1))


def test_deeper_widths_add_levels_around_the_same_layers():
    fields = {"width": 6, "local_blocks": 1, "residual_blocks": 0, "scale": 2}
    names = {"head", "non_local_in", "local0", "body", "non_local_out", "tail"}
    assert set(state.init(Deblocker(**fields), 16, 0)["params"]) == names
    deeper = state.init(Deblocker(**fields, deeper_widths=(8,)), 16, 0)["params"]
    assert set(deeper) == names | {"down0", "up0", "level0_in0", "level0_out0"}
    assert deeper["local0"]["head"]["inner"]["kernel"].shape == (3, 3, 8, 8)


def test_feature_scale_multiplies_features_and_divides_the_correction():
    """With biases times 10 instead, a network without masks computes the same."""
    fields = {**SMALL, "masks": False, "negative_slope": 0.1}
    variables = _noisy({"params": state.init(Deblocker(**fields), 16, 0)["params"]})
    image = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3))
    expected = Deblocker(**fields).apply(variables, image)
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, x: 10 * x if path[-1].key == "bias" else x, variables
    )
    # attention is absent without masks, so that all layers are linear or leaky ReLUs
    found = Deblocker(**fields, feature_scale=10.0).apply(scaled, image)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.abs(expected - image).max() > 0.01


def test_ycbcr_equals_that_of_jfif():
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    found = np.asarray(colour.to_ycbcr(rgb / np.float32(255))) * 255
    pillow = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    assert np.abs(found - pillow).max() < 1.1
    assert np.abs(found - pillow).mean() < 0.5  # Pillow rounds down
    back = colour.to_rgb(colour.to_ycbcr(rgb / np.float32(255)))
    np.testing.assert_allclose(back, rgb / np.float32(255), atol=1e-6)


def test_luma_equals_that_of_the_records():
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    found = np.asarray(colour.luma(rgb / np.float32(255)))[..., 0] * 255
    np.testing.assert_allclose(found, jpeg.luma(rgb), atol=0.51)


def test_omitted_compression_means_unknown():
    fields = SMALL | {"deeper_widths": (), "masks": False}
    model = Deblocker(**fields, conditioning="modulation")
    image = jax.random.uniform(jax.random.key(1), (2, 16, 16, 3))
    variables = _noisy(state.init(model, 16, 0))
    unknown = model.apply(variables, image, np.zeros((2, FEATURES), np.float32))
    np.testing.assert_array_equal(model.apply(variables, image), unknown)
