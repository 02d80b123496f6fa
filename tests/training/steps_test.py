"""Tests of the training and evaluation steps, the schedules and the optimizer."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from cqr_jax import losses
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.models.ranker import Ranker
from cqr_jax.training import state, steps

RANKER = Ranker(width=2)
DEBLOCKER = Deblocker(width=6, local_blocks=0, residual_blocks=0, scale=2, masks=False)
WEIGHTS = {"mae": 1.0, "quality": 0.01, "feature": 0.9}
DEBLOCK_STEP = functools.partial(
    steps.deblock_train_step,
    apply=DEBLOCKER.apply,
    rank=RANKER.apply,
    loss_weights=WEIGHTS,
    ema_decay=0.9,
)


def _images(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 48, 48, 1), np.uint8)


@pytest.fixture(scope="module")
def ranker_variables():
    variables = state.init(RANKER, 48, 1)
    stats = jax.tree.map(lambda x: x + 0.1, variables["batch_stats"])
    return {**variables, "batch_stats": stats}


@pytest.fixture(scope="module")
def restored():
    return jnp.asarray(_images(6)[::-1], jnp.float32) / 255


def _guided_loss(restored, clean, rank, weights=WEIGHTS):
    return losses.overall(losses.Comparison(restored, clean, rank), weights)


RANK = jax.jit(RANKER.apply)
SGD = optax.sgd(0.1)


def _rank(variables):
    return functools.partial(RANK, variables)


@functools.cache
def _step(parts):
    """Returns a step that also returns the gradient of the ranker's variables."""
    step = functools.partial(DEBLOCK_STEP, optimizer=SGD, grad_accum_steps=parts)

    def with_gradient(train_state, ranker_variables, batch):
        def loss(variables):
            after = step(train_state, variables, batch)
            return after[1]["loss"], after

        return jax.grad(loss, has_aux=True)(ranker_variables)

    return jax.jit(with_gradient)


def _ladders():
    return {"clean": _images(4), "compressed": _images(4, 2)[::-1]}


def test_ranker_step_lowers_the_loss_and_moves_the_statistics():
    batch = {
        "image_i": _images(4),
        "image_j": np.full((4, 48, 48, 1), 128, np.uint8),
        "label_i": np.full(4, 1),
        "label_j": np.full(4, 3),
    }
    optimizer = optax.adam(1e-2)
    train_state = state.create(RANKER, 48, optimizer, 0)
    before = train_state.batch_stats
    step = jax.jit(
        functools.partial(
            steps.ranker_train_step,
            apply=RANKER.apply,
            optimizer=optimizer,
            margin=0.5,
            ema_decay=0.0,
        )
    )
    found = []
    for _ in range(20):
        train_state, metrics = step(train_state, {}, batch)
        found.append(metrics)
    assert found[-1]["loss"] < 0.1 < found[0]["loss"]
    assert found[-1]["accuracy"] == 1
    assert int(train_state.step) == 20
    assert step._cache_size() == 1  # the initial state has the types of the later ones
    changed = jax.tree.map(
        lambda a, b: bool((a != b).any()), before, train_state.batch_stats
    )
    assert all(jax.tree.leaves(changed))
    jax.tree.map(
        np.testing.assert_array_equal, train_state.params, train_state.ema_params
    )


def test_frozen_ranker_gets_no_gradient_and_does_not_change(ranker_variables):
    train_state = state.create(DEBLOCKER, 48, SGD, 0)
    copy = jax.tree.map(np.array, ranker_variables)
    for _ in range(3):
        gradient, (train_state, metrics) = _step(1)(
            train_state, ranker_variables, _ladders()
        )
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))
    jax.tree.map(np.testing.assert_array_equal, ranker_variables, copy)
    assert not jax.tree.leaves(train_state.batch_stats)
    assert metrics.keys() == {"loss", "mae", "quality", "feature"}
    expected = metrics["mae"] + 0.01 * metrics["quality"] + 0.9 * metrics["feature"]
    assert metrics["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_micro_batches_give_the_step_of_the_whole_batch(ranker_variables):
    train_state = state.create(DEBLOCKER, 48, SGD, 0)
    arguments = (train_state, ranker_variables, _ladders())
    _, (whole, expected) = _step(1)(*arguments)
    _, (parts, found) = _step(2)(*arguments)
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-5)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        parts,
        whole,
    )


def test_batch_norm_sees_one_micro_batch_after_the_other():
    optimizer = optax.sgd(0.0)
    train_state = state.create(RANKER, 48, optimizer, 0)
    images = _images(8)
    batch = {
        "image_i": images[:4],
        "image_j": images[4:],
        "label_i": np.full(4, 1),
        "label_j": np.full(4, 2),
    }
    step = functools.partial(
        steps.ranker_train_step,
        apply=RANKER.apply,
        optimizer=optimizer,
        margin=0.5,
        ema_decay=0.0,
    )

    @jax.jit
    def forward(stats, images):
        variables = {"params": train_state.params, "batch_stats": stats}
        mutable = ["batch_stats"]
        _, after = RANKER.apply(variables, images, train=True, mutable=mutable)
        return after["batch_stats"]

    expected = train_state.batch_stats
    for index in (slice(0, None, 2), slice(1, None, 2)):
        half = [batch[name][index] for name in ("image_i", "image_j")]
        expected = forward(expected, steps.to_float(np.concatenate(half)))
    found, _ = jax.jit(functools.partial(step, grad_accum_steps=2))(
        train_state, {}, batch
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        found.batch_stats,
        expected,
    )


@pytest.mark.parametrize("term", ["quality", "feature"])
def test_each_guided_loss_reaches_the_deblocker(ranker_variables, term):
    variables = state.init(DEBLOCKER, 48, 0)
    compressed, clean = _images(6) / np.float32(255), _images(2) / np.float32(255)

    def loss(params):
        restored = DEBLOCKER.apply({"params": params}, compressed)
        _, terms = _guided_loss(restored, clean, _rank(ranker_variables))
        return terms[term]

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    assert float(jnp.abs(gradient["tail"]["kernel"]).sum()) > 0


def test_guided_loss_pairs_each_restored_image_with_its_clean_one(
    ranker_variables, restored
):
    clean = jnp.asarray(_images(2), jnp.float32) / 255
    _, terms = _guided_loss(restored, clean, _rank(ranker_variables))
    repeated = jnp.stack([clean[i // 3] for i in range(6)])
    score, features = RANK(ranker_variables, restored)
    _, target = RANK(ranker_variables, repeated)
    assert terms["mae"] == pytest.approx(float(jnp.abs(restored - repeated).mean()))
    assert terms["quality"] == pytest.approx(float(losses.quality(score)))
    expected = losses.feature_matching(features, target)
    assert terms["feature"] == pytest.approx(float(expected), rel=1e-5)


def test_ranker_is_not_called_if_its_terms_have_no_weight(restored):
    def never(image):
        raise AssertionError

    clean = restored[:2]
    for pixel in losses.PIXEL:
        loss, terms = _guided_loss(restored, clean, never, {pixel: 1.0})
        assert terms == {"loss": loss, pixel: loss}


@pytest.mark.parametrize(("alpha", "beta", "calls"), [(1, 0, 1), (0, 1, 2), (1, 1, 2)])
def test_clean_images_are_ranked_once_and_only_for_the_feature_loss(
    restored, ranker_variables, alpha, beta, calls
):
    seen = []

    def rank(image):
        seen.append(len(image))
        return RANKER.apply(ranker_variables, image)

    weights = losses.weights({"pixel": "mae", "alpha": alpha, "beta": beta})
    _guided_loss(restored, restored[:2], rank, weights)
    assert seen == [6, 2][:calls]


def test_deblock_eval_sums_are_those_of_rounded_images():
    batch = {
        "clean": _images(3),
        "compressed": _images(3, 2),
        "mask": np.array([1, 1, 0], np.float32),
    }
    variables = state.init(DEBLOCKER, 48, 0)  # the identity
    sums = steps.deblock_eval_step(variables, {}, batch, apply=DEBLOCKER.apply)
    error = batch["compressed"].astype(float) - batch["clean"][:, None]
    expected = np.square(error).mean(axis=(2, 3, 4))[:2].sum(axis=0)
    np.testing.assert_allclose(sums["mse"], expected, rtol=1e-5)
    np.testing.assert_allclose(sums["mse_jpeg"], expected, rtol=1e-5)
    assert sums["count"] == 2


def test_ranker_eval_sums_equal_values_computed_by_hand():
    """The score of an image is its mean. The last pair is masked."""

    def constant(*levels):
        return np.stack([np.full((8, 8, 1), x, np.uint8) for x in levels])

    batch = {
        "image_i": constant(51, 102, 0),
        "image_j": constant(153, 204, 255),
        "label_i": np.array([1, 3, 1]),
        "label_j": np.array([2, 1, 3]),
        "mask": np.array([1, 1, 0], np.float32),
    }
    sums = steps.ranker_eval_step(
        {}, {}, batch, apply=lambda _, x: (x.mean((1, 2, 3)), {}), margin=0.5
    )
    # Scores 0.2 and 0.6 in the right order, 0.4 and 0.8 in the wrong one.
    assert float(sums["loss"]) == pytest.approx(0.1 + 0.9, rel=1e-5)
    assert float(sums["correct"]) == 1
    assert float(sums["count"]) == 2


def test_stable_decay_is_constant_until_the_last_steps():
    config = ml_collections.ConfigDict(
        {
            "learning_rate": 0.1,
            "schedule": "stable_decay",
            "warmup_steps": 10,
            "decay_steps": 20,
        }
    )
    rate, longer = (state.learning_rate(config, steps) for steps in (100, 200))
    for step, expected in ((10, 0.1), (79, 0.1), (80, 0.1), (90, 0.05), (100, 0)):
        assert float(rate(step)) == pytest.approx(expected, abs=1e-7)
    for step in range(81):
        assert float(rate(step)) == float(longer(step))


def test_gradients_are_clipped_by_their_global_norm():
    config = ml_collections.ConfigDict(
        {
            "name": "adam",
            "learning_rate": 1.0,
            "schedule": "cosine",
            "warmup_steps": 0,
            "clip_norm": 0.5,
        }
    )
    optimizer = state.create_optimizer(config, 10)
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    _, found = optimizer.update(grads, optimizer.init(grads), grads)
    moments = [x for x in jax.tree.leaves(found) if x.shape == (1,)]
    # Adam's first moment is 0.1 of the gradient, which is scaled from 5 to 0.5.
    np.testing.assert_allclose(moments[:2], [[0.03], [0.04]], rtol=1e-5)


def test_learning_rates_of_step_decay_and_of_cosine_with_warmup():
    from configs import deblock

    config = deblock.get_config().optimizer
    rate = state.learning_rate(config, 400_000)
    for step, expected in (
        (0, 1e-4),
        (99_999, 1e-4),
        (100_000, 5e-5),
        (250_000, 2.5e-5),
    ):
        assert float(rate(step)) == pytest.approx(expected)
    config = deblock.get_config("colour").optimizer
    rate = state.learning_rate(config, 1000)
    assert float(rate(200)) == pytest.approx(config.learning_rate)
    assert 0 < float(rate(0)) <= config.learning_rate / 200 * 1.01
    assert float(rate(1000)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("shape", [(3, 3, 8, 8), (3, 3, 8, 32), (16, 8)])
def test_muon_moves_kernels_along_the_nearest_orthogonal_matrix(shape):
    """Compares with NumPy's singular value decomposition, and biases with NAdam."""
    config = ml_collections.ConfigDict(
        {
            "name": "muon",
            "learning_rate": 1e-2,
            "schedule": "cosine",
            "warmup_steps": 0,
            "clip_norm": 0.0,
        }
    )
    optimizer = state.create_optimizer(config, 1000)
    gradient = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    grads = {"kernel": jnp.asarray(gradient), "bias": jnp.array([0.5, -2.0])}
    moved, _ = jax.jit(optimizer.update)(grads, optimizer.init(grads), grads)
    nadam = optax.nadam(1e-2)  # Muon uses Nesterov momentum for biases too
    bias, _ = nadam.update(grads["bias"], nadam.init(grads["bias"]))
    np.testing.assert_allclose(moved["bias"], bias, rtol=1e-4)

    side = len(shape) - (2 if shape[-1] > shape[-2] else 1)  # the shorter of the two

    def matrix(x):
        return np.moveaxis(np.asarray(x), side, 0).reshape(shape[side], -1)

    left, _, right = np.linalg.svd(matrix(gradient), full_matrices=False)
    nearest = -(left @ right)
    found = matrix(moved["kernel"])
    cosine = np.sum(found * nearest) / np.linalg.norm(found) / np.linalg.norm(nearest)
    assert cosine > 0.97
    # The Newton-Schulz iteration leaves singular values of 0.7 to 1.2.
    assert np.sqrt(np.mean(found**2)) == pytest.approx(0.2e-2, rel=0.25)
