"""Checkpoints of training: all of Orbax."""

import contextlib
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from cqr_jax import files
from cqr_jax.training.state import TrainState

# Names that fields of the state have in older checkpoints.
_OLD_NAMES = {"ema_params": "average"}

# How errors of TensorStore, which writes, end: with the system's words and some fields.
_SYSTEMS = re.compile(r": ([^:\[]+) \[(tensorstore_spec|os_error_code)=")


@contextlib.contextmanager
def open_manager(
    workdir: str | os.PathLike, keep: int, best: str, mode: str
) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints of a run, in `workdir`/checkpoints, while within.

    Args:
      workdir: of the run.
      keep: how many of the latest to keep; the best is kept beside them.
      best: name of the metric that tells the best.
      mode: whether its best is 'max' or 'min'.

    Raises:
      UserError: the folder can't be written to, at first or later, as on a full disk.
    """

    def metric(metrics):
        return metrics[best]

    # BestN counts checkpoints without metrics, such as SIGTERM's, unless told not to.
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
    directory = pathlib.Path(workdir).resolve() / "checkpoints"
    with files.writing_to(directory):
        manager = ocp.CheckpointManager(
            directory,
            options=options,
            # Without a handler, the manager can't tell what a checkpoint holds.
            item_handlers=ocp.StandardCheckpointHandler(),
        )
    try:
        yield manager
    finally:
        with _writing(manager):
            manager.close()


@contextlib.contextmanager
def _writing(manager: ocp.CheckpointManager):
    """Around what writes, or waits for it: a failure becomes a `UserError`."""
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
    """Saves the state under its step; goes on in the background."""
    step = int(state.step)
    if step not in manager.all_steps():
        with _writing(manager):
            manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)


def wait(manager: ocp.CheckpointManager) -> None:
    """Waits until what was saved is written."""
    with _writing(manager):
        manager.wait_until_finished()


def restore(manager: ocp.CheckpointManager, like: TrainState, step: int) -> TrainState:
    """Restores the state saved at `step`.

    Checkpoints from before `ema_params` had this name can be restored too.

    Args:
      manager: checkpoint manager of the run.
      like: state with the structure and the placement that the result has.
      step: step of the checkpoint.
    """
    if "average" not in manager.item_metadata(step):
        return manager.restore(step, args=ocp.args.StandardRestore(like))
    fields = {x.name: getattr(like, x.name) for x in dataclasses.fields(like)}
    old = {_OLD_NAMES.get(name, name): value for name, value in fields.items()}
    found = manager.restore(step, args=ocp.args.StandardRestore(old))
    return TrainState(**{name: found[_OLD_NAMES.get(name, name)] for name in fields})
