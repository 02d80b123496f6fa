"""Checkpoints of training: all of Orbax."""

import os
import pathlib

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve

from cqr_jax import files
from cqr_jax.state import TrainState


def open_manager(
    workdir: str | os.PathLike, keep: int, best: str, mode: str
) -> ocp.CheckpointManager:
    """The checkpoints of a run, in `workdir`/checkpoints.

    Args:
      workdir: of the run.
      keep: how many of the latest to keep; the best is kept beside them.
      best: name of the metric that tells the best.
      mode: whether its best is 'max' or 'min'.

    Raises:
      UserError: the folder can't be written to.
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
        return ocp.CheckpointManager(directory, options=options)


def save(
    manager: ocp.CheckpointManager,
    state: TrainState,
    metrics: dict[str, float] | None = None,
) -> None:
    """Saves the state under its step; goes on in the background."""
    step = int(state.step)
    if step not in manager.all_steps():
        manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)


def restore(manager: ocp.CheckpointManager, like: TrainState, step: int) -> TrainState:
    """The state saved at `step`, with the structure and placement of `like`."""
    return manager.restore(step, args=ocp.args.StandardRestore(like))
