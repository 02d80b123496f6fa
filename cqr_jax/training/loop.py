"""One training loop for both stages."""

import contextlib
import csv
import dataclasses
import fcntl
import functools
import json
import logging
import pathlib
import signal
import time
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
import tensorflow as tf

from cqr_jax import files, tables, weights
from cqr_jax.errors import UserError
from cqr_jax.evaluation import table2
from cqr_jax.training import checkpoint, distributed, state
from cqr_jax.training.stages import Stage, deblock_stage, ranker_stage

_log = logging.getLogger(__name__)

CURVE_FILE = "validation.csv"  # in the workdir: hours and figures at each validation
_CONFIG_FILE = "config.json"  # in the workdir
_STOPPED_FILE = "stopped.json"  # in the workdir: step and hours of the latest stop

# Fields that a resumed run may change: they don't touch what is learned.
_FREE_FIELDS = (
    "data_dir",
    "evaluation",
    "keep",
    "log_every",
    "parallel",
    "remat",
    "task",  # which configs/deblock.py leaves out of its ranker's config
    "workdir",
)

# Steps between the processes' asking one another whether one was told to stop.
_AGREE_EVERY = 10


def train_ranker(
    config: ml_collections.ConfigDict, where: str = "config"
) -> pathlib.Path:
    """Stage 1. Returns the path of the ranker's weights.

    Args:
      config: as `configs/ranker.py` makes it.
      where: the fields are on the command line, for errors.
    """
    return _run(config, "ranker", ranker_stage, where)


def train_deblocker(config: ml_collections.ConfigDict) -> pathlib.Path:
    """Stage 2, after stage 1 if it needs a ranker and none is given or trained.

    Evaluates the weights on `config.evaluation.sets`, if any.

    Args:
      config: as `configs/deblock.py` makes it.

    Returns:
      The path of the deblocker's weights.
    """
    ranker = None
    check_start(config, "deblocker")  # before hours of stage 1
    if config.loss.alpha or config.loss.beta:
        path = config.ranker_weights or train_ranker(config.ranker, "config.ranker")
        fields = config.ranker.model.to_dict()
        ranker = weights.load(path, "ranker", fields)
    stage = functools.partial(deblock_stage, ranker=ranker)
    path = _run(config, "deblocker", stage)
    if config.evaluation.sets and jax.process_index() == 0:
        table2.table2(config.evaluation, config.workdir, [str(path)])
    return path


def _run(
    config: ml_collections.ConfigDict,
    kind: str,
    make_stage: Callable[[ml_collections.ConfigDict], Stage],
    where: str = "config",
) -> pathlib.Path:
    """Trains a stage up to `config.steps`, from where its workdir stands.

    Weights are initialised from the latest checkpoint of the workdir if there is one,
    else from `config.initial_weights` if given, else from `config.seed`.
    """
    initial = check_start(config, kind, where)
    stage = make_stage(config)
    checkpoints = checkpoint.open_manager(config.workdir, config.keep, *stage.best)
    # Closing the manager waits for the other processes.
    with (
        _only_run(config.workdir, where),
        checkpoints as manager,
        distributed.failing_alone(),
    ):
        model, optimizer = stage.steps.model, stage.steps.optimizer
        train_state = jax.device_get(
            state.create(model, config.patch, optimizer, config.seed)
        )
        latest = manager.latest_step()
        _keep_config(config, where, resuming=latest is not None)
        _check_shared(config.workdir, where)
        if latest is not None:
            _log.info("%s: resuming at step %d", stage.name, latest)
            train_state = checkpoint.restore(manager, train_state, latest)
        else:
            if initial:
                train_state = _begin_with(initial, train_state)
            count = sum(x.size for x in jax.tree.leaves(train_state.params))
            _log.info("%s: %s parameters", stage.name, f"{count:,}")
        if (latest or 0) < config.steps:
            train_state = _loop(config, stage, manager, train_state)
        checkpoint.wait(manager)
        best = manager.best_step()
        figures = manager.metrics(best)
        best_state = checkpoint.restore(manager, train_state, best)
    provenance = {
        "step": best,
        "validation": figures,
        "curve": _read_curve(config.workdir, config.steps),
        "initial": initial.provenance if initial else None,
        "config": json.loads(config.to_json()),
    }
    path = pathlib.Path(config.workdir) / weights.file_name(kind)
    if jax.process_index() == 0:
        fields = config.model.to_dict()
        weights.save(path, kind, fields, best_state.variables(), provenance)
    distributed.wait("weights")
    _log.info("%s: weights of step %d in %s", stage.name, best, path)
    return path


def _only_run(workdir: str, where: str) -> contextlib.AbstractContextManager:
    """Locks the workdir until it is closed; where there are no locks, it does nothing.

    Waits for a run that is there already: it may train the ranker that both need.

    Raises:
      UserError: one is there, and this one has several processes.
    """
    folder = pathlib.Path(workdir)
    if jax.process_index():
        return contextlib.nullcontext()
    with files.writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if jax.process_count() > 1:  # the others would lose patience
            lock.close()
            with distributed.failing_alone():
                raise UserError(
                    f"{workdir}: another run is training there, for {lock.name} is "
                    f"locked; wait for its end, or choose another {where}.workdir"
                ) from None
        _log.info("%s: waiting for the run that is training there to end", workdir)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        pass
    return lock


def _check_shared(workdir: str, where: str) -> None:
    """Whether all processes see what the first one wrote."""
    distributed.wait("config")
    if distributed.largest(not (pathlib.Path(workdir) / _CONFIG_FILE).is_file()):
        raise UserError(
            f"{workdir}: not all processes see this folder; choose a {where}.workdir "
            "that they share"
        )


def check_start(
    config: ml_collections.ConfigDict, kind: str, where: str = "config"
) -> weights.Weights | None:
    """Checks what a stage is given; its initial weights, if any.

    Args:
      config: of the stage.
      kind: 'ranker' or 'deblocker'.
      where: the fields are on the command line, for errors.

    Raises:
      UserError: a batch that devices and parts don't divide, or initial weights that
        can't be read or are of another model.
    """
    batch, validated = config.batch_size, config.validation.batch_size
    distributed.check_batch(batch, f"{where}.batch_size", config.accumulate)
    distributed.check_batch(validated, f"{where}.validation.batch_size")
    if not config.initial_weights:
        return None
    return weights.load(config.initial_weights, kind, config.model.to_dict())


def _begin_with(
    given: weights.Weights, train_state: state.TrainState
) -> state.TrainState:
    """A fresh state with the variables of weights."""
    params = given.variables["params"]
    return dataclasses.replace(
        train_state,
        params=params,
        batch_stats=given.variables["batch_stats"],
        average=jax.tree.map(np.copy, params),
    )


def _read_curve(workdir: str, last: int) -> list[dict]:
    """Rows of `CURVE_FILE` up to the step `last`: step, hours, validation figures."""
    path = pathlib.Path(workdir) / CURVE_FILE
    if not path.is_file():
        return []
    rows = [
        {name: float(value) for name, value in row.items()}
        for row in csv.DictReader(path.read_text().splitlines())
    ]
    return [{**row, "step": int(row["step"])} for row in rows if row["step"] <= last]


def _hours_before(workdir: str, curve: list[dict], step: int) -> float:
    """Hours of training up to `step`, at which a run goes on."""
    path = pathlib.Path(workdir) / _STOPPED_FILE
    stopped = json.loads(path.read_text()) if path.is_file() else {"step": -1}
    if stopped["step"] == step:
        return stopped["hours"]
    return curve[-1]["hours"] if curve else 0.0


def _keep_config(config: ml_collections.ConfigDict, where: str, resuming: bool) -> None:
    """Writes the config to the workdir; refuses to resume under another one."""
    path = pathlib.Path(config.workdir) / _CONFIG_FILE
    text = config.to_json(indent=2) + "\n"
    if resuming and path.is_file():
        ours, theirs = (_learned(json.loads(x)) for x in (text, path.read_text()))
        for field in sorted(ours.keys() | theirs.keys()):
            if ours.get(field) != theirs.get(field):
                raise UserError(
                    f"{config.workdir}: was begun with {field}={theirs.get(field)}, "
                    f"now {ours.get(field)}; choose another {where}.workdir"
                )
    if jax.process_index() == 0:
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
    train_step = distributed.compile_train_step(stage.steps.train_step, mode)
    eval_step = distributed.compile_eval_step(stage.steps.eval_step, mode)
    frozen = distributed.replicate(stage.frozen, mode)
    first = int(train_state.step)
    train_state = distributed.replicate(train_state, mode)
    batches = (distributed.split(batch, mode) for batch in stage.batches(first))
    if jax.process_index():
        writer = tf.summary.create_noop_writer()
    else:
        logs = pathlib.Path(config.workdir) / "logs"
        writer = tf.summary.create_file_writer(str(logs))
    clock = _Clock(config.steps, stage.images_per_step)
    curve = _read_curve(config.workdir, first)
    before, begin = _hours_before(config.workdir, curve, first), time.perf_counter()
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

    def hours():
        return round(before + (time.perf_counter() - begin) / 3600, 4)

    def keep_curve(step, figures):
        curve.append({"step": step, "hours": hours(), **figures})
        if jax.process_index() == 0:
            path = pathlib.Path(config.workdir) / CURVE_FILE
            files.write(path, tables.to_csv(curve))

    def report(step, prefix, figures):
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
            stop = interrupts.caught
            if jax.process_count() > 1:  # all at the same step, or they wait for ever
                stop = 0 if step % _AGREE_EVERY else distributed.largest(stop)
            last = step == config.steps
            validate = last or step % config.validate_every == 0
            if validate or step % config.log_every == 0 or stop:
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
                keep_curve(step, figures)
                _log.info("%s validation  %s", stage.name, _format(figures))
                checkpoint.save(manager, distributed.fetch(train_state, mode), figures)
                clock.mark(step)
            if last:  # also of what came while it was validated
                stop = distributed.largest(interrupts.caught)
            if stop:
                checkpoint.save(manager, distributed.fetch(train_state, mode))
                checkpoint.wait(manager)
                if jax.process_index() == 0:
                    stopped = json.dumps({"step": step, "hours": hours()})
                    files.write(pathlib.Path(config.workdir) / _STOPPED_FILE, stopped)
                writer.close()
                _log.info("%s: stopped at step %d, saved", stage.name, step)
                raise SystemExit(128 + stop)
    writer.close()
    return distributed.fetch(train_state, mode)


def _validate(stage, eval_step, train_state, frozen, mode) -> dict[str, float]:
    """Adds up the sums of all validation batches, then divides."""
    variables = train_state.variables()
    sums = [
        eval_step(variables, frozen, distributed.split(batch, mode))
        for batch in stage.validation
    ]
    sums = distributed.fetch(sums, mode)
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

    One that comes a second later or more (`timeout` sends two at once) is not waited
    for: it does what it does elsewhere.

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
        now = time.monotonic()
        if not self.caught:
            self.caught, self._since = int(number), now
        elif now - self._since > 1:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)
