"""Tests of restoring on Apache Beam, with a hundred files.

They run where the extra `beam` is installed (.ci/run makes an environment for them).
"""

import json

import numpy as np
import pytest
from PIL import Image

from cqr_jax.restoring import pictures, restorer
from cqr_jax.weights import SHIPPED
from tests.conftest import run, save_fresh

pytest.importorskip("apache_beam", reason="needs the extra 'beam'")

from cqr_jax.restoring import on_beam

COUNT = 100


@pytest.fixture
def folder(tmp_path):
    """Small JPEGs in folders, one truncated, one duplicated, and a text file."""
    rng = np.random.default_rng(0)
    root = tmp_path / "in"
    for i in range(COUNT):
        path = root / f"{i % 7}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
        small.resize((40, 32)).save(path, quality=20)
    bad = root / "3" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    (root / "0" / "7.jpeg").write_bytes((root / "0" / "7.jpg").read_bytes())
    (root / "notes.txt").write_text("no image")
    return root


def test_missing_outputs_are_written_and_failures_listed(folder, tmp_path):
    out = tmp_path / "out"
    arguments = (
        "cqr_jax.restoring.on_beam",
        f"--input={folder}/**",
        f"--output={out}",
        "--runner=DirectRunner",
        "--tile=64",
    )
    code, told, err = run(*arguments)
    assert code == 0, err
    assert told.splitlines()[-1] == f"{COUNT - 1} restored, 2 failed"
    written = {str(x.relative_to(out)) for x in out.rglob("*.png")}
    assert written == {f"{i % 7}/{i}.png" for i in range(COUNT) if i != 3}
    reports = out.glob("failures*.jsonl")  # of one or more shards
    lines = (line for x in reports for line in x.read_text().splitlines())
    failures = {x["input"]: x["reason"] for x in map(json.loads, lines)}
    assert failures.keys() == {f"{folder}/3/3.jpg", f"{folder}/0/7.jpg"}
    assert "damaged or truncated" in failures[f"{folder}/3/3.jpg"]
    assert "0/7.jpeg has the same output" in failures[f"{folder}/0/7.jpg"]
    assert not list(out.rglob("*.partial"))
    data = (folder / "5" / "5.jpg").read_bytes()
    picture = pictures.decode(data, stored=True)
    (expected,) = restorer.restore_pictures(restorer.load(), [picture], side=64)
    found = np.asarray(Image.open(out / "5" / "5.png"), int)
    assert np.abs(found - expected.pixels).max() <= 1

    (out / "5" / "5.png").unlink()
    (out / "failures-00000-of-00009.jsonl").write_text("of an earlier run")
    times = {x: x.stat().st_mtime_ns for x in out.rglob("*.png")}
    code, told, err = run(*arguments)
    assert code == 0, err
    assert told.splitlines()[-1] == "1 restored, 2 failed"
    assert (out / "5" / "5.png").exists()
    assert times == {x: x.stat().st_mtime_ns for x in times}
    assert not (out / "failures-00000-of-00009.jsonl").exists()

    code, _, err = run(*arguments[:1], f"--input={tmp_path}/no/*", f"--output={out}")
    assert code == 1
    assert err.splitlines()[-1].endswith("no/*: matches no file")


def test_flags_set_quality_factor_and_projection(tmp_path):
    rng = np.random.default_rng(0)
    path, out = tmp_path / "in" / "a.jpg", tmp_path / "out"
    path.parent.mkdir()
    small = Image.fromarray(rng.integers(80, 170, (9, 12, 3), np.uint8))
    small.resize((80, 64)).save(path, quality=90)
    weights = save_fresh(tmp_path, "colour")
    arguments = (
        "cqr_jax.restoring.on_beam",
        f"--input={path.parent}/*",
        f"--output={out}",
        "--runner=DirectRunner",
    )
    picture = pictures.decode(path.read_bytes(), stored=True)
    written = []
    for flags, options in (
        (["--no-projection"], {"projecting": False}),
        (["--quality-factor=3"], {"quality_factor": 3}),
    ):
        code, _, err = run(*arguments, f"--weights={weights}", *flags)
        assert code == 0, err
        loaded = restorer.load(weights)
        (expected,) = restorer.restore_pictures(loaded, [picture], **options)
        written.append(np.asarray(Image.open(out / "a.png"), int))
        assert np.abs(written[-1] - expected.pixels).max() <= 1
        (out / "a.png").unlink()
    assert np.abs(written[0] - written[1]).max() > 2

    luma_only = f"--weights={SHIPPED / 'compact.safetensors'}"
    code, _, err = run(*arguments, luma_only, "--quality-factor=3")
    assert code == 1
    told = "error: quality factor 3: these weights don't take one"
    assert err.splitlines()[-1].startswith(told)
    code, _, err = run(*arguments, "--weights=none.safetensors")
    assert code == 1
    assert err.splitlines()[-1].startswith("error: none.safetensors: no such weights")


def test_target_replaces_root_and_suffix():
    for path, form, expected in (
        ("gs://a/b/c/d.jpg", None, "out/c/d.png"),
        ("gs://a/b/c.d/e.webp", None, "out/c.d/e.webp"),
        ("gs://a/b/e.png", "jpeg", "out/e.jpg"),
    ):
        assert on_beam.target(path, "gs://a/b/", "out/", form) == expected
