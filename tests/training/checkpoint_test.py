"""Tests of damaged checkpoints."""

import numpy as np
import pytest

from cqr_jax.training import checkpoint, state


@pytest.mark.parametrize(
    "name", ["_CHECKPOINT_METADATA", "default/_METADATA", "metrics/metrics"]
)
@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_set_aside(tmp_path, caplog, name, damaged):
    def at(step):
        weight = {"w": np.full(3, float(step))}
        return state.TrainState(np.array(step, np.int32), weight, {}, {}, weight)

    with checkpoint.open_manager(tmp_path, 2, "loss", "min") as manager:
        for step in (1, 2):
            checkpoint.save(manager, at(step), {"loss": step})
    path = tmp_path / "checkpoints" / str(damaged)
    intact = 3 - damaged
    for i in range(2):
        # The run takes the step again, and the power is lost again.
        if damaged == 2 and i:
            with checkpoint.open_manager(tmp_path, 2, "loss", "min") as manager:
                checkpoint.save(manager, at(2), {"loss": 2})
        if path.exists():
            (path / name).write_bytes(b"")
        with checkpoint.open_manager(tmp_path, 2, "loss", "min") as manager:
            assert manager.latest_step() == manager.best_step() == intact
            restored = checkpoint.restore(manager, at(0), intact)
            assert restored.params["w"][0] == intact
    assert checkpoint.latest_step(tmp_path) == intact
    words = f"{path}: is damaged, as after a loss of power; now {path}.damaged-"
    assert len(caplog.messages) == damaged
    assert all(message.startswith(words) for message in caplog.messages)
