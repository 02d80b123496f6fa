"""The evaluation: its rows against the metrics, and the published JPEG figures."""

import os
import pathlib

import numpy as np
import pytest

from configs import eval as eval_config
from cqr_jax import evaluate, metrics, state, weights
from cqr_jax.data import jpeg
from cqr_jax.errors import UserError
from cqr_jax.models.deblocker import Deblocker
from tests.conftest import ROOT

# Folder of the test sets, as in configs/eval.py: not part of the repository.
SETS = pathlib.Path(os.environ.get("CQR_JAX_TEST_SETS", ROOT / "data" / "eval"))

# Plain JPEG on the whole test sets: PSNR, SSIM, PSNR-B.
PUBLISHED = {
    ("classic5", 10): ("27.82", "0.7595", "25.21"),
    ("classic5", 20): ("30.12", "0.8344", "27.50"),
    ("classic5", 30): ("31.48", "0.8666", "28.94"),
    ("live1", 10): ("27.77", "0.7730", "25.34"),
    ("live1", 20): ("30.07", "0.8512", "27.57"),
    ("live1", 30): ("31.41", "0.8851", "28.93"),
}


def _config(sets, **fields):
    config = eval_config.get_config()
    config.update({"sets": sets, **fields})
    return config


@pytest.mark.skipif(not SETS.is_dir(), reason="the test sets are not here")
def test_plain_jpeg_equals_the_literature(tmp_path):
    config = _config(("classic5", "live1"), set_dir=str(SETS))
    found = {}
    for row in evaluate.evaluate(config, str(tmp_path), ""):
        figures = (f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{row['psnr_b']:.2f}")
        found[row["dataset"], row["quality"]] = figures
    assert found == PUBLISHED


def test_rows_are_means_over_the_images(photographs, tmp_path):
    config = _config((str(photographs),), qualities=(15,))
    (row,) = evaluate.evaluate(config, str(tmp_path), "")
    expected = []
    for path in sorted(photographs.iterdir()):
        y = jpeg.load_luma(path)
        z = jpeg.compress(y, 15)
        expected.append([f(y, z) for f in (metrics.psnr, metrics.ssim, metrics.psnr_b)])
    mean = np.mean(expected, axis=0)
    assert [row["psnr"], row["ssim"], row["psnr_b"]] == pytest.approx(mean.tolist())
    assert (row["images"], row["method"], row["quality"]) == (4, "jpeg", 15)


def test_a_deblocker_that_does_nothing_equals_jpeg(photographs, tmp_path):
    fields = {"width": 6, "local_blocks": 0, "residual_blocks": 0, "key_pool": 8}
    model = Deblocker(**fields)
    path = tmp_path / "identity.safetensors"
    weights.save(path, "deblocker", fields, state.init(model, 48, 0), {})
    config = _config((str(photographs),), qualities=(10,))
    plain, ours = evaluate.evaluate(config, str(tmp_path), str(path))
    assert [plain["psnr"], plain["ssim"]] == [ours["psnr"], ours["ssim"]]


def test_an_image_too_small_for_ssim_is_named(tmp_path):
    (tmp_path / "tiny.png").write_bytes(jpeg.encode_png(np.zeros((8, 90), np.uint8)))
    with pytest.raises(UserError, match=r"tiny\.png: too small for SSIM"):
        evaluate.evaluate(_config((str(tmp_path),)), str(tmp_path / "out"), "")


def test_missing_sets_say_what_to_put_where(tmp_path):
    config = _config(("live1",), set_dir=str(tmp_path))
    with pytest.raises(UserError, match="live1 is not there; put its images into"):
        evaluate.evaluate(config, str(tmp_path), "")
    with pytest.raises(UserError, match="no such folder of images"):
        evaluate.evaluate(_config(("nowhere",)), str(tmp_path), "")
