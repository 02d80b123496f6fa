"""One training loop for both stages, and what each stage puts into it."""

import functools
import json
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import optax
import tensorflow as tf
from flax import linen as nn

from cqr_jax import (
    checkpoint,
    evaluate,
    files,
    metrics,
    parallel,
    state,
    steps,
    weights,
)
from cqr_jax.config import level_ranges
from cqr_jax.data import pipeline, records
from cqr_jax.errors import UserError
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.models.ranker import Ranker
from data_prep.build import build

_log = logging.getLogger(__name__)

DEBLOCKER_FILE = "deblocker.safetensors"  # in the workdir of a finished stage 2

# Fields that a resumed run may change: they don't touch what is learned.
_FREE_FIELDS = ("log_every", "keep", "parallel", "evaluation", "workdir", "data_dir")


class Stage(NamedTuple):
    """What differs between the two stages.

    Attributes:
      name: 'ranker' or 'deblocker', also of the weights file.
      model: the module that is trained.
      optimizer: that `train_step` moves it with.
      train_step, eval_step: of `cqr_jax.steps`, all but the arrays bound.
      frozen: variables that both steps are given; see `cqr_jax.steps`.
      batches: first step -> the training batches from there on.
      validation: the validation batches.
      summarize: the summed results of `eval_step` -> named figures.
      best: name and mode ('max' or 'min') of the figure that tells the best.
      images_per_step: compressed images that one training step sees.
    """

    name: str
    model: nn.Module
    optimizer: optax.GradientTransformation
    train_step: Callable
    eval_step: Callable
    frozen: Any
    batches: Callable[[int], Iterator[dict]]
    validation: list[dict]
    summarize: Callable[[dict], dict[str, float]]
    best: tuple[str, str]
    images_per_step: int


def train_ranker(config: ml_collections.ConfigDict) -> pathlib.Path:
    """Stage 1. Returns the path of the ranker's weights.

    Args:
      config: as `configs/ranker.py` makes it.
    """
    path = pathlib.Path(config.workdir) / "ranker.safetensors"
    return _run(config, path, ranker_stage)


def train_deblocker(config: ml_collections.ConfigDict) -> pathlib.Path:
    """Stage 2, after stage 1 if it needs a ranker and none is given or trained.

    Evaluates the weights on `config.evaluation.sets`, if any.

    Args:
      config: as `configs/deblock.py` makes it.

    Returns:
      The path of the deblocker's weights.
    """
    ranker = None
    if config.loss.alpha or config.loss.beta:
        path = config.ranker_weights or train_ranker(config.ranker)
        fields = config.ranker.model.to_dict()
        ranker = weights.load(path, "ranker", fields)
    path = pathlib.Path(config.workdir) / DEBLOCKER_FILE
    path = _run(config, path, functools.partial(deblock_stage, ranker=ranker))
    if config.evaluation.sets:
        evaluate.table2(config.evaluation, config.workdir, [str(path)])
    return path


def ranker_stage(config: ml_collections.ConfigDict) -> Stage:
    """Stage 1 of `config`; opens its records."""
    axis_name = parallel.axis_name(config.parallel)
    model = Ranker(**config.model, axis_name=axis_name)
    optimizer = state.create_optimizer(config.optimizer, config.steps)
    shared = {"apply": model.apply, "margin": config.margin, "axis_name": axis_name}
    levels = level_ranges(config)

    def summarize(sums):
        count = sums["count"]
        return {"loss": sums["loss"] / count, "accuracy": sums["correct"] / count}

    return Stage(
        name="ranker",
        model=model,
        optimizer=optimizer,
        train_step=functools.partial(
            steps.ranker_train_step,
            optimizer=optimizer,
            ema_decay=config.ema_decay,
            **shared,
        ),
        eval_step=functools.partial(steps.ranker_eval_step, **shared),
        frozen={},
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
    """Stage 2 of `config`, guided by `ranker` (None without alpha and beta)."""
    axis_name = parallel.axis_name(config.parallel)
    model = Deblocker(**config.model)
    draws = config.qualities_per_crop
    optimizer = state.create_optimizer(config.optimizer, config.steps)

    def summarize(sums):
        results = {}
        for name, kind in (("psnr", "mse"), ("jpeg", "mse_jpeg")):
            values = [metrics.psnr_of_mse(x / sums["count"]) for x in sums[kind]]
            for quality, value in zip(config.qualities, values, strict=True):
                results[f"{name}_q{quality}"] = value
            results[name] = sum(values) / len(values)
        return results

    return Stage(
        name="deblocker",
        model=model,
        optimizer=optimizer,
        train_step=functools.partial(
            steps.deblock_train_step,
            apply=model.apply,
            rank=ranker.model.apply if ranker else None,
            optimizer=optimizer,
            alpha=config.loss.alpha,
            beta=config.loss.beta,
            ema_decay=config.ema_decay,
            axis_name=axis_name,
        ),
        eval_step=functools.partial(
            steps.deblock_eval_step, apply=model.apply, axis_name=axis_name
        ),
        frozen=ranker.variables if ranker else {},
        **_data(
            config,
            pipeline.ladders(config.patch, config.qualities, augment=True, draws=draws),
            pipeline.ladders(config.validation.patch, config.qualities, augment=False),
        ),
        summarize=summarize,
        best=("psnr", "max"),
        images_per_step=config.batch_size * (draws or len(config.qualities)),
    )


def _data(
    config: ml_collections.ConfigDict,
    training: pipeline.Example,
    validation: pipeline.Example,
) -> dict:
    """The `batches` and `validation` of a stage; makes the records that it can."""
    name, data_dir = config.data.name, config.data.data_dir
    if name in ("div2k", "embedded") and not records.exists(data_dir, name):
        build(name, data_dir)
    builder = pipeline.open_records(
        data_dir, name, config.patch, config.validation.patch
    )
    process = {
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }

    def batches(first_step):
        return pipeline.training_batches(
            builder,
            training,
            batch_size=config.batch_size,
            seed=config.seed,
            first_step=first_step,
            **process,
        )

    held_out = pipeline.validation_batches(
        builder,
        validation,
        examples=config.validation.examples,
        batch_size=config.validation.batch_size,
        seed=config.seed,
        **process,
    )
    return {"batches": batches, "validation": held_out}


def _run(
    config: ml_collections.ConfigDict,
    path: pathlib.Path,
    make_stage: Callable[[ml_collections.ConfigDict], Stage],
) -> pathlib.Path:
    """Trains a stage up to `config.steps`, from where its workdir stands.

    Weights are initialised from the latest checkpoint of the workdir if there is one,
    else from `config.seed`.
    """
    parallel.check_batch(config.batch_size, "batch_size")
    parallel.check_batch(config.validation.batch_size, "validation.batch_size")
    stage = make_stage(config)
    manager = checkpoint.open_manager(config.workdir, config.keep, *stage.best)
    with manager:
        train_state = state.create(
            stage.model, config.patch, stage.optimizer, config.seed
        )
        latest = manager.latest_step()
        _keep_config(config, resuming=latest is not None)
        if latest is not None:
            _log.info("%s: resuming at step %d", stage.name, latest)
            train_state = checkpoint.restore(manager, train_state, latest)
        else:
            count = sum(x.size for x in jax.tree.leaves(train_state.params))
            _log.info("%s: %s parameters", stage.name, f"{count:,}")
        if (latest or 0) < config.steps:
            train_state = _loop(config, stage, manager, train_state)
        manager.wait_until_finished()
        best = manager.best_step()
        figures = manager.metrics(best)
        best_state = checkpoint.restore(manager, train_state, best)
    provenance = {
        "step": best,
        "validation": figures,
        "config": json.loads(config.to_json()),
    }
    fields = config.model.to_dict()
    weights.save(path, stage.name, fields, best_state.variables(), provenance)
    _log.info("%s: weights of step %d in %s", stage.name, best, path)
    return path


def _keep_config(config: ml_collections.ConfigDict, resuming: bool) -> None:
    """Writes the config to the workdir; refuses to resume under another one."""
    path = pathlib.Path(config.workdir) / "config.json"
    text = config.to_json(indent=2) + "\n"
    if resuming and path.is_file():
        ours, theirs = (_learned(json.loads(x)) for x in (text, path.read_text()))
        for field in sorted(ours.keys() | theirs.keys()):
            if ours.get(field) != theirs.get(field):
                raise UserError(
                    f"{config.workdir}: was begun with {field}={theirs.get(field)}, "
                    f"now {ours.get(field)}; choose another config.workdir"
                )
    files.write(path, text)


def _learned(fields: dict, prefix: str = "") -> dict:
    """The fields that bear on what is learned, by their full names."""
    found = {}
    for name, value in fields.items():
        if name in _FREE_FIELDS:
            continue
        if isinstance(value, dict):
            found.update(_learned(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def _loop(
    config: ml_collections.ConfigDict,
    stage: Stage,
    manager,
    train_state: state.TrainState,
) -> state.TrainState:
    """Runs the steps that remain; returns the last state."""
    mode = config.parallel
    train_step = parallel.compile_train_step(stage.train_step, mode)
    eval_step = parallel.compile_eval_step(stage.eval_step, mode)
    frozen = parallel.replicate(stage.frozen, mode)
    first = int(train_state.step)
    train_state = parallel.replicate(train_state, mode)
    batches = (parallel.split(batch, mode) for batch in stage.batches(first))
    writer = tf.summary.create_file_writer(str(pathlib.Path(config.workdir) / "logs"))
    clock = _Clock(config.steps, stage.images_per_step)
    pending: list[tuple[int, dict]] = []  # metrics still on the devices

    def check_finite(what, value, step):
        if not np.isfinite(value):
            raise UserError(
                f"{config.workdir}: the {what} became {value} at step {step}; in a new "
                "workdir, lower optimizer.learning_rate or set optimizer.clip_norm"
            )

    def flush():
        for step, figures in jax.device_get(pending):
            check_finite("loss", np.ravel(figures["loss"])[0], step)
        pending.clear()
        return {name: float(np.ravel(x)[0]) for name, x in figures.items()}

    def report(step, prefix, figures):
        if jax.process_index():
            return
        with writer.as_default(step=step):
            for name, value in figures.items():
                tf.summary.scalar(f"{prefix}/{name}", value)

    with _Interrupts() as interrupts:
        for step in range(first + 1, config.steps + 1):
            train_state, figures = train_step(train_state, frozen, next(batches))
            pending.append((step, figures))
            if step == first + 1:
                jax.block_until_ready(figures)
                clock.mark(step)
            last = step == config.steps
            validate = last or step % config.validate_every == 0
            if validate or step % config.log_every == 0 or interrupts.caught:
                figures = flush()
                speed, left = clock.read(step)
                clock.mark(step)
                report(step, "train", {**figures, "images_per_second": speed})
                _log.info(
                    "%s %d/%d  %s  %.0f images/s  %s left",
                    stage.name,
                    step,
                    config.steps,
                    _format(figures),
                    speed,
                    left,
                )
            if validate:
                figures = _validate(stage, eval_step, train_state, frozen, mode)
                name, _ = stage.best
                check_finite(f"validation {name}", figures[name], step)
                report(step, "validation", figures)
                _log.info("%s validation  %s", stage.name, _format(figures))
                checkpoint.save(
                    manager, parallel.unreplicate(train_state, mode), figures
                )
                clock.mark(step)
            if interrupts.caught:
                checkpoint.save(manager, parallel.unreplicate(train_state, mode))
                manager.wait_until_finished()
                writer.close()
                _log.info("%s: stopped at step %d, saved", stage.name, step)
                raise SystemExit(128 + interrupts.caught)
    writer.close()
    return parallel.unreplicate(train_state, mode)


def _validate(stage, eval_step, train_state, frozen, mode) -> dict[str, float]:
    """Adds up the sums of all validation batches, then divides."""
    variables = train_state.variables()
    sums = [
        eval_step(variables, frozen, parallel.split(batch, mode))
        for batch in stage.validation
    ]
    sums = jax.device_get([parallel.unreplicate(x, mode) for x in sums])
    total = jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=np.float64), *sums)
    return {name: float(x) for name, x in stage.summarize(total).items()}


def _format(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


class _Clock:
    """Speed in images per second since the last mark, and the time left.

    The clock starts with the first `mark`: what is before it is compilation.
    """

    def __init__(self, steps: int, images_per_step: int):
        self._steps, self._images = steps, images_per_step
        self._begin = self._last = (-1, 0.0)

    def mark(self, step: int) -> None:
        """Begins a stretch of training after `step`, as at a validation's end."""
        self._last = (step, time.perf_counter())
        if self._begin[0] < 0:
            self._begin = self._last

    def read(self, step: int) -> tuple[float, str]:
        """Speed of the stretch up to `step`, and the time left for the other steps.

        The time left counts validations in; the speed does not.
        """
        now = time.perf_counter()
        steps, seconds = step - self._last[0], now - self._last[1]
        speed = self._images * steps / seconds if steps else float("nan")
        done, elapsed = step - self._begin[0], now - self._begin[1]
        if not done:
            return speed, "?"
        left = round(elapsed / done * (self._steps - step))
        return speed, f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"


class _Interrupts:
    """Notes SIGTERM and SIGINT, so that the loop can save and stop.

    Attributes:
      caught: the signal's number, 0 if none came.
    """

    def __enter__(self):
        self.caught = 0
        self._before = {
            number: signal.signal(number, self._note)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        return self

    def _note(self, number, frame):
        del frame
        self.caught = int(number)

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)
