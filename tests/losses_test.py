"""Tests of equations 2 to 6 against values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cqr_jax import losses


def test_margin_ranking_by_hand():
    # b_i < b_j, so s_i should be lower: (1 - 2) + 0.5 < 0 -> 0; (2 - 1) + 0.5 = 1.5.
    # b_i > b_j: (1 - 2) * -1 + 0.5 = 1.5; equal scores: 0.5. Mean 3.5 / 4.
    loss = jax.jit(losses.margin_ranking, static_argnums=4)(
        jnp.array([1.0, 2.0, 1.0, 3.0]),
        jnp.array([2.0, 1.0, 2.0, 3.0]),
        jnp.array([1, 1, 3, 2]),
        jnp.array([2, 3, 1, 1]),
        0.5,
    )
    assert loss == pytest.approx(3.5 / 4)


def test_margin_ranking_gradient_pushes_towards_the_right_order():
    def loss(s):
        return losses.margin_ranking(s, jnp.zeros(2), *jnp.array([[1, 3], [2, 1]]), 0.5)

    # Active where the margin is not kept; the sign pushes towards the right order.
    np.testing.assert_allclose(jax.grad(loss)(jnp.array([1.0, 1.0])), [0.5, 0])
    np.testing.assert_allclose(jax.grad(loss)(jnp.array([-1.0, 0.2])), [0, -0.5])


def test_mean_absolute_error_by_hand():
    x = jnp.array([0.0, 0.5, 1.0, 0.25]).reshape(1, 2, 2, 1)
    assert losses.mean_absolute_error(x, jnp.zeros_like(x)) == pytest.approx(1.75 / 4)


def test_log_mean_squared_error_by_hand():
    # MSE 0.25 and 0; the gradient of 0.01 ln(m + 1e-4) is 0.02 e / (n (m + 1e-4)).
    x = jnp.stack([jnp.full((4, 4, 1), 0.5), jnp.zeros((4, 4, 1))])
    loss, pull = jax.value_and_grad(losses.log_mean_squared_error)(x, jnp.zeros_like(x))
    assert loss == pytest.approx(0.01 * (np.log(0.2501) + np.log(1e-4)) / 2)
    np.testing.assert_allclose(pull[0], 0.02 * 0.5 / (2 * 16 * 0.2501), rtol=1e-5)
    assert not pull[1].any()


def test_log_mean_squared_error_pulls_as_mae_does_at_35_db():
    error = jnp.full((1, 8, 8, 1), 10 ** (-35 / 20))
    pulls = [jax.grad(f)(error, jnp.zeros_like(error)) for f in losses.PIXEL.values()]
    np.testing.assert_allclose(pulls[0], pulls[1], rtol=0.2)


def test_quality_by_hand():
    # sigmoid(0) = 1/2; sigmoid(-ln 3) = 1/4.
    assert losses.quality(jnp.array([0.0, np.log(3)])) == pytest.approx(0.375)


def test_feature_matching_by_hand():
    # Each map is averaged over its own elements before the sum: 1 + 0.5.
    restored = {"conv0": jnp.ones((2, 4, 4, 3)), "conv1": jnp.full((2, 2, 2, 6), 0.5)}
    clean = jax.tree.map(jnp.zeros_like, restored)
    assert losses.feature_matching(restored, clean) == pytest.approx(1.5)


def _weights(alpha, beta, pixel="mae"):
    return losses.weights({"pixel": pixel, "alpha": alpha, "beta": beta})


def test_overall_by_hand():
    terms = {"mae": 0.5, "quality": 0.25, "feature": 2.0}
    loss, named = losses.weighted(terms, _weights(0.01, 0.9))
    assert loss == pytest.approx(0.5 + 0.0025 + 1.8)
    assert named == {"loss": loss, **terms}
    assert losses.weighted({"mae": 0.5}, _weights(0, 0))[0] == 0.5
    with_another = {"log_mse": -0.1, "quality": 0.25, "feature": 2.0}
    assert losses.weighted(with_another, _weights(0.01, 0.9, "log_mse"))[
        0
    ] == pytest.approx(1.7025)


def test_shapes_that_would_broadcast_are_refused():
    x = jnp.zeros((2, 4, 4, 1))
    with pytest.raises(ValueError, match="shapes differ"):
        losses.mean_absolute_error(x, x[:1])
    with pytest.raises(ValueError, match="shapes differ"):
        losses.margin_ranking(*jnp.zeros((3, 2)), jnp.zeros((2, 1)), 0.5)
    with pytest.raises(ValueError, match="feature maps differ"):
        losses.feature_matching({"conv0": x}, {"conv1": x})
