"""Checkpoints of training. Only this module uses Orbax."""

import contextlib
import json
import logging
import os
import pathlib
import re
import secrets
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from cqr_jax import files
from cqr_jax.training import distributed
from cqr_jax.training.state import TrainState

_log = logging.getLogger(__name__)

# Files of a checkpoint that hold JSON. Orbax does not sync them to the disk, so a loss
# of power soon after a checkpoint can leave them empty.
_JSON_FILES = frozenset(("_CHECKPOINT_METADATA", "_METADATA", "metrics"))

# The end of an error of TensorStore, which writes the checkpoints: the message of the
# operating system and further fields.
_SYSTEMS = re.compile(r": ([^:\[]+) \[(tensorstore_spec|os_error_code)=")


def _is_of_use(record: logging.LogRecord) -> bool:
    """Drops Orbax's warning that the state of a stopped run has no metrics."""
    return "did not provide metrics" not in record.getMessage()


def _folder(workdir: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(workdir).resolve() / "checkpoints"


def latest_step(workdir: str | os.PathLike) -> int | None:
    """Returns the step of the latest checkpoint of a run; None if there is none."""
    folder = _folder(workdir)
    steps = ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []
    return max(steps, default=None)


@contextlib.contextmanager
def open_manager(
    workdir: str | os.PathLike, keep: int, best: str, mode: str
) -> Iterator[ocp.CheckpointManager]:
    """Yields the checkpoint manager of a run. The context closes it at the end.

    Checkpoints are written to `workdir`/checkpoints. A damaged checkpoint is renamed,
    so that the run resumes at the one before.

    Args:
      workdir: folder of the run.
      keep: number of latest checkpoints to keep. The best one is kept as well.
      best: name of the metric that determines the best checkpoint.
      mode: 'max' if higher values of this metric are better, else 'min'.

    Raises:
      UserError: if the folder can't be written to, for example on a full disk.
    """

    def metric(metrics):
        return metrics[best]

    # By default, BestN also counts checkpoints without metrics, such as SIGTERM's.
    policy = preserve.AnyPreservationPolicy(
        [
            preserve.LatestN(keep),
            preserve.BestN(
                get_metric_fn=metric,
                reverse=mode == "min",
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        best_fn=metric,
        best_mode=mode,
        preservation_policy=policy,
        cleanup_tmp_directories=True,
    )
    logging.getLogger("absl").addFilter(_is_of_use)
    directory = _folder(workdir)
    with files.writing_to(directory):
        if jax.process_index() == 0:
            _set_aside_damaged(directory)
        distributed.barrier("checkpoints")
        manager = ocp.CheckpointManager(
            directory,
            options=options,
            # Without a handler, `item_metadata` does not know the names of the fields.
            item_handlers=ocp.StandardCheckpointHandler(),
        )
    try:
        yield manager
    finally:
        with _writing(manager):
            manager.close()


def _set_aside_damaged(folder: pathlib.Path) -> None:
    """Renames checkpoints whose metadata is not readable, with a warning."""
    for step in sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else ():
        path = folder / str(step)
        if _is_intact(path):
            continue
        target = path.with_suffix(f".damaged-{secrets.token_hex(3)}")
        path.rename(target)
        _log.warning("%s: is damaged, as after a loss of power; now %s", path, target)


def _is_intact(checkpoint: pathlib.Path) -> bool:
    held = [x for x in checkpoint.rglob("*") if x.name in _JSON_FILES and x.is_file()]
    return any(x.name == "_METADATA" for x in held) and all(map(_is_json, held))


def _is_json(path: pathlib.Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager):
    """Converts failures to write in the context to `UserError`s."""
    with files.writing_to(manager.directory):
        try:
            yield
        except ValueError as error:
            if found := _SYSTEMS.search(str(error)):
                raise OSError(found[1]) from None
            raise


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    metrics: dict[str, float] | None = None,
) -> None:
    """Saves the state in the background, unless its step is already saved.

    Args:
      manager: checkpoint manager of the run.
      state: state to save.
      metrics: results of the validation; None if the state was not validated.

    Raises:
      UserError: if the folder can't be written to.
    """
    step = int(state.step)
    if step not in manager.all_steps():
        with _writing(manager):
            manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)


def check(manager: ocp.CheckpointManager) -> None:
    """Raises a `UserError` if a checkpoint could not be written in the background."""
    with _writing(manager):
        manager.check_for_errors()


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits until all checkpoints are written.

    Raises:
      UserError: if the folder can't be written to.
    """
    with _writing(manager):
        manager.wait_until_finished()


def restore(manager: ocp.CheckpointManager, like: TrainState, step: int) -> TrainState:
    """Restores the state saved at `step`.

    Args:
      manager: checkpoint manager of the run.
      like: state with the structure, the shapes and the placement of the result.
      step: step of the checkpoint.
    """
    return manager.restore(step, args=ocp.args.StandardRestore(like))
