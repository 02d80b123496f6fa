"""Tests that checkpoints of older versions can be restored."""

import pathlib
import zipfile

import jax
import numpy as np

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
