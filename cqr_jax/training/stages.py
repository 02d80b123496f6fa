"""The two stages of training: their models, steps and data."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import optax
from flax import linen as nn

from cqr_jax import losses, models, weights
from cqr_jax.config import level_ranges
from cqr_jax.data import kinds, pipeline, records
from cqr_jax.data.degradations import MARGIN, Mixture
from cqr_jax.models import colour
from cqr_jax.psnr import psnr_of_mse
from cqr_jax.training import runner, state, steps

_VALIDATION_SEED = 0  # of all runs, so that their validations can be compared


class Steps(NamedTuple):
    """A model and the pure functions that train it.

    Attributes:
      model: the module that is trained.
      optimizer: optimizer of `train_step`.
      train_step, eval_step: functions of `cqr_jax.training.steps` with everything but
        the arrays bound.
      unguided_step: a `train_step` without the losses of the ranker, for the first
        steps of a training that is guided later; None if no term needs the ranker.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    train_step: Callable
    eval_step: Callable
    unguided_step: Callable | None = None


class Stage(NamedTuple):
    """A stage as the training loop sees it.

    Attributes:
      name: 'ranker' or 'deblocker', as shown in the log.
      steps: the model and its steps.
      ranker_variables: variables of the frozen ranker; see `cqr_jax.training.steps`.
      batches: number of steps done -> the training batches that follow.
      validation: the validation batches.
      digests: function that returns the SHA-256 of the records by name of the data set.
      fingerprints: `records.fingerprint` of the records by name of the data set.
      summarize: sums of the evaluation step over all batches -> metrics by name.
      best: name of the metric that determines the best checkpoint, and 'max' or 'min'.
      images_per_step: number of compressed images in one training step.
      unguided_steps: number of steps to take with `steps.unguided_step`.
    """

    name: str
    steps: Steps
    ranker_variables: Any
    batches: Callable[[int], Iterator[dict]]
    validation: list[dict]
    digests: Callable[[], dict[str, str]]
    fingerprints: dict[str, str]
    summarize: Callable[[dict], dict[str, float]]
    best: tuple[str, str]
    images_per_step: int
    unguided_steps: int = 0


def ranker_steps(config: ml_collections.ConfigDict) -> Steps:
    """Returns the model and the steps of stage 1.

    Args:
      config: config of `configs/ranker.py`.
    """
    axis_name = runner.create(config.parallel).axis_name
    model = models.create(
        config.model,
        "ranker",
        axis_name=axis_name if config.sync_batch_norm else None,
        dtype=config.compute_dtype,
    )
    optimizer = state.create_optimizer(config.optimizer, config.steps)
    shared = {"apply": model.apply, "margin": config.margin, "axis_name": axis_name}
    train_step = functools.partial(
        steps.ranker_train_step,
        optimizer=optimizer,
        ema_decay=config.ema_decay,
        grad_accum_steps=config.grad_accum_steps,
        **shared,
    )
    eval_step = functools.partial(steps.ranker_eval_step, **shared)
    return Steps(model, optimizer, train_step, eval_step)


def deblock_steps(config: ml_collections.ConfigDict, ranker: nn.Module | None) -> Steps:
    """Returns the model and the steps of stage 2.

    Args:
      config: config of `configs/deblock.py`.
      ranker: the frozen ranker; None if no term of the loss needs it.
    """
    axis_name = runner.create(config.parallel).axis_name
    model = models.create(
        config.model, "deblocker", dtype=config.compute_dtype, remat=config.remat
    )
    optimizer = state.create_optimizer(config.optimizer, config.steps)
    apply = model.apply
    rank = ranker and ranker.clone(dtype=config.compute_dtype).apply
    if rank and config.feature_layers:
        rank = _restricted(rank, config.feature_layers)
    if models.channels(model) == 3:
        apply, rank = colour.on_rgb(apply), rank and colour.on_luma(rank)
    train_step = functools.partial(
        steps.deblock_train_step,
        apply=apply,
        rank=rank,
        optimizer=optimizer,
        ema_decay=config.ema_decay,
        grad_accum_steps=config.grad_accum_steps,
        axis_name=axis_name,
    )
    eval_step = functools.partial(
        steps.deblock_eval_step, apply=apply, axis_name=axis_name
    )
    terms = losses.weights(config.loss)
    guided = functools.partial(train_step, loss_weights=terms)
    unguided = None
    if losses.needs_ranker(config.loss):
        pixel = {name: x for name, x in terms.items() if name in losses.PIXEL}
        unguided = functools.partial(train_step, loss_weights=pixel)
    return Steps(model, optimizer, guided, eval_step, unguided)


def _restricted(rank: Callable, layers: Sequence[str]) -> Callable:
    """Returns a ranker that returns only the feature maps of these layers."""

    def restricted(variables, image):
        score, features = rank(variables, image)
        return score, {name: features[name] for name in layers}

    return restricted


def ranker_stage(config: ml_collections.ConfigDict) -> Stage:
    """Returns stage 1.

    Args:
      config: config of `configs/ranker.py`.

    Raises:
      UserError: if the records are missing or too small for the crops.
    """
    levels = level_ranges(config)

    def summarize(sums):
        count = sums["count"]
        return {"loss": sums["loss"] / count, "accuracy": sums["correct"] / count}

    return Stage(
        name="ranker",
        steps=ranker_steps(config),
        ranker_variables={},
        **_data(
            config,
            pipeline.pairs(config.patch, levels, augment=True),
            pipeline.pairs(config.validation.patch, levels, augment=False),
        ),
        summarize=summarize,
        best=("loss", "min"),
        images_per_step=2 * config.batch_size,
    )


def deblock_stage(
    config: ml_collections.ConfigDict, ranker: weights.Weights | None
) -> Stage:
    """Returns stage 2.

    Args:
      config: config of `configs/deblock.py`.
      ranker: weights of the frozen ranker; None if no term of the loss needs it.

    Raises:
      UserError: if the records are missing or too small for the crops.
    """
    examples: functools.partial[pipeline.Example]
    kind = kinds.COLOUR if config.degradation == "colour" else kinds.LADDER
    if config.degradation == "blind":
        names, margin = ["blind"], pipeline.BLIND_MARGIN
        examples = functools.partial(pipeline.blind, **config.blind)
        training = validation = examples
    elif config.degradation == "colour":
        cases = (10, 20, 30, 40, 80)
        names, margin = [*(f"q{quality}" for quality in cases), "mixed"], MARGIN
        mixture = Mixture(**config.colour)
        training = functools.partial(pipeline.colour, mixture=mixture)
        validation = functools.partial(training, cases=cases)
    else:
        names, margin = [f"q{quality}" for quality in config.qualities], 0
        examples = functools.partial(pipeline.ladders, qualities=config.qualities)
        training = functools.partial(examples, draws=config.qualities_per_crop)
        validation = examples

    def summarize(sums):
        results = {}
        for name, kind in (("psnr", "mse"), ("jpeg", "mse_jpeg")):
            values = [psnr_of_mse(x / sums["count"]) for x in sums[kind]]
            for case, value in zip(names, values, strict=True):
                results[f"{name}_{case}"] = value
            results[name] = sum(values) / len(values)
        return results

    guided = config.guided_steps or config.steps
    return Stage(
        name="deblocker",
        steps=deblock_steps(config, ranker.model if ranker else None),
        unguided_steps=config.steps - guided if ranker else 0,
        ranker_variables=ranker.variables if ranker else {},
        **_data(
            config,
            training(patch=config.patch, augment=True),
            validation(patch=config.validation.patch, augment=False),
            margin,
            kind,
        ),
        summarize=summarize,
        best=("psnr", "max"),
        images_per_step=config.batch_size * (config.qualities_per_crop or len(names)),
    )


def _data(
    config: ml_collections.ConfigDict,
    training: pipeline.Example,
    validation: pipeline.Example,
    margin: int = 0,
    kind: str = kinds.LADDER,
) -> dict:
    """Returns `batches`, `validation`, `digests` and `fingerprints` of a stage.

    Args:
      config: config of the stage.
      training, validation: functions that make the examples from records.
      margin: pixels that an example needs beyond its patch, on both sides together.
      kind: kind of the records, one of `kinds.KINDS`.
    """
    name, data_dir = config.data.name, config.data.data_dir
    side = max(config.patch, config.validation.patch) + margin
    builder = pipeline.open_records(data_dir, name, side, kind)
    sizes = {name: config.batch_size}
    builders = {name: builder}
    if kind == kinds.COLOUR and config.data.gray_name:
        gray = config.data.gray_name
        builders[gray] = pipeline.open_records(data_dir, gray, side, kind)
        sizes = {name: config.batch_size - config.data.gray_crops}
        sizes[gray] = config.data.gray_crops
    process = {
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }

    def batches(first_step):
        streams = [
            pipeline.training_batches(
                builders[name],
                training,
                batch_size=size,
                seed=config.seed,
                stream=number,
                first_step=first_step,
                **process,
            )
            for number, (name, size) in enumerate(sizes.items())
        ]
        return pipeline.joined(streams) if len(streams) > 1 else streams[0]

    held_out = pipeline.validation_batches(
        builder,
        validation,
        examples=config.validation.examples,
        batch_size=config.validation.batch_size,
        seed=_VALIDATION_SEED,
        **process,
    )

    def digests():
        return {name: records.digest(data_dir, name, kind) for name in builders}

    return {
        "batches": batches,
        "validation": held_out,
        "digests": digests,
        "fingerprints": {
            name: records.fingerprint(data_dir, name, kind) for name in builders
        },
    }
