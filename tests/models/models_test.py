"""Tests of both models: sizes, shapes, and layers against plain formulations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cqr_jax.models import attention, layers
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.models.init import shapes
from cqr_jax.models.ranker import Ranker
from cqr_jax.training import state

SMALL = {"width": 6, "local_blocks": 1, "residual_blocks": 1, "scale": 2, "key_pool": 2}


def _count(model) -> int:
    return sum(x.size for x in jax.tree.leaves(shapes(model, 48)["params"]))


def _noisy(variables):
    """Returns variables with noise, so that none is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: x + np.float32(0.1) * rng.standard_normal(x.shape, np.float32),
        variables,
    )


@pytest.mark.parametrize(
    ("model", "count"),
    [
        (Ranker(), 13_733_129),
        (Ranker(width=16), 869_849),
        (Deblocker(), 8_959_169),
    ],
)
def test_parameter_counts_are_as_documented(model, count):
    assert _count(model) == count


def test_multi_dilation_has_the_parameters_of_one_convolution():
    x = jnp.zeros((1, 8, 8, 64))
    sizes = []
    for module in (layers.MultiDilation(), nn.Conv(64, (3, 3))):
        variables = jax.eval_shape(module.init, jax.random.key(0), x)
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(variables)))
    assert sizes[0] == sizes[1] == 64 * 64 * 9 + 64


def test_multi_dilation_reaches_as_far_as_its_dilations():
    x = jnp.ones((1, 17, 17, 3))
    module = layers.MultiDilation((1, 2, 4))
    variables = _noisy(module.init(jax.random.key(0), x))

    def centre(x, channel):
        return module.apply(variables, x)[0, 8, 8, channel]

    for channel, reach in enumerate((1, 2, 4)):
        seen = np.abs(jax.grad(centre)(x, channel)[0]).sum(-1)
        rows, columns = np.nonzero(seen)
        expected = {8 - reach, 8, 8 + reach}
        assert set(rows.tolist()) == set(columns.tolist()) == expected


def test_depth_to_space_inverts_space_to_depth():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    y = layers.space_to_depth(x, 2)
    assert y.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(y[0, 0, 0, :6], x[0, 0, :2].ravel())
    np.testing.assert_array_equal(layers.depth_to_space(y, 2), x)


@pytest.mark.parametrize("keys", [21, 3])
def test_attention_in_blocks_equals_plain_attention(monkeypatch, keys):
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(2 * rng.standard_normal((2, n, d)), jnp.float32)
        for n, d in ((21, 4), (keys, 4), (keys, 5))
    )

    def plain(q, k, v):
        scores = jnp.einsum("bqd,bkd->bqk", q, k)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)  # over the keys
        return jnp.einsum("bqk,bkd->bqd", weights, v)

    def both(function):
        value, gradients = jax.value_and_grad(
            lambda *x: jnp.sum(jnp.sin(function(*x))), (0, 1, 2)
        )(q, k, v)
        return function(q, k, v), value, *gradients

    expected = both(plain)
    np.testing.assert_allclose(attention.attend(q, k, v), expected[0], atol=1e-5)
    monkeypatch.setattr(attention, "_PLAIN_SCORES", 0)
    monkeypatch.setattr(attention, "_QUERY_BLOCK", 4)  # 6 blocks, padded
    monkeypatch.setattr(attention, "_KEY_BLOCK", 8)
    for found, wanted in zip(both(attention.attend), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)


def test_large_attention_scores_do_not_overflow(monkeypatch):
    monkeypatch.setattr(attention, "_PLAIN_SCORES", 0)
    x = jnp.full((1, 8, 2), 100.0)
    np.testing.assert_allclose(attention.attend(x, x, x), x)


def _temporary_bytes(function, *arguments) -> int:
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("backward", [False, True])
def test_memory_of_attention_grows_linearly(backward):
    def attend(x):
        return jnp.sum(attention.attend(x, x, x))

    used = [
        _temporary_bytes(
            jax.grad(attend) if backward else attend,
            jax.ShapeDtypeStruct((1, side**2, 32), jnp.float32),
        )
        for side in (64, 128, 256)
    ]
    assert used[2] - used[1] < 4.5 * (used[1] - used[0])
    assert used[2] < 256**2 * 32 * 4 * 16  # the scores alone would take 17 GB


def test_remat_recomputes_blocks_and_gives_the_same_gradients():
    fields = {**SMALL, "local_blocks": 0, "residual_blocks": 0}
    image = jax.random.uniform(jax.random.key(1), (2, 16, 16, 1))
    variables = _noisy(state.init(Deblocker(**fields), 16, 0))
    gradients, convolutions = [], []
    for remat in (False, True):
        model = Deblocker(**fields, remat=remat)
        gradient = jax.jit(jax.grad(lambda v, m=model: jnp.sum(m.apply(v, image) ** 2)))
        lowered = gradient.lower(variables)
        convolutions.append(lowered.as_text().count("stablehlo.convolution"))
        gradients.append(lowered.compile()(variables))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), *gradients)
    assert convolutions[1] > 1.2 * convolutions[0]


@pytest.mark.parametrize("model", [Ranker(width=4), Deblocker(**SMALL)])
def test_bfloat16_results_are_near_those_of_float32(model):
    image = jax.random.uniform(jax.random.key(1), (2, 48, 48, 1))
    variables = state.init(model, 48, 0)
    variables = {**variables, "params": _noisy(variables["params"])}
    exact, rounded = (
        jax.jit(model.clone(dtype=dtype).apply)(variables, image)
        for dtype in ("float32", "bfloat16")
    )
    if isinstance(model, Ranker):
        (exact, _), (rounded, features) = exact, rounded
        assert all(x.dtype == jnp.bfloat16 for x in features.values())
    assert rounded.dtype == jnp.float32
    assert (rounded != exact).any()
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.parametrize("shape", [(33, 47), (5, 3)])
def test_deblocker_takes_any_size_and_starts_as_the_identity(shape):
    model = Deblocker(**SMALL)
    image = jax.random.uniform(jax.random.key(1), (2, *shape, 1))
    variables = state.init(model, 48, 0)
    apply = jax.jit(model.apply)
    np.testing.assert_array_equal(apply(variables, image), image)
    assert not np.allclose(apply(_noisy(variables), image), image)


@pytest.mark.parametrize("model", [Ranker(width=2), Deblocker(**SMALL)])
def test_integers_are_refused(model):
    with pytest.raises(TypeError, match=r"floats in \[0, 1\], not uint8"):
        jax.eval_shape(
            model.init, jax.random.key(0), jnp.zeros((1, 48, 48, 1), "uint8")
        )


def test_ranker_returns_scores_and_ten_feature_maps():
    model = Ranker(width=4)
    variables = state.init(model, 48, 0)
    scores, features = model.apply(variables, jnp.ones((3, 48, 40, 1)))
    assert scores.shape == (3,)
    assert list(features) == [f"conv{i}" for i in range(10)]
    assert features["conv0"].shape == (3, 48, 40, 4)
    assert features["conv9"].shape == (3, 1, 1, 32)
    with pytest.raises(ValueError, match="at least 32"):
        model.apply(variables, jnp.ones((1, 31, 64, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("model", [Ranker(width=16), Deblocker(24, 0, 0)])
def test_init_draws_with_the_standard_deviations_of_the_modules(model):
    ours = state.init(model, 48, 0)
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles faster than threefry
    theirs = jax.jit(model.init)(key, jnp.zeros((1, 48, 48, 1)))

    def check(mine, reference):
        assert mine.shape == reference.shape
        spread = np.std(reference)
        np.testing.assert_allclose(np.std(mine), spread, rtol=5 / mine.size**0.5)
        if spread == 0:
            np.testing.assert_array_equal(mine, reference)
        assert np.any(mine) == np.any(reference)

    jax.tree.map(check, ours, theirs)


def test_shifts_of_masks_are_added_and_start_at_zero():
    """A shift of c adds c to x + trunk * mask, which is tested before the dilations."""
    x = jax.random.uniform(jax.random.key(0), (1, 8, 8, 4))
    block = layers.DilatedBlock(0, (1, 2), False, 1, True, True)
    variables = block.init(jax.random.key(1), x)
    plain = layers.DilatedBlock(0, (1, 2), False, 1)
    without = jax.tree.map(lambda x: x, variables)
    del without["params"]["mask"]["shift"]
    before = block.apply(variables, x)
    np.testing.assert_array_equal(plain.apply(without, x), before)
    variables["params"]["mask"]["shift"]["bias"] += 0.25
    np.testing.assert_allclose(block.apply(variables, x), before + 0.25, rtol=1e-6)
