"""Compares both models, the losses and the training steps with PyTorch.

The models are compared in float64, where only the same function passes. The steps are
compared in float32, in which they run.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from benchmarks import pytorch_models
from cqr_jax import losses
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.models.ranker import Ranker
from cqr_jax.training import state, steps

RANKER = {"width": 2, "hidden": 8}
DEBLOCKER = {"width": 4, "local_blocks": 0, "residual_blocks": 0, "scale": 2}
ALPHA, BETA, MARGIN, EMA_DECAY = 0.5, 0.9, 0.5, 0.3
WEIGHTS = {"mae": 1.0, "quality": ALPHA, "feature": BETA}
# The epsilon is large. With Adam's usual one, gradients that are zero except for
# rounding (such as those of a bias before BatchNorm) would make steps as large as any.
ADAM = {"lr": 1e-2, "eps": 1e-2}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@functools.cache
def _noisy(model):
    """Returns variables with noise, so that none is zero."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: np.asarray(x, np.float64) + 0.1 * rng.standard_normal(x.shape),
        state.init(model, 48, 0),
    )


def _single(variables):
    return jax.tree.map(np.float32, variables)


def _to_torch(images):
    """Converts (batch, height, width, channels) to (batch, channels, height, width)."""
    return torch.tensor(np.asarray(images)).permute(0, 3, 1, 2)


def _check(found, expected, tolerance):
    """Checks that arrays are equal, with a tolerance relative to the largest magnitude.

    Magnitudes below 1 count as 1.
    """
    found, expected = found.detach().numpy(), np.asarray(expected)
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


def _check_named(module, found, expected, tolerance):
    expected = pytorch_models.from_flax(expected, module)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        _check(found[name], value, tolerance)


def _check_gradients(module, image, expected_params, expected_image):
    found = {name: x.grad for name, x in module.named_parameters()}
    _check_named(module, found, {"params": expected_params}, 1e-10)
    _check(image.grad, _to_torch(expected_image), 1e-10)


@pytest.mark.parametrize(
    ("changed", "shape"),
    [
        (
            {"scale": 2, "key_pool": 2, "local_blocks": 1, "residual_blocks": 1},
            (21, 14),
        ),
        ({"scale": 1, "key_pool": 1, "dilations": (1, 3)}, (9, 12)),
        ({"scale": 3, "key_pool": 8}, (5, 22)),  # pooling over more than the height
    ],
)
def test_deblocker_and_its_gradients_equal_pytorchs(rng, changed, shape):
    fields = {**DEBLOCKER, "width": 5, **changed}
    model = Deblocker(**fields, dtype="float64")
    with jax.enable_x64(True):
        variables = _noisy(model)
        image, weight = rng.random((2, 2, *shape, 1))

        def loss(params, image):
            restored = model.apply({"params": params}, image)
            return jnp.sum(weight * restored), restored

        gradients, restored = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(
            variables["params"], image
        )
    assert restored.dtype == np.float64
    module = pytorch_models.load(pytorch_models.Deblocker(**fields).double(), variables)
    given = _to_torch(image).requires_grad_()
    found = module(given)
    _check(found, _to_torch(restored), 1e-12)
    torch.sum(_to_torch(weight) * found).backward()
    _check_gradients(module, given, *gradients)


@pytest.mark.parametrize("train", [False, True])
def test_ranker_its_maps_and_gradients_equal_pytorchs(rng, train):
    model = Ranker(**RANKER, dtype="float64")
    with jax.enable_x64(True):
        variables = _noisy(model)
        image = rng.random((3, 48, 41, 1))

        def loss(params, image):
            outputs, new = model.apply(
                {**variables, "params": params},
                image,
                train=train,
                mutable=["batch_stats"],
            )
            scores, features = outputs
            loss = sum(jnp.mean(x**3) for x in (scores, *features.values()))
            return loss, (scores, features, new)

        gradients, (scores, features, new) = jax.jit(
            jax.grad(loss, (0, 1), has_aux=True)
        )(variables["params"], image)
    module = pytorch_models.load(pytorch_models.Ranker(**RANKER).double(), variables)
    module.train(train)
    given = _to_torch(image).requires_grad_()
    found, maps = module(given)
    _check(found, scores, 1e-12)
    assert maps.keys() == features.keys()
    for name, expected in features.items():
        _check(maps[name], _to_torch(expected), 1e-12)
    sum((x**3).mean() for x in (found, *maps.values())).backward()
    _check_gradients(module, given, *gradients)
    means = pytorch_models.from_flax(new, module)
    for name, x in module.named_buffers():
        if name.endswith("running_mean"):
            _check(x, means[name], 1e-12)


def test_losses_equal_pytorchs(rng):
    scores, others = rng.standard_normal((2, 12)).astype(np.float32)
    labels = rng.integers(1, 4, 12)
    pair = (scores, others, labels, (labels + rng.integers(1, 3, 12)) % 3)
    found = pytorch_models.margin_ranking(*map(torch.tensor, pair), MARGIN)
    _check(found, losses.margin_ranking(*pair, MARGIN), 1e-6)

    ranker = Ranker(**RANKER)
    variables = _single(_noisy(ranker))
    restored, clean = rng.random((2, 4, 32, 32, 1), np.float32)
    rank = functools.partial(ranker.apply, variables)
    _, expected = jax.jit(
        lambda *images: losses.overall(losses.Comparison(*images, rank), WEIGHTS),
    )(restored, clean)
    module = pytorch_models.load(pytorch_models.Ranker(**RANKER), variables).eval()
    found = pytorch_models.guided_loss(
        _to_torch(restored), _to_torch(clean), module, ALPHA, BETA
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        _check(found[name], value, 1e-5)


def _train(step, model, variables, batch, ranker_variables):
    """Runs four training steps; returns the state and the losses."""
    optimizer = optax.adam(ADAM["lr"], eps=ADAM["eps"])
    shapes = jax.eval_shape(lambda: state.create(model, 48, optimizer, 0))
    train_state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    params, stats = variables["params"], variables.get("batch_stats", {})
    train_state = train_state.replace(
        params=params, ema_params=params, batch_stats=stats
    )
    bound = {"apply": model.apply, "optimizer": optimizer, "ema_decay": EMA_DECAY}
    step = jax.jit(functools.partial(step, **bound))
    found = []
    for _ in range(4):
        train_state, metrics = step(train_state, ranker_variables, batch)
        found.append(metrics["loss"])
    return train_state, found


def _check_trained(module, trainer, train_state):
    names = [name for name, _ in module.named_parameters()]
    for found, expected in (
        (list(module.parameters()), train_state.params),
        (trainer.average, train_state.ema_params),
    ):
        found = dict(zip(names, found, strict=True))
        _check_named(module, found, {"params": expected}, 1e-4)


def test_steps_of_the_deblocker_equal_pytorchs(rng):
    model, ranker = Deblocker(**DEBLOCKER), Ranker(**RANKER)
    variables, ranker_variables = _single(_noisy(model)), _single(_noisy(ranker))
    batch = {
        "clean": rng.integers(0, 256, (2, 32, 32, 1), np.uint8),
        "compressed": rng.integers(0, 256, (2, 2, 32, 32, 1), np.uint8),
    }
    step = functools.partial(
        steps.deblock_train_step,
        rank=ranker.apply,
        loss_weights=WEIGHTS,
    )
    train_state, expected = _train(step, model, variables, batch, ranker_variables)

    module = pytorch_models.load(pytorch_models.Deblocker(**DEBLOCKER), variables)
    guide = pytorch_models.load(pytorch_models.Ranker(**RANKER), ranker_variables)
    guide.eval().requires_grad_(False)
    trainer = pytorch_models.Trainer(module, EMA_DECAY, **ADAM)
    clean = _to_torch(batch["clean"].repeat(2, axis=0)) / 255
    compressed = _to_torch(batch["compressed"].reshape(4, 32, 32, 1)) / 255
    for value in expected:
        terms = pytorch_models.guided_loss(
            module(compressed), clean, guide, ALPHA, BETA
        )
        _check(terms["loss"], value, 1e-5)
        trainer.update(terms["loss"])
    _check_trained(module, trainer, train_state)


def test_steps_of_the_ranker_equal_pytorchs(rng):
    model = Ranker(**RANKER)
    variables = _single(_noisy(model))
    batch = {
        "image_i": rng.integers(0, 256, (4, 32, 32, 1), np.uint8),
        "image_j": rng.integers(0, 256, (4, 32, 32, 1), np.uint8),
        "label_i": np.array([1, 2, 1, 3]),
        "label_j": np.array([2, 3, 3, 1]),
    }
    step = functools.partial(steps.ranker_train_step, margin=MARGIN)
    train_state, expected = _train(step, model, variables, batch, {})

    module = pytorch_models.load(pytorch_models.Ranker(**RANKER), variables)
    trainer = pytorch_models.Trainer(module, EMA_DECAY, **ADAM)
    images = _to_torch(np.concatenate([batch["image_i"], batch["image_j"]])) / 255
    labels = torch.tensor(batch["label_i"]), torch.tensor(batch["label_j"])
    for value in expected:
        scores = module(images)[0].chunk(2)
        loss = pytorch_models.margin_ranking(*scores, *labels, MARGIN)
        _check(loss, value, 1e-5)
        trainer.update(loss)
    _check_trained(module, trainer, train_state)
