"""Units that do not take part any more are found."""

import numpy as np
import pytest

from cqr_jax import weights
from cqr_jax.evaluation import activity
from tests.conftest import call, save_fresh
from tests.networks import drawn

CONDITIONED = {"channels": 3, "conditioning": "modulation", "embedding": 4}


def test_a_network_without_masks_has_one_table(tmp_path):
    fields = {"width": 6, "scale": 2, "local_blocks": 0, "masks": False}
    path = tmp_path / "held.safetensors"
    weights.save(path, "deblocker", fields, drawn(**fields).variables, {})
    code, out, _ = call(activity.main, path)
    assert code == 0
    assert "non_local_in/head" in out
    assert "mask" not in out


@pytest.mark.parametrize("more", [{}, CONDITIONED])
def test_dead_units_and_saturated_masks_are_counted(tmp_path, more):
    """In one block, two units are never positive, and the masks are 0 or 1."""
    fields = {"width": 6, "scale": 2, "local_blocks": 1, "residual_blocks": 0, **more}
    held = drawn(**fields)
    block = held.variables["params"]["local0"]
    bias = np.array([-100, -100, 0, 0, 0, 0], np.float32)
    block["head"]["inner"]["bias"] = bias
    block["mask"]["mask"]["kernel"] = np.zeros((6, 6), np.float32)
    block["mask"]["mask"]["bias"] = np.float32([20, 20, -20, -20, -20, -20])
    path = tmp_path / "held.safetensors"
    weights.save(path, "deblocker", fields, held.variables, {})
    code, out, err = call(activity.main, path)
    assert (code, err) == (0, "")
    relus, masks = (
        {row[0]: row[1:] for row in map(str.split, text.splitlines())}
        for text in out.split("\n\n")
    )
    assert relus["local0/head"][:2] == ["6", "2"]
    assert relus["non_local_in/head"][:2] == ["6", "0"]
    assert ("embedding0_relu" in relus) == bool(more)
    assert masks["local0"] == ["6", "6", "100", "%"]
    assert masks["non_local_in"][1] == "0"
    assert int(masks["non_local_in"][2]) < 50


def test_other_weights_are_rejected_in_one_line(tmp_path):
    path = save_fresh(tmp_path, "ranker")
    code, out, err = call(activity.main, path)
    assert (code, out) == (1, "")
    words = "holds a ranker, not a deblocker; name weights of a deblocker"
    assert err == f"error: {path}: {words}\n"
