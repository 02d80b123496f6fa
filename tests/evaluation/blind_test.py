"""Blind evaluation: degradations, gains, and the command as a process."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from configs import eval as eval_config
from cqr_jax import tasks
from cqr_jax.data import jpeg
from cqr_jax.data.compression import features, libjpeg
from cqr_jax.errors import UserError
from cqr_jax.evaluation import blind, colour, metrics, table2
from cqr_jax.evaluation.blind import Degradation
from cqr_jax.restoring import restorer, tiles
from data_prep import sources
from tests.conftest import save_fresh
from tests.evaluation.colour_test import save_colour


def test_degradations_equal_the_same_steps_by_hand(image):
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
        Degradation("double shifted", (20, 60), (4, 4)): (
            jpeg.compress(np.ascontiguousarray(once[4:, 4:]), 60),
            image[4:, 4:],
        ),
    }
    for degradation, pair in expected.items():
        found = blind.degrade(image, degradation)
        for left, right in zip(found, pair, strict=True):
            np.testing.assert_array_equal(left, right, str(degradation))
    assert {x.kind for x in blind.DEGRADATIONS} == {x.kind for x in expected}


def test_gains_of_two_methods_equal_values_computed_by_hand():
    """One of the three images equals its original before restoration."""
    shape = (3, 3, len(blind.DEGRADATIONS))
    psnr = np.full(shape, 30.0)
    psnr[1, :, 0] = (31.0, 29.5, 33.0)
    psnr[2, :, 0] = (30.0, 32.0, 31.0)
    psnr[:, :, 1] = np.inf
    psnr[0, :, 2] = (20.0, 40.0, np.inf)
    psnr[1, :, 2] = (21.0, 43.0, 50.0)
    psnr[2, :, 2] = (22.0, np.inf, 50.0)
    rows = blind.gains(psnr, ["a", "b"])
    first, second = rows[:2]
    assert (first["kind"], first["qualities"], first["images"]) == ("aligned", "5", 3)
    assert [r["method"] for r in rows[:2]] == ["a", "b"]
    assert (first["psnr"], first["gain"], first["worst"]) == (30, 3.5 / 3, -0.5)
    assert (second["psnr"], second["gain"], second["worst"]) == (30, 1, 0)
    found = [(r["qualities"], r["images"], r["psnr"], r["gain"]) for r in rows[2:4]]
    assert found == [("20", 1, 20, 1), ("20", 1, 20, 2)]
    assert len(rows) == 2 * (shape[2] - 1)
    lines = blind.as_table(rows)
    assert lines[1] == ["aligned", "5", "3", "30.00", "+1.17 (-0.50)", "+1.00 (+0.00)"]


@pytest.fixture
def rgb():
    """A uint8 photograph of 72x56 pixels in colour."""
    return np.ascontiguousarray(jpeg.load_rgb(sources.embedded("test")[1])[:72, :56])


def _compressed(rgb, quality, subsampling="4:2:0"):
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(buffer) as image:
        return np.asarray(image)


def test_colour_degradations_equal_pillow_s_and_keep_the_last_compression(rgb):
    once = _compressed(rgb, 20)
    cut = np.ascontiguousarray(once[4:, 4:])
    wide = _compressed(rgb, 20, "4:2:2")
    shift = (4, 4)
    first, twice = libjpeg(20), libjpeg(60)
    for degradation, image, clean, compression in (
        (Degradation("aligned", (20,), shift, "4:2:0"), once, rgb, first),
        (
            Degradation("aligned", (20,), shift, "4:2:2"),
            wide,
            rgb,
            first._replace(sampling=(1, 2)),
        ),
        (Degradation("shifted", (20,), shift, "4:2:0"), cut, rgb[4:, 4:], None),
        (
            Degradation("double", (20, 60), shift, "4:2:0"),
            _compressed(once, 60),
            rgb,
            twice,
        ),
        (
            Degradation("double shifted", (20, 60), shift, "4:2:0"),
            _compressed(cut, 60),
            rgb[4:, 4:],
            twice,
        ),
    ):
        picture, original = blind.degrade_colour(rgb, degradation)
        np.testing.assert_array_equal(picture.pixels, image, degradation.title())
        np.testing.assert_array_equal(original, clean)
        assert picture.compression == compression
        assert (picture.stored is None) == (compression is None)


def test_every_degradation_has_a_line_of_its_own():
    for degradations in (
        blind.DEGRADATIONS,
        blind.COLOUR_DEGRADATIONS,
    ):
        lines = [(x.title(), x.qualities) for x in degradations]
        assert len(set(lines)) == len(lines)
    titles = [x.title() for x in blind.DEGRADATIONS]
    assert titles.count("double shifted") == 6
    assert titles[-1] == "double shifted by 4, 4"


def _conditions(monkeypatch, config):
    """Runs the evaluation; returns image -> compression that the network received."""
    found = {}

    def spy(images, compression):
        for image, condition in zip(images, compression, strict=True):
            found[image.tobytes()] = condition
        return images / np.float32(255)

    monkeypatch.setattr(table2, "networks", lambda methods, *rest: {"spy": spy})
    blind.evaluate_blind(config)
    return found


def test_the_network_receives_the_last_compression_of_a_gray_file(
    image, tmp_path, monkeypatch
):
    (tmp_path / "one").mkdir()
    clean = np.tile(image, (2, 3))[: tiles.SIDE, : tiles.SIDE]  # one tile
    (tmp_path / "one" / "a.png").write_bytes(jpeg.encode_png(clean))
    config = eval_config.get_config("blind")
    config.update(sets=str(tmp_path / "one"), workdir=str(tmp_path / "out"))
    config.weights = "spy.safetensors"
    degradations = (
        Degradation("aligned", (10,)),
        Degradation("double", (10, 60)),
    )
    monkeypatch.setattr(blind, "DEGRADATIONS", degradations)
    found = _conditions(monkeypatch, config)
    for degradation in degradations:
        degraded, _ = blind.degrade(clean, degradation)
        last = libjpeg(degradation.qualities[-1], gray=True)
        np.testing.assert_array_equal(found[degraded.tobytes()], features(last))

    shifted = Degradation("shifted", (10,))
    monkeypatch.setattr(blind, "DEGRADATIONS", (shifted,))
    (condition,) = {
        condition.tobytes() for condition in _conditions(monkeypatch, config).values()
    }
    assert condition == features(None).tobytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_an_identity_deblocker_gains_nothing_in_colour(
    rgb, tmp_path, monkeypatch, channels
):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes(jpeg.encode_png(rgb))
    config = eval_config.get_config("blind_colour")
    config.update(sets=str(tmp_path / "one"), workdir=str(tmp_path / "out"))
    path = save_colour(tmp_path) if channels == 3 else save_fresh(tmp_path, "deblocker")
    config.update(weights=str(path), projection=False)
    kinds = {x.title(): x for x in blind.COLOUR_DEGRADATIONS}
    degradations = list(kinds.values())  # one of each kind
    monkeypatch.setattr(blind, "COLOUR_DEGRADATIONS", degradations)
    rows = blind.evaluate_blind_colour(config)
    assert [row["kind"] for row in rows] == [x.title() for x in degradations]
    assert json.loads((tmp_path / "out" / "blind.json").read_text()) == rows
    for row, degradation in zip(rows, degradations, strict=True):
        picture, clean = blind.degrade_colour(rgb, degradation)
        assert row["psnr"] == colour.psnr(clean, picture.pixels)
        assert row["gain"] == row["worst"] == 0

    config.sets = str(tmp_path / "gray")
    (tmp_path / "gray").mkdir()
    (tmp_path / "gray" / "b.png").write_bytes(jpeg.encode_png(rgb[..., 0]))
    with pytest.raises(UserError, match=r"b\.png: is gray"):
        blind.evaluate_blind_colour(config)


def test_gains_in_colour_are_those_of_the_restored_pictures(rgb, tmp_path, monkeypatch):
    folder = tmp_path / "two"
    folder.mkdir()
    other = jpeg.load_rgb(sources.embedded("test")[0])[-80:, -72:]
    images = [rgb, np.ascontiguousarray(other)]
    for name, image in zip("ab", images, strict=True):
        (folder / f"{name}.png").write_bytes(jpeg.encode_png(image))

    def gray(images, compression):
        return np.full(images.shape, 128 / 255, np.float32)

    gray.channels = 3
    monkeypatch.setattr(table2, "networks", lambda methods, *rest: {"gray": gray})
    degradations = [x for x in blind.COLOUR_DEGRADATIONS if x.kind == "shifted"][:1]
    monkeypatch.setattr(blind, "COLOUR_DEGRADATIONS", degradations)
    config = eval_config.get_config("blind_colour")
    config.update(sets=str(folder), workdir=str(tmp_path / "out"), projection=False)
    config.weights = "gray.safetensors"
    (row,) = blind.evaluate_blind_colour(config)
    before, after = [], []
    for image in images:
        picture, clean = blind.degrade_colour(image, degradations[0])
        before.append(colour.psnr(clean, picture.pixels))
        (found,) = restorer.restore_pictures(gray, [picture], projecting=False)
        after.append(colour.psnr(clean, found.pixels))
    gains = np.subtract(after, before)
    assert row["psnr"] == pytest.approx(np.mean(before))
    assert row["gain"] == pytest.approx(np.mean(gains))
    assert row["worst"] == pytest.approx(min(gains)) != pytest.approx(max(gains))


def test_the_task_reports_no_gains_of_an_identity_deblocker(
    photographs, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "small"
    folder.mkdir()
    for file in sorted(photographs.iterdir())[:2]:
        y = jpeg.load_luma(file)[:90, :100]
        (folder / file.name).write_bytes(jpeg.encode_png(y))
    path = save_fresh(tmp_path, "deblocker")
    config = eval_config.get_config("blind")
    config.update(sets=str(folder), workdir=str(tmp_path / "out"), weights=str(path))
    kinds = {x.title(): x for x in reversed(blind.DEGRADATIONS)}
    degradations = list(reversed(kinds.values()))  # the first of each kind
    monkeypatch.setattr(blind, "DEGRADATIONS", degradations)
    tasks.TASKS[config.task].run(config)
    rows = json.loads((tmp_path / "out" / "blind.json").read_text())
    assert len(rows) == len(degradations) == 5
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (kept["sets"], kept["weights"]) == (str(folder), str(path))
    assert {row["gain"] for row in rows} == {row["worst"] for row in rows} == {0.0}
    plain = [
        metrics.psnr(y, jpeg.compress(y, 5))
        for y in map(jpeg.load_luma, folder.iterdir())
    ]
    assert rows[0]["psnr"] == pytest.approx(np.mean(plain))
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split()[:2] == ["aligned", "5"]
    assert "+0.00 (+0.00)" in line

    config.weights = ""
    with pytest.raises(UserError, match=r"^config\.weights: name deblockers'"):
        tasks.TASKS[config.task].run(config)
