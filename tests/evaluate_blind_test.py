"""Blind use: what befalls the images, and the command as a process."""

import json

import numpy as np
import pytest

from cqr_jax import evaluate_blind, metrics
from cqr_jax.data import jpeg
from cqr_jax.evaluate_blind import Degradation
from tests.conftest import run, save_fresh


def test_degradations(image):
    """Each against the same done by hand."""
    once = jpeg.compress(image, 20)
    cut = np.ascontiguousarray(once[3:, 5:])
    expected = {
        Degradation("aligned", (20,)): (once, image),
        Degradation("shifted", (20,)): (cut, image[3:, 5:]),
        Degradation("double", (20, 60)): (jpeg.compress(once, 60), image),
        Degradation("double shifted", (20, 60)): (
            jpeg.compress(cut, 60),
            image[3:, 5:],
        ),
    }
    for degradation, pair in expected.items():
        found = evaluate_blind.degrade(image, degradation)
        for left, right in zip(found, pair, strict=True):
            np.testing.assert_array_equal(left, right, str(degradation))
    assert {x.kind for x in evaluate_blind.DEGRADATIONS} == {x.kind for x in expected}


def test_gains():
    """By hand, of two methods and three images, one of which is perfect at first."""
    shape = (3, 3, len(evaluate_blind.DEGRADATIONS))
    psnr = np.full(shape, 30.0)
    psnr[1, :, 0] = (31.0, 29.5, 33.0)
    psnr[2, :, 0] = (30.0, 32.0, 31.0)
    psnr[:, :, 1] = np.inf
    psnr[0, :, 2] = (20.0, 40.0, np.inf)
    psnr[1, :, 2] = (21.0, 43.0, 50.0)
    psnr[2, :, 2] = (22.0, np.inf, 50.0)
    rows = evaluate_blind.gains(psnr, ["a", "b"])
    first, second = rows[:2]
    assert (first["kind"], first["qualities"], first["images"]) == ("aligned", "5", 3)
    assert [r["method"] for r in rows[:2]] == ["a", "b"]
    assert (first["psnr"], first["gain"], first["worst"]) == (30, 3.5 / 3, -0.5)
    assert (second["psnr"], second["gain"], second["worst"]) == (30, 1, 0)
    found = [(r["qualities"], r["images"], r["psnr"], r["gain"]) for r in rows[2:4]]
    assert found == [("20", 1, 20, 1), ("20", 1, 20, 2)]
    assert len(rows) == 2 * (shape[2] - 1)
    lines = evaluate_blind.as_table(rows)
    assert lines[1] == ["aligned", "5", "3", "30.00", "+1.17 (-0.50)", "+1.00 (+0.00)"]


@pytest.mark.slow
def test_the_command(photographs, tmp_path):
    """A deblocker that does nothing gains nothing, however the images were degraded."""
    folder = tmp_path / "small"
    folder.mkdir()
    for file in sorted(photographs.iterdir())[:2]:
        y = jpeg.load_luma(file)[:90, :100]
        (folder / file.name).write_bytes(jpeg.encode_png(y))
    path = save_fresh(tmp_path, "deblocker")
    arguments = (
        "cqr_jax.main",
        "--config=configs/eval.py:blind",
        f"--config.sets={folder}",
        f"--config.workdir={tmp_path}/out",
    )
    code, out, err = run(*arguments, f"--config.weights={path}")
    assert code == 0, err
    rows = json.loads((tmp_path / "out" / "blind.json").read_text())
    assert len(rows) == len(evaluate_blind.DEGRADATIONS)
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (kept["sets"], kept["weights"]) == (str(folder), str(path))
    assert {row["gain"] for row in rows} == {row["worst"] for row in rows} == {0.0}
    plain = [
        metrics.psnr(y, jpeg.compress(y, 5))
        for y in map(jpeg.load_luma, folder.iterdir())
    ]
    assert rows[0]["psnr"] == pytest.approx(np.mean(plain))
    assert out.splitlines()[1].split()[:2] == ["aligned", "5"]
    assert "+0.00 (+0.00)" in out.splitlines()[1]

    code, _, err = run(*arguments)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: config.weights: name deblockers'")
