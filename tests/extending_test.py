"""Tests that the patches of docs/extending.md apply to the repository and work."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

_DOCUMENT = (ROOT / "docs" / "extending.md").read_text()
_PATCHES = dict(
    re.findall(r"<!-- (\w+) -->\n```diff\n(.*?)```", _DOCUMENT, flags=re.DOTALL)
)

_LOSS = """
import jax, numpy as np
from configs import deblock
from cqr_jax import losses
from cqr_jax.training import stages, state

config = deblock.get_config("quickstart,ablation=cqr")
config.loss.edge = 0.1
config.model.local_blocks, config.model.masks = 0, False
steps = stages.deblock_steps(config, None)
clean = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 1), np.uint8)
batch = {"clean": clean, "compressed": clean[:, None] // 2}
start = state.create(steps.model, 48, steps.optimizer, 0)
_, terms = jax.jit(steps.train_step)(start, {}, batch)
x = clean / np.float32(255)
wrong = clean // 2 / np.float32(255) - x
edge = sum(np.abs(np.diff(wrong, axis=axis)).mean() for axis in (1, 2))
np.testing.assert_allclose(terms["edge"], edge, rtol=1e-5)
np.testing.assert_allclose(terms["loss"], terms["mae"] + 0.1 * edge, rtol=1e-5)
"""

_METRIC = """
import csv, json, pathlib
from configs import eval as evaluation
from cqr_jax.evaluation import table2

config = evaluation.get_config()
config.sets, config.qualities = "embedded", (10,)
table2.table2(config, "out", [])
(row,) = json.loads(pathlib.Path("out/rows.json").read_text())
each = list(csv.DictReader(open("out/images.csv")))
assert 4 < row["mae"] < 8, row
assert abs(sum(float(x["mae"]) for x in each) / 2 - row["mae"]) < 1e-9
"""

_DATASET = """
from unittest import mock
import numpy as np, tensorflow as tf, tensorflow_datasets as tfds
from data_prep import sources

record = {"image": tf.constant(b"bytes of a PNG")}
builder = mock.Mock(as_dataset=lambda split, decoders: [record] * 2)
with mock.patch.object(tfds, "builder", return_value=builder):
    source = sources.find("clic")
assert (source.name, source.counts["train"]) == ("clic", 1633)
named = list(source.images("validation"))
assert named == [(f"validation000{i}", b"bytes of a PNG") for i in range(2)]
"""

_NETWORK = """
import jax, numpy as np
from configs import two_layers
from cqr_jax import weights
from cqr_jax.restoring import network
from cqr_jax.training import checks, stages, state

config = two_layers.get_config()
checks.check_deblock(config)
steps = stages.deblock_steps(config, None)
clean = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 1), np.uint8)
batch = {"clean": clean, "compressed": clean[:, None] // 2}
start = state.create(steps.model, 48, steps.optimizer, 0)
after, terms = jax.jit(steps.train_step)(start, {}, batch)
assert terms["mae"] > 0
fields = config.model.to_dict()
weights.save("deblocker.safetensors", "deblocker", fields, after.variables(), {})
run = network.load("deblocker.safetensors")
assert run.engine == "jax"
changed = run(clean[..., 0]) - clean[..., 0] / np.float32(255)
assert 0 < np.abs(changed).max() < 0.1
"""

_CHECKS = {
    "loss": _LOSS,
    "metric": _METRIC,
    "dataset": _DATASET,
    "network": _NETWORK,
}


def test_every_patch_has_a_check():
    assert _PATCHES.keys() == _CHECKS.keys()


@pytest.mark.parametrize("name", _CHECKS)
def test_patch_applies_and_works(name, tmp_path):
    for folder in ("cqr_jax", "configs", "data_prep"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.pyc")
        )
    subprocess.run(
        ["git", "apply", "-"], cwd=tmp_path, input=_PATCHES[name], text=True, check=True
    )
    path = tmp_path / "check.py"
    path.write_text(_CHECKS[name])
    done = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
