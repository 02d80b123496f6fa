"""Saturated masks are found, and their branches renewed."""

import jax
import numpy as np

from cqr_jax import weights
from cqr_jax.evaluation import masks
from tests.conftest import call
from tests.networks import drawn


def _saved(tmp_path, dead: str, **fields):
    """Writes a deblocker, the masks of whose block `dead` are 0 or 1 everywhere."""
    held = drawn(**fields, local_blocks=1, residual_blocks=0)
    mask = held.variables["params"][dead]["mask"]["mask"]
    mask["kernel"] = np.zeros_like(mask["kernel"])
    mask["bias"] = np.where(np.arange(6) < 2, 20, -20).astype(np.float32)
    path = tmp_path / "held.safetensors"
    weights.save(path, "deblocker", held.fields, held.variables, {"step": 3})
    return path


def test_saturated_masks_are_told_from_others(tmp_path):
    path = _saved(tmp_path, "local0", width=6, scale=2)
    code, out, err = call(masks.main, path)
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    found = {row[0]: row[1:] for row in rows}
    assert found["local0"] == ["6", "6", "100", "%"]
    assert found["non_local_in"][0] == "6"
    assert int(found["non_local_in"][2]) < 50


def test_renewed_branches_keep_the_mean_of_their_masks(tmp_path):
    fields = {"channels": 3, "conditioning": "modulation", "embedding": 4}
    path = _saved(tmp_path, "local0", width=6, scale=2, **fields)
    output = tmp_path / "renewed.safetensors"
    code, _, err = call(masks.main, path, f"--renew={output}")
    assert (code, err) == (0, "")
    before, after = (weights.load(x, "deblocker") for x in (path, output))
    assert after.provenance == {"step": 3, "renewed": ["local0"]}
    image = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    ours, theirs = (jax.jit(x.model.apply)(x.variables, image) for x in (before, after))
    # The clipped masks, 0.03 and 0.97, change the result a little.
    assert 0 < np.abs(ours - theirs).max() < 0.1 * np.abs(ours - image).max()
    new = after.variables["params"]["local0"]["mask"]
    assert np.ptp(new["before"]["inner"]["kernel"]) > 0.1
    # Now there is nothing to renew.
    code, _, err = call(masks.main, output, f"--renew={path}")
    assert code == 1
    assert "no mask branch has to be renewed" in err


def test_a_network_without_masks_is_reported(tmp_path):
    held = drawn(width=6, local_blocks=0, residual_blocks=0, masks=False)
    path = tmp_path / "held.safetensors"
    weights.save(path, "deblocker", held.fields, held.variables, {})
    code, _, err = call(masks.main, path)
    assert code == 1
    assert "has no mask branches" in err
