"""The folder of a training run: its lock, its config, its curve and its stop file."""

import contextlib
import csv
import json
import logging
import pathlib
import time
import zlib

import jax
import ml_collections

from cqr_jax import files, losses, models, tables, weights
from cqr_jax.errors import UserError
from cqr_jax.training import distributed

_log = logging.getLogger(__name__)

CURVE_FILE = "validation.csv"  # hours and metrics at each validation
_CONFIG_FILE = "config.json"
_STOPPED_FILE = "stopped.json"  # step and hours of the latest stop
_RECORDS_FILE = "records.json"  # fingerprint of the records of each data set
_WEIGHTS_FILE = "weights.json"  # digests of the ranker and of the initial weights

# Fields that a resumed run may change, since they do not affect what is learned.
_FREE_FIELDS = (
    "data_dir",
    "evaluation",
    "keep",
    "log_every",
    "parallel",
    "remat",
    "task",  # missing in the ranker's config within configs/deblock.py
    "workdir",
)

# Fields that have no effect before `_constant_until`.
_LENGTH_FIELDS = ("steps", "guided_steps", "optimizer.decay_steps")


class Workdir:
    """The folder of a training run.

    Attributes:
      path: path of the folder.
    """

    def __init__(self, path: str, where: str = "config"):
        """Names the folder, without touching it.

        Args:
          path: path of the folder.
          where: prefix of the config's fields on the command line, for error messages.
        """
        self.path = pathlib.Path(path)
        self._where = where

    def lock(self) -> contextlib.AbstractContextManager:
        """Locks the folder until the returned context is closed.

        If another run holds the lock, this waits for it: that run may be training the
        ranker that both need. File systems without locks are not locked.

        Raises:
          UserError: if another run holds the lock and this run has several processes.
        """
        if jax.process_index():
            return contextlib.nullcontext()
        path = self.path / ".lock"

        def on_wait():
            if jax.process_count() > 1:  # the other processes would time out
                with distributed.exit_without_barrier():
                    raise UserError(
                        f"{self.path}: another run is training there ({path} is "
                        "locked); wait until it ends, or choose another "
                        f"{self._where}.workdir"
                    )
            _log.info(
                "%s: waiting for the run that is training there to end", self.path
            )

        return files.lock(path, on_wait)

    def check_config(
        self, config: ml_collections.ConfigDict, latest: int | None
    ) -> None:
        """Checks that a run with this config can resume here. Writes nothing.

        Args:
          config: config of the run.
          latest: step of the checkpoint to resume from; None if there is none.

        Raises:
          UserError: if the run to resume was started with another config. The number
            of steps may change as long as no step so far depends on it.
        """
        path = self.path / _CONFIG_FILE
        if latest is None or not path.is_file():
            return
        other = _difference(config, json.loads(path.read_text()), latest)
        if other:
            raise UserError(
                f"{self.path}: was begun with {other}; choose another "
                f"{self._where}.workdir"
            )

    def is_finished(self, config: ml_collections.ConfigDict, kind: str) -> bool:
        """Returns whether the folder holds the weights of a finished run.

        All processes of a run call this, if the folder has no checkpoint.

        Args:
          config: config of the run.
          kind: 'ranker' or 'deblocker'.

        Raises:
          UserError: if the weights are those of another run, or if only some processes
            see them.
        """
        path = self.path / weights.file_name(kind)
        if not distributed.agreed(path.exists()):
            raise self._not_shared()
        if not path.exists():
            return False
        made = weights.header(path, kind).provenance.get("config")
        other = _difference(config, made, None) if made else "an unknown config"
        if other:
            raise UserError(
                f"{path}: was trained with {other}, and its checkpoints are gone; "
                f"choose another {self._where}.workdir, or remove the file"
            )
        return True

    def check_inputs(
        self, fingerprints: dict[str, str], digests: dict[str, str]
    ) -> None:
        """Checks that the run in the folder was begun with these inputs.

        Args:
          fingerprints, digests: as in `keep`.

        Raises:
          UserError: if it was begun with others.
        """
        if name := self._changed(_RECORDS_FILE, fingerprints):
            raise UserError(
                f"{self.path}: was begun with other records of the data set {name}; "
                f"make those again, or choose another {self._where}.workdir"
            )
        if name := self._changed(_WEIGHTS_FILE, digests):
            raise UserError(
                f"{self.path}: was begun with another file of weights ({name}); "
                f"restore that file, or choose another {self._where}.workdir"
            )

    def keep(
        self,
        config: ml_collections.ConfigDict,
        fingerprints: dict[str, str],
        latest: int | None,
        digests: dict[str, str],
    ) -> None:
        """Writes the config and what identifies records and weights to the folder.

        All processes of a run call this.

        Args:
          config: config of the run.
          fingerprints: `records.fingerprint` by name of the data set.
          latest: step of the checkpoint to resume from; None if there is none.
          digests: `weights.digest` of the weights that the run uses, by their name.

        Raises:
          UserError: as in `check_config`, if the run to resume was started with other
            records or weights, or if the processes have different configs, records,
            weights or checkpoints.
        """
        self.check_config(config, latest)
        if latest is not None:
            self.check_inputs(fingerprints, digests)
        fields = learned(_fields(config))
        described = json.dumps([latest, fingerprints, digests, fields], sort_keys=True)
        if not distributed.agreed(zlib.crc32(described.encode()) & 0x7FFFFFFF):
            raise UserError(
                "the processes have different configs, records, weights or "
                "checkpoints; start all with the same command, and a "
                f"{self._where}.workdir that they share"
            )
        if jax.process_index() == 0:
            files.write(self.path / _CONFIG_FILE, config.to_json(indent=2) + "\n")
            for name, found in (
                (_RECORDS_FILE, fingerprints),
                (_WEIGHTS_FILE, digests),
            ):
                files.write(self.path / name, json.dumps(found, indent=2) + "\n")

    def _changed(self, file: str, found: dict[str, str]) -> str | None:
        """Returns the first name whose value differs from that in a file, or None."""
        path = self.path / file
        before = json.loads(path.read_text()) if path.is_file() else {}
        return next((k for k, v in found.items() if before.get(k, v) != v), None)

    def check_shared(self) -> None:
        """Checks that all processes see the config that the first one wrote.

        Raises:
          UserError: if a process does not see it.
        """
        distributed.barrier("config")
        if distributed.all_reduce_max(not (self.path / _CONFIG_FILE).is_file()):
            raise self._not_shared()

    def _not_shared(self) -> UserError:
        return UserError(
            f"{self.path}: not all processes see this folder; choose a "
            f"{self._where}.workdir that they share"
        )

    def read_curve(self, last: int) -> list[dict]:
        """Returns the rows of `CURVE_FILE` up to the step `last`.

        A row holds the step, the hours of training and the validation metrics.
        """
        path = self.path / CURVE_FILE
        if not path.is_file():
            return []
        rows = [
            {name: float(value) for name, value in row.items()}
            for row in csv.DictReader(path.read_text().splitlines())
        ]
        return [
            {**row, "step": int(row["step"])} for row in rows if row["step"] <= last
        ]

    def history(self, step: int) -> "History":
        """Returns the history of the run, which starts or resumes at `step`."""
        return History(self, step)


class History:
    """The validation curve and the hours of training of a run, across restarts."""

    def __init__(self, workdir: Workdir, step: int):
        self._path = workdir.path
        self._curve = workdir.read_curve(step)
        self._before, self._begin = self._hours_before(step), time.perf_counter()

    def hours(self) -> float:
        """Returns the hours of training so far, including those before a restart."""
        return round(self._before + (time.perf_counter() - self._begin) / 3600, 4)

    def keep_validation(self, step: int, metrics: dict[str, float]) -> None:
        """Adds a validation to the curve and writes it."""
        self._curve.append({"step": step, "hours": self.hours(), **metrics})
        if jax.process_index() == 0:
            files.write(self._path / CURVE_FILE, tables.to_csv(self._curve))

    def keep_stop(self, step: int) -> None:
        """Writes the step and the hours at which a signal stopped the run."""
        if jax.process_index() == 0:
            stopped = json.dumps({"step": step, "hours": self.hours()})
            files.write(self._path / _STOPPED_FILE, stopped)

    def _hours_before(self, step: int) -> float:
        path = self._path / _STOPPED_FILE
        stopped = json.loads(path.read_text()) if path.is_file() else {"step": -1}
        if stopped["step"] == step:
            return stopped["hours"]
        return self._curve[-1]["hours"] if self._curve else 0.0


def _difference(
    config: ml_collections.ConfigDict, old: dict, latest: int | None
) -> str | None:
    """Returns the fields that affect learning and differ, with both values.

    Args:
      config: config of the run.
      old: fields of the other config.
      latest: step up to which the runs must be equal; None for all steps.
    """
    ours, theirs = learned(_fields(config)), learned(old)
    defaults = _model_defaults(config)
    for field, value in ours.items():
        # Fields that older runs lack change nothing if they are zero or empty, or the
        # model's default.
        if not value or value == defaults.get(field):
            theirs.setdefault(field, value)
    if latest is not None and latest <= min(map(_constant_until, (ours, theirs))):
        for field in ours.keys() & set(_LENGTH_FIELDS):
            # With guided_steps=0, the ranker guides from the first step on.
            if field != "guided_steps" or (ours[field] and theirs.get(field)):
                theirs[field] = ours[field]
    fields = sorted(ours.keys() | theirs.keys())
    differing = [x for x in fields if ours.get(x) != theirs.get(x)]
    if not differing:
        return None
    words = "; ".join(
        f"{x}={theirs.get(x)}, now {ours.get(x, 'unknown')}" for x in differing
    )
    if latest is not None and set(differing) <= set(_LENGTH_FIELDS):
        words += " (with these values, the steps so far would not be the same)"
    return words


def _constant_until(fields: dict) -> int:
    """Returns the last step that does not depend on the number of steps.

    Returns -1 if all steps depend on it, because their learning rate does.
    """
    schedule = fields.get("optimizer.schedule")
    if schedule not in ("stable_decay", "step_decay"):
        return -1
    decay = fields["optimizer.decay_steps"] if schedule == "stable_decay" else 0
    guided = any(fields.get(f"loss.{x}") for x in ("alpha", "beta", *losses.RANKED))
    final = max(decay, fields.get("guided_steps", 0) if guided else 0)
    return fields["steps"] - final


def _model_defaults(config: ml_collections.ConfigDict) -> dict:
    """Returns the default of each field of the models, by their full names."""
    named = {"model": config.model}
    if "ranker" in config:
        named["ranker.model"] = config.ranker.model
    return {
        f"{where}.{field}": default
        for where, model in named.items()
        for field, default in models.defaults(model.name).items()
    }


def _fields(config: ml_collections.ConfigDict) -> dict:
    """Returns the fields of a config with the types that they have in its file."""
    return json.loads(config.to_json())


def learned(fields: dict, prefix: str = "") -> dict:
    """Returns the fields that affect what is learned, by their full names."""
    found = {}
    for name, value in fields.items():
        if name in _FREE_FIELDS:
            continue
        if isinstance(value, dict):
            found.update(learned(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found
