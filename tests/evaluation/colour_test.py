"""Colour evaluation: metrics, published JPEG results, rows and tables."""

import csv
import io
import json
import os
import pathlib

import jax
import numpy as np
import pytest
import skimage.metrics
from PIL import Image

from configs import eval as eval_config
from cqr_jax import tasks, weights
from cqr_jax.data import jpeg
from cqr_jax.data.compression import SUBSAMPLINGS
from cqr_jax.errors import UserError
from cqr_jax.evaluation import colour, metrics
from cqr_jax.models.deblocker import Deblocker
from cqr_jax.restoring import projection
from cqr_jax.training import state
from data_prep import sources
from tests.conftest import ROOT, save_fresh

SETS = pathlib.Path(os.environ.get("CQR_JAX_TEST_SETS", ROOT / "data" / "eval"))

COLOUR = {
    "width": 6,
    "local_blocks": 0,
    "residual_blocks": 0,
    "scale": 2,
    "channels": 3,
    "deeper_widths": (4,),
    "conditioning": "modulation",
    "embedding": 4,
}


def save_colour(folder, noise=0.0) -> pathlib.Path:
    """Saves weights of a small, untrained, conditioned network of Y, Cb and Cr.

    Without noise, the network is the identity.
    """
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: x + np.float32(noise) * rng.standard_normal(x.shape, np.float32),
        state.init(Deblocker(**COLOUR), 48, 0),
    )
    path = folder / "colour.safetensors"
    weights.save(path, "deblocker", COLOUR, variables, {})
    return path


@pytest.fixture
def folder(tmp_path):
    """Two photographs of 100x72 pixels in colour."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in sources.embedded("test"):
        rgb = jpeg.load_rgb(path)[40:112, 60:160]
        (folder / f"{path.stem}.png").write_bytes(jpeg.encode_png(rgb))
    return folder


def _config(sets, **fields):
    config = eval_config.get_config("colour")
    config.update({"sets": str(sets), **fields})
    tasks.check(config)
    return config


def _by_pillow(rgb, quality, subsampling="4:2:0"):
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(buffer) as image:
        return np.asarray(image)


def test_metrics_equal_scikit_image(folder):
    rgb = jpeg.load_rgb(min(folder.iterdir()))
    image = _by_pillow(rgb, 10)
    found = {name: f(rgb, image) for name, f in colour.METRICS.items()}
    assert found["psnr"] == pytest.approx(
        skimage.metrics.peak_signal_noise_ratio(rgb, image)
    )
    # Both average over the region where the window fits.
    ssim = skimage.metrics.structural_similarity(
        rgb, image, channel_axis=-1, gaussian_weights=True, use_sample_covariance=False
    )
    assert found["ssim"] == pytest.approx(ssim, abs=1e-4)
    mse = np.mean(np.square(rgb.astype(float) - image))
    blocking = metrics.blocking_effect(jpeg.luma(image))
    assert found["psnr_b"] == pytest.approx(10 * np.log10(255**2 / (mse + blocking)))
    assert found["psnr_b"] < found["psnr"]


@pytest.mark.skipif(not (SETS / "live1").is_dir(), reason="the test sets are not here")
def test_plain_jpeg_equals_the_literature(caplog):
    config = _config("live1", set_dir=str(SETS))
    rows, images = colour.measure(config, {})
    published = {
        "psnr": ([25.69, 28.06, 29.37, 30.28], 0.01),
        "ssim": ([0.743, 0.826, 0.861, 0.882], 0.001),
        "psnr_b": ([24.20, 26.49, 27.84, 28.84], 0.01),
    }
    for metric, (expected, tolerance) in published.items():
        found = [row[metric] for row in rows]
        assert found == pytest.approx(expected, abs=tolerance), metric
    assert len(images) == 4 * 29
    assert "differ" not in caplog.text


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_rows_are_means_over_jpegs_of_pillow(folder, subsampling):
    config = _config(folder, qualities=(15,), subsampling=subsampling)
    (row,), images = colour.measure(config, {})
    expected = []
    for path in sorted(folder.iterdir()):
        rgb = jpeg.load_rgb(path)
        decoded = _by_pillow(rgb, 15, subsampling)
        expected.append([f(rgb, decoded) for f in colour.METRICS.values()])
    names = tuple(colour.METRICS)
    assert [[x[name] for name in names] for x in images] == expected
    means = np.mean(expected, axis=0).tolist()
    assert [row[name] for name in names] == pytest.approx(means)
    assert (row["images"], row["method"], row["quality"]) == (2, "jpeg", 15)
    assert {x["subsampling"] for x in (row, *images)} == {subsampling}


def test_identity_deblockers_of_one_or_three_channels_equal_jpeg(folder, tmp_path):
    methods = {
        "colour": str(save_colour(tmp_path)),
        "gray": str(save_fresh(tmp_path, "deblocker")),
    }
    config = _config(folder, qualities=(10, 40), projection=False)
    rows, _ = colour.measure(config, methods)
    assert [row["method"] for row in rows] == ["jpeg", *methods] * 2
    assert [row.get("weights") for row in rows[:3]] == [None, *methods.values()]
    for plain, *others in (rows[:3], rows[3:]):
        for other in others:
            for metric in colour.METRICS:
                assert other[metric] == plain[metric]


def test_projection_limits_the_loss_of_a_bad_network(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(projection, "limit", lambda quality: 1.0)  # project all images
    methods = {"bad": str(save_colour(tmp_path, noise=0.05))}
    psnr = []
    for projecting in (False, True):
        config = _config(folder, qualities=(80,), projection=projecting)
        (_, row), _ = colour.measure(config, methods)
        psnr.append(row["psnr"])
    assert psnr[1] > psnr[0] + 0.1


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_published_table_is_shown_only_for_4_2_0(
    folder, tmp_path, capsys, monkeypatch, subsampling
):
    monkeypatch.setattr("cqr_jax.data.test_sets.expected", lambda name: {})
    (tmp_path / "live1").mkdir()
    folder = folder.rename(tmp_path / "live1" / "photographs").parent
    config = _config(folder, qualities=(10,), subsampling=subsampling, projection=False)
    config.workdir = str(tmp_path / "out")
    config.weights = str(save_colour(tmp_path))
    tasks.TASKS[config.task].run(config)
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert kept["task"] == "eval_colour"
    out = capsys.readouterr().out
    assert out.startswith(f"Measured, {subsampling}: PSNR | SSIM | PSNR-B over RGB\n")
    assert "GMSD" not in out
    # The published results are for 4:2:0.
    assert ("27.77" in out) == ("Published, not" in out) == (subsampling == "4:2:0")
    rows = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert [row["method"] for row in rows] == ["jpeg", "colour"]
    for name, count in (("rows.csv", 2), ("images.csv", 4)):
        with (tmp_path / "out" / name).open() as file:
            assert len(list(csv.DictReader(file))) == count
    table = (tmp_path / "out" / "table.md").read_text()
    assert f"| live1 | 10 | 2 | {rows[0]['psnr']:.2f} " in table


def test_a_gray_image_is_rejected(folder):
    gray = jpeg.load_luma(min(folder.iterdir()))
    (folder / "gray.png").write_bytes(jpeg.encode_png(gray))
    with pytest.raises(UserError, match=r"gray\.png: is gray, but this .*; remove it"):
        colour.measure(_config(folder), {})


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("subsampling", "4:1:1", "choose 4:2:0, 4:2:2 or 4:4:4"),
        ("qualities", (0,), "quality factors are 1 to 100"),
        ("qualities", (), "quality factors are 1 to 100"),
        ("workdir", "gs://x/y", "must be a local"),
    ],
)
def test_invalid_fields_are_rejected(field, value, words):
    with pytest.raises(UserError, match=words):
        _config("live1", **{field: value})
