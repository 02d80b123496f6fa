"""The training loop of both stages.

    from cqr_jax.training import loop
    path = loop.train_ranker(config)  # a config of configs/ranker.py

`cqr_jax.tasks` also makes missing records and evaluates the weights.
"""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import ml_collections
import numpy as np
from orbax.checkpoint import CheckpointManager

from cqr_jax import losses, weights
from cqr_jax.errors import UserError
from cqr_jax.training import checkpoint, distributed, runner, state
from cqr_jax.training.interrupts import Interrupts
from cqr_jax.training.reporter import Reporter
from cqr_jax.training.stages import Stage, deblock_stage, ranker_stage
from cqr_jax.training.start import check_start, initial_params, load_ranker
from cqr_jax.training.workdir import Workdir
from cqr_jax.weights import provenance

_log = logging.getLogger(__name__)

# Number of steps after which the processes exchange the signals that they received.
_AGREE_EVERY = 10

# Number of steps that are dispatched before the results of the first are awaited. A
# signal is answered only when the dispatched steps have run.
_AHEAD = 8


def train_ranker(
    config: ml_collections.ConfigDict, where: str = "config"
) -> pathlib.Path:
    """Trains the ranker (stage 1).

    Args:
      config: config of `configs/ranker.py`.
      where: prefix of the config's fields on the command line, for error messages.

    Returns:
      The path of the ranker's weights.

    Raises:
      UserError: if `check_start` finds a mistake, if the records or the working
        directory can't be used, or if the loss or the validation is not finite.
      SystemExit: if a signal stopped the run. The state is saved before.
    """
    return _run(config, "ranker", ranker_stage, where)


def train_deblocker(config: ml_collections.ConfigDict) -> pathlib.Path:
    """Trains the deblocker (stage 2).

    Trains the ranker first if the loss needs one and `config.ranker_weights` is empty.

    Args:
      config: config of `configs/deblock.py`.

    Returns:
      The path of the deblocker's weights.

    Raises:
      UserError, SystemExit: as in `train_ranker`, for both stages.
    """
    ranker = None
    check_start(config, "deblocker")  # fail before stage 1, which takes hours
    if losses.needs_ranker(config.loss):
        if not config.ranker_weights:
            check_workdir(config)
            deblock_stage(config, None)  # its records can be missing or too small
        path = config.ranker_weights or train_ranker(config.ranker, "config.ranker")
        ranker = load_ranker(config, path)
    stage = functools.partial(deblock_stage, ranker=ranker)
    return _run(config, "deblocker", stage, ranker=ranker)


def check_workdir(config: ml_collections.ConfigDict) -> None:
    """Checks that the deblocker's run in `config.workdir`, if any, has this config.

    Raises:
      UserError: if it was begun with another one.
    """
    workdir, latest = Workdir(config.workdir), checkpoint.latest_step(config.workdir)
    workdir.check_config(config, latest)
    if not distributed.all_reduce_max(latest is not None):
        workdir.is_finished(config, "deblocker")


def _run(
    config: ml_collections.ConfigDict,
    kind: str,
    make_stage: Callable[[ml_collections.ConfigDict], Stage],
    where: str = "config",
    ranker: weights.Weights | None = None,
) -> pathlib.Path:
    """Trains a stage up to `config.steps`, from the latest checkpoint if there is one.

    If no step is left, and the file holds the best weights already, the file stays as
    it is, because it names the commit and the data of its training. It also stays if
    the run has no checkpoints any more.

    Returns:
      The path of the weights.
    """
    initial = check_start(config, kind, where)
    commit = provenance.commit()  # before the files of the checkout change
    stage = make_stage(config)
    used = {"ranker": ranker, "initial weights": initial}
    digests = {k: weights.digest(x.variables) for k, x in used.items() if x}
    workdir = Workdir(config.workdir, where)
    path = workdir.path / weights.file_name(kind)
    checkpoints = checkpoint.open_manager(config.workdir, config.keep, *stage.best)
    # Closing the manager waits for the other processes, so a failed one exits before.
    with (
        workdir.lock(),
        checkpoints as manager,
        distributed.exit_without_barrier(),
    ):
        latest = manager.latest_step()
        none = not distributed.all_reduce_max(latest is not None)
        if none and workdir.is_finished(config, kind):
            workdir.check_inputs(stage.fingerprints, digests)
            _log.info("%s: finished, its weights are in %s", stage.name, path)
            return path
        workdir.keep(config, stage.fingerprints, latest, digests)
        workdir.check_shared()
        train_state = _start(config, stage, manager, initial)
        finished = train_state.step >= config.steps
        if finished and _holds(path, kind, *_best(config, manager)):
            return path
        data = stage.digests()  # before the records change
        if not finished:
            train_state = train(config, stage, manager, train_state, workdir)
        best, metrics = _best(config, manager)
        best_state = checkpoint.restore(manager, train_state, best)
    made = {
        "step": best,
        "validation": metrics,
        "curve": workdir.read_curve(config.steps),
        "config": json.loads(config.to_json()),
        "commit": commit,
        "data": data,
        "ranker": digests.get("ranker", ""),
        "earlier": provenance.trainings(initial.provenance) if initial else [],
    }
    if jax.process_index() == 0:
        fields = config.model.to_dict()
        weights.save(path, kind, fields, best_state.variables(), made)
    distributed.barrier("weights")
    _log.info("%s: weights of step %d in %s", stage.name, best, path)
    return path


def _best(
    config: ml_collections.ConfigDict, manager: CheckpointManager
) -> tuple[int, dict]:
    """Returns the step of the best validation, and its metrics.

    Raises:
      UserError: if there is no validation yet.
    """
    best = manager.best_step()
    if best is None:
        raise UserError(
            f"{config.workdir}: has no validation yet, so there are no best weights; "
            f"train on until step {config.validate_every}"
        )
    return best, manager.metrics(best)


def _holds(path: pathlib.Path, kind: str, step: int, metrics: dict) -> bool:
    """Returns whether a file holds the weights of this step and validation already."""
    try:
        made = weights.header(path, kind).provenance
    except UserError:
        return False
    return (made.get("step"), made.get("validation")) == (step, metrics)


def _start(
    config: ml_collections.ConfigDict,
    stage: Stage,
    manager: CheckpointManager,
    initial: weights.Weights | None,
) -> state.TrainState:
    """Returns the state to start from.

    The state is that of the latest checkpoint, if there is one. Otherwise it is a new
    state with the initial weights or, if there are none, with random weights.
    """
    model, optimizer = stage.steps.model, stage.steps.optimizer
    fresh = jax.device_get(state.create(model, config.patch, optimizer, config.seed))
    latest = manager.latest_step()
    if latest is not None:
        done = latest >= config.steps
        words = "has all its steps, up to" if done else "resuming at step"
        _log.info("%s: %s %d", stage.name, words, latest)
        return checkpoint.restore(manager, fresh, latest)
    if initial:
        params = initial_params(config, fresh.params, initial.variables["params"])
        fresh = dataclasses.replace(
            fresh,
            params=params,
            batch_stats=initial.variables["batch_stats"],
            ema_params=jax.tree.map(np.copy, params),
        )
    count = sum(x.size for x in jax.tree.leaves(fresh.params))
    _log.info("%s: %s parameters", stage.name, f"{count:,}")
    return fresh


def train(
    config: ml_collections.ConfigDict,
    stage: Stage,
    manager: CheckpointManager,
    train_state: state.TrainState,
    workdir: Workdir,
) -> state.TrainState:
    """Runs the remaining steps.

    Args:
      config: config of the stage.
      stage: the stage.
      manager: checkpoint manager of `checkpoint.open_manager`.
      train_state: state to start from.
      workdir: folder of the run.

    Returns:
      The state after the last step, as NumPy arrays. All checkpoints are written.

    Raises:
      UserError: if the loss or the validation metric is not finite.
      SystemExit: if a signal stopped the run. The state is saved before.
    """
    run = runner.create(config.parallel)
    train_step = run.compile_train_step(stage.steps.train_step)
    unguided_step = train_step
    if stage.unguided_steps:
        assert stage.steps.unguided_step is not None
        unguided_step = run.compile_train_step(stage.steps.unguided_step)
    validate = _compile_validation(run, stage)
    ranker_variables = run.replicate(stage.ranker_variables)
    first = int(train_state.step) + 1
    batches = map(run.shard_batch, stage.batches(first - 1))
    train_state = run.replicate(train_state)
    history = workdir.history(first - 1)
    pending = _PendingMetrics(config.workdir)
    reporter = Reporter(config.workdir, stage.name, config.steps, stage.images_per_step)
    with Interrupts() as interrupts, reporter:
        for step in range(first, config.steps + 1):
            batch = next(batches)
            take = unguided_step if step <= stage.unguided_steps else train_step
            compiles = step in (first, stage.unguided_steps + 1)
            if compiles:
                _log.info("%s: compiling the training step", stage.name)
            train_state, metrics = take(train_state, ranker_variables, batch)
            pending.append(step, metrics)
            if compiles:
                jax.block_until_ready(metrics)
                reporter.clock.restart(step)
            last = step == config.steps
            stop = _agree_to_stop(interrupts.caught, step)
            due = last or step % config.validate_every == 0
            if due or step % config.log_every == 0 or stop:
                reporter.training(step, pending.flush())
                checkpoint.check(manager)
            if due:
                metrics = validate(train_state, ranker_variables)
                _check_finite(config.workdir, stage.best[0], metrics, step)
                reporter.validation(step, metrics)
                history.keep_validation(step, metrics)
                # Guided steps reduce the PSNR. After unguided ones, the best weights
                # are therefore the last.
                rated = metrics if last or not stage.unguided_steps else None
                checkpoint.save(manager, run.unreplicate(train_state), rated)
                reporter.clock.mark(step)
            if last:
                checkpoint.wait(manager)  # a signal must not interrupt the last save
                # A signal may have arrived during the validation.
                stop = distributed.all_reduce_max(interrupts.caught)
            if stop:
                checkpoint.save(manager, run.unreplicate(train_state))
                checkpoint.wait(manager)
                history.keep_stop(step)
                _exit_stopped(stage.name, step, stop)
    return run.unreplicate(train_state)


def _exit_stopped(name: str, step: int, signal: int) -> NoReturn:
    _log.info("%s: stopped at step %d, saved", name, step)
    raise SystemExit(128 + signal)


def _agree_to_stop(caught: int, step: int) -> int:
    """Returns the signal that stops the run at this step, or 0.

    All processes must stop at the same step. Otherwise they would wait for each other.
    """
    if jax.process_count() == 1:
        return caught
    return 0 if step % _AGREE_EVERY else distributed.all_reduce_max(caught)


def _compile_validation(run: runner.Runner, stage: Stage) -> Callable[..., dict]:
    """Returns (train_state, ranker_variables) -> metrics of all validation batches."""
    eval_step = run.compile_eval_step(stage.steps.eval_step)

    def validate(train_state: state.TrainState, ranker_variables: Any) -> dict:
        variables = train_state.variables()
        sums = [
            eval_step(variables, ranker_variables, run.shard_batch(batch))
            for batch in stage.validation
        ]
        sums = run.unreplicate(sums)
        total = jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=np.float64), *sums)
        return {name: float(x) for name, x in stage.summarize(total).items()}

    return validate


class _PendingMetrics:
    """Metrics of training steps that are still on the devices."""

    def __init__(self, workdir: str):
        self._workdir = workdir
        self._pending: list[tuple[int, dict]] = []

    def append(self, step: int, metrics: dict) -> None:
        self._pending.append((step, metrics))
        if len(self._pending) > _AHEAD:
            jax.block_until_ready(self._pending[-1 - _AHEAD])

    def flush(self) -> dict[str, float]:
        """Checks that all losses are finite; returns the metrics of the last step."""
        for step, metrics in jax.device_get(self._pending):
            scalars = {name: float(np.ravel(x)[0]) for name, x in metrics.items()}
            _check_finite(self._workdir, "loss", scalars, step, "loss")
        self._pending.clear()
        return scalars


def _check_finite(
    workdir: str, name: str, metrics: dict[str, float], step: int, what: str = ""
) -> None:
    if not np.isfinite(metrics[name]):
        raise UserError(
            f"{workdir}: the {what or f'validation {name}'} became {metrics[name]} at "
            f"step {step}; in a new workdir, lower optimizer.learning_rate or set "
            "optimizer.clip_norm"
        )
