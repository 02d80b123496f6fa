"""The command that draws panels and feature maps, and the content of its images."""

import io

import numpy as np
import pytest
from PIL import Image

from cqr_jax import weights
from cqr_jax.data import jpeg
from cqr_jax.evaluation import drawing, metrics, panels
from data_prep import sources
from tests.conftest import call, save_fresh

IMAGE = sources.embedded("test")[1]


def _draw(tmp_path, *arguments):
    """Runs a command that must print nothing; returns the picture that it draws."""
    path = tmp_path / "picture.png"
    code, out, err = call(panels.main, *arguments, f"--output={path}")
    assert (code, out, err) == (0, "", "")
    with Image.open(path) as sheet:
        sheet.load()
        return sheet


def test_caption_shows_the_method_and_its_metrics(image):
    compressed = jpeg.compress(image, 10)
    psnr = metrics.psnr(image, compressed)
    name, line = drawing.caption("JPEG", image, compressed).splitlines()
    assert name == "JPEG"
    assert line.split(" | ")[0] == f"{psnr:.2f}"
    assert drawing.caption("same", image, image).splitlines()[1].startswith("inf | 1.0")


def test_panel_shows_the_crop_enlarged(tmp_path):
    arguments = ("panel", IMAGE, "--weights=", "--crop=200,120,64,48", "--quality=20")
    sheet = np.asarray(_draw(tmp_path, *arguments))
    assert sheet.shape == (48 * 4 + 44, 2 * 64 * 4 + 8)
    clean = jpeg.load_luma(IMAGE)
    shown = (clean, jpeg.compress(clean, 20))
    for left, whole in zip((0, 264), shown, strict=True):
        crop = whole[120:168, 200:264]
        np.testing.assert_array_equal(sheet[0:192:4, left : left + 256 : 4], crop)
        np.testing.assert_array_equal(sheet[3:192:4, left + 3 : left + 256 : 4], crop)
    assert sheet[192:].min() == 0  # the captions


def test_panel_shows_the_output_of_a_deblocker(tmp_path):
    path = weights.SHIPPED / "compact.safetensors"
    arguments = ("panel", IMAGE, f"--weights={path}", "--crop=200,100,256,64")
    sheet = np.asarray(_draw(tmp_path, *arguments))[:64]
    assert sheet.shape == (64, 3 * 256 + 2 * 8)
    clean, bad, good = (sheet[:, x : x + 256] for x in (0, 264, 528))
    assert metrics.psnr(clean, good) > metrics.psnr(clean, bad) + 0.5


def test_panel_shows_colours_and_their_metrics(tmp_path):
    path = save_fresh(tmp_path, "deblocker")
    sheet = _draw(tmp_path, "panel", IMAGE, f"--weights={path}", "--colour")
    clean = jpeg.load_rgb(IMAGE)
    height, width, _ = clean.shape
    assert (sheet.mode, sheet.size) == ("RGB", (3 * width + 16, height + 44))
    pixels = np.asarray(sheet)[:height]
    np.testing.assert_array_equal(pixels[:, :width], clean)
    bad, same = pixels[:, width + 8 : 2 * width + 8], pixels[:, 2 * width + 16 :]
    buffer = io.BytesIO()
    Image.fromarray(clean).save(buffer, "JPEG", quality=10)
    with Image.open(buffer) as expected:
        np.testing.assert_array_equal(bad, np.asarray(expected))
    # The deblocker is the identity. Rounding and projection change single pixels.
    change = np.abs(same.astype(int) - bad)
    assert change.max() <= 8
    assert change.mean() < 0.1


def test_feature_maps_have_a_row_for_each_convolution(tmp_path):
    path = save_fresh(tmp_path, "ranker")
    arguments = ("features", IMAGE, f"--weights={path}", "--crop=0,0,96,64")
    sheet = _draw(tmp_path, *arguments)
    # A row for each of the ten convolutions, and one for the images.
    assert sheet.height == pytest.approx(11 * (2 * 64 / 96 + 0.2) * 80, abs=2)
    assert len(sheet.convert("RGB").getcolors(2**24)) > 100


@pytest.mark.parametrize(
    ("image", "quality", "words"),
    [
        ("none.png", 10, "none.png: can't be read: No such file or directory"),
        (IMAGE, 0, "--quality=0: must be 1 to 100"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(image, quality, words, tmp_path):
    arguments = ("panel", image, "--weights=", f"--quality={quality}")
    code, out, err = call(panels.main, *arguments, f"--output={tmp_path}/x.png")
    assert (code, out, err) == (1, "", f"error: {words}\n")


def test_a_panel_is_written_as_png_alone(tmp_path):
    output = tmp_path / "x.jpg"
    code, _, err = call(panels.main, "panel", IMAGE, "--weights=", f"--output={output}")
    assert (code, err) == (1, f"error: --output={output}: name a .png file\n")
    assert not output.exists()


@pytest.mark.parametrize(
    ("crop", "words"),
    [
        ("1,2,3", "must be LEFT,TOP,WIDTH,HEIGHT"),
        ("0,0,0,9", "must be LEFT,TOP,WIDTH,HEIGHT"),
        ("590,0,20,20", "is outside the image of 600x400"),
    ],
)
def test_invalid_crops_are_reported_in_one_line(crop, words, tmp_path):
    output = tmp_path / "panel.png"
    arguments = ("panel", IMAGE, "--weights=", f"--crop={crop}", f"--output={output}")
    code, out, err = call(panels.main, *arguments)
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert f"error: --crop={crop}: {words}" in err
    assert not output.exists()
