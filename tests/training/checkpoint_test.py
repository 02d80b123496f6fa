"""Tests of checkpoints: those of older versions, and damaged ones."""

import pathlib
import zipfile

import jax
import numpy as np
import pytest

from configs import ranker
from cqr_jax.models.ranker import Ranker
from cqr_jax.training import checkpoint, state

# Written before the field `average` of the state was renamed to `ema_params`.
_OLD = pathlib.Path(__file__).with_name("checkpoint_with_average.zip")


def test_a_checkpoint_from_before_ema_params_is_restored(tmp_path):
    with zipfile.ZipFile(_OLD) as file:
        file.extractall(tmp_path)
    config = ranker.get_config("quickstart")
    config.optimizer.name = "muon"
    optimizer = state.create_optimizer(config.optimizer, 10)
    fresh = jax.device_get(state.create(Ranker(width=1, hidden=2), 32, optimizer, 0))
    with checkpoint.open_manager(tmp_path, 1, "loss", "min") as manager:
        restored = checkpoint.restore(manager, fresh, manager.latest_step())
        assert manager.metrics(5) == {"loss": 0.25}
    assert int(restored.step) == 5
    assert jax.tree.structure(restored) == jax.tree.structure(fresh)
    for name, expected in (
        ("params", fresh.params),
        ("batch_stats", fresh.batch_stats),
        ("opt_state", fresh.opt_state),
        ("ema_params", jax.tree.map(lambda x: x + 1, fresh.params)),
    ):
        found = getattr(restored, name)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


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
