"""Tests of colour training: records, batches and the command."""

import io
import itertools
import json
import pathlib

import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from configs import deblock
from cqr_jax import tasks, weights
from cqr_jax.data import degradations, jpeg, kinds, pipeline, records
from cqr_jax.data.compression import features, libjpeg
from cqr_jax.data.degradations import Mixture
from cqr_jax.data.held_out import divide, held_out_images
from cqr_jax.errors import UserError
from cqr_jax.restoring import command
from cqr_jax.training import stages
from data_prep import sources
from data_prep.build import build
from tests.conftest import call, overridden

USUAL = Mixture(**deblock.get_config("colour").colour)

# A colour network that trains in seconds.
SMALL = (
    "--config.model.width=6",
    "--config.model.deeper_widths=(6,)",
    "--config.model.local_blocks=0",
    "--config.model.outer_masks=False",
    "--config.patch=32",
    "--config.batch_size=4",
    "--config.data.gray_name=gray",
    "--config.data.gray_crops=2",
    "--config.data.name=colour",
    "--config.steps=4",
    "--config.optimizer.warmup_steps=0",
    "--config.validation.patch=32",
    "--config.validation.examples=4",
    "--config.validation.batch_size=2",
    "--config.validate_every=2",
    "--config.log_every=2",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of colour photographs of 200x184 pixels, and one of them in gray."""
    root = tmp_path_factory.mktemp("folders")
    for kind in ("colour", "gray"):
        (root / kind).mkdir()
    photographs = [*sources.embedded("train"), *sources.embedded("test")]
    for path in photographs:
        with Image.open(path) as image:
            if image.mode == "RGB":
                part = image.crop((40, 30, 240, 214))
                part.save(root / "colour" / f"{path.stem}.webp", lossless=True)
                part.convert("L").save(root / "gray" / f"{path.stem}.png")
    return root


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, folders):
    data_dir = tmp_path_factory.mktemp("colour-data")
    for kind in ("colour", "gray"):
        folder = str(folders / kind)
        build(folder, str(data_dir), kind=kinds.COLOUR, processes=1)
    return data_dir


def _open(data_dir, name):
    return records.open_builder(str(data_dir), name, kinds.COLOUR)


def test_records_hold_the_pixels(data_dir, folders):
    found = {}
    for split in ("train", "validation"):
        for record in pipeline.read(_open(data_dir, "colour"), split):
            assert set(record) == {"name", "top", "left", "height", "width", "clean"}
            with Image.open(io.BytesIO(record["clean"].numpy())) as image:
                found[record["name"].numpy().decode()] = np.asarray(image)
    paths = list((folders / "colour").iterdir())
    assert len(found) == len(paths) >= 4
    for path in paths:
        np.testing.assert_array_equal(found[path.name], jpeg.load_rgb(path))


def test_image_in_both_folders_is_held_out_in_both(data_dir, folders):
    def stems(name):
        split = pipeline.read(_open(data_dir, name), "validation")
        return {x["name"].numpy().decode().rpartition(".")[0] for x in split}

    assert stems("colour") == stems("gray")
    held_out = held_out_images(str(folders / "colour"))
    assert {path.stem for path in held_out} == stems("colour")


def test_five_percent_are_held_out_whatever_else_is_in_the_folder(tmp_path):
    for i in range(400):
        (tmp_path / f"{i}.png").touch()
    held_out = held_out_images(str(tmp_path))
    assert len(held_out) == pytest.approx(20, abs=10)
    for path in tmp_path.iterdir():  # delete half of the other images
        if path not in held_out and int(path.stem) % 2:
            path.unlink()
    assert held_out_images(str(tmp_path)) == held_out


def test_images_of_one_name_are_on_the_same_side(tmp_path):
    """Also in a small folder, in which the image with the lowest hash is held out."""
    for name in ("a.png", "a.webp", "b.png", "b.webp"):
        (tmp_path / name).touch()
    splits = divide(epath.Path(tmp_path), 1e-9)
    for names in splits.values():
        assert len(names) == 2
        assert len({pathlib.Path(name).stem for name in names}) == 1
    for path in tmp_path.glob("b.*"):
        path.unlink()
    splits = divide(epath.Path(tmp_path), 1e-9)
    assert [len(names) for names in splits.values()] == [1, 1]  # one has to train


def _stream(data_dir, first_step=0, **kwargs):
    example = pipeline.colour(64, USUAL, augment=True)
    return pipeline.training_batches(
        _open(data_dir, "colour"),
        example,
        batch_size=4,
        seed=3,
        first_step=first_step,
        **kwargs,
    )


def test_stream_can_start_at_any_step(data_dir):
    whole = list(itertools.islice(_stream(data_dir), 5))
    for step, batch in enumerate(itertools.islice(_stream(data_dir, 2), 3)):
        assert batch["clean"].shape == (4, 64, 64, 3)
        assert batch["compressed"].shape == (4, 1, 64, 64, 3)
        assert batch["compression"].dtype == np.float32
        for name, values in batch.items():
            np.testing.assert_array_equal(values, whole[2 + step][name])
    assert (whole[0]["clean"] != whole[1]["clean"]).any()


def test_processes_share_each_global_batch(data_dir):
    (whole,) = itertools.islice(_stream(data_dir), 1)
    halves = [
        next(_stream(data_dir, process_index=i, process_count=2)) for i in range(2)
    ]
    for name, values in whole.items():
        both = np.concatenate([half[name] for half in halves])
        np.testing.assert_array_equal(both, values)


def test_validation_has_each_quality_of_a_crop(data_dir):
    example = pipeline.colour(64, USUAL, augment=False, cases=(10, 80))
    (batch,) = pipeline.validation_batches(
        _open(data_dir, "colour"), example, examples=2, batch_size=2, seed=0
    )
    assert batch["compressed"].shape == (2, 3, 64, 64, 3)
    for clean, compressed, told in zip(
        batch["clean"], batch["compressed"], batch["compression"], strict=True
    ):
        for i, quality in enumerate((10, 80)):
            expected = degradations.compress(clean, libjpeg(quality))
            np.testing.assert_array_equal(compressed[i], expected)
            np.testing.assert_array_equal(told[i], features(libjpeg(quality)))


def test_streams_are_joined():
    streams = [iter([{"x": np.full((n, 2), n)}] * 2) for n in (1, 3)]
    batches = list(pipeline.joined(streams))
    assert len(batches) == 2
    np.testing.assert_array_equal(batches[0]["x"][:, 0], [1, 3, 3, 3])


def test_gray_crops_get_degradations_of_their_own(data_dir):
    flags = (*SMALL, f"--config.data.data_dir={data_dir}", "--config.colour.gray=0")
    stage = stages.deblock_stage(overridden(deblock.get_config("colour"), flags), None)
    for batch in itertools.islice(stage.batches(0), 2):
        colour, gray = np.split(batch["compression"], 2)
        assert not np.isclose(colour, gray).all(axis=-1).any()


@pytest.mark.slow
def test_trained_network_restores_a_photograph(data_dir, folders, tmp_path):
    flags = (
        f"--config.data.data_dir={data_dir}",
        f"--config.workdir={tmp_path}/run",
        *SMALL,
    )
    path = tasks.train_deblocker(overridden(deblock.get_config("colour"), flags))
    held = weights.load(path, "deblocker")
    assert held.model.channels == 3
    assert held.model.conditioning == "modulation"
    source = tmp_path / "photograph.jpg"
    photograph = next((folders / "colour").iterdir())
    Image.open(photograph).save(source, quality=20)
    report = tmp_path / "report.json"
    code, _, err = call(
        command.main,
        source,
        f"--weights={path}",
        f"--report={report}",
        "-o",
        tmp_path / "out.png",
    )
    assert code == 0, err
    (row,) = json.loads(report.read_text())
    assert row["status"] == "restored"
    restored = np.asarray(Image.open(tmp_path / "out.png"))
    before = np.asarray(Image.open(source))
    assert restored.shape == before.shape
    assert (restored != before).any()
    assert np.abs(restored.astype(int) - before).mean() < 10


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("model.channels", 1, "config.model.channels=1: must be 3 with"),
        ("colour.gray", 2.0, r"config.colour.gray=2.0: must be in \[0, 1\]"),
        ("colour.subsampled", (0.9, 0.2), "must be two probabilities"),
        ("colour.subsampled", ("a", "b"), "needs two numbers"),
        ("colour.qualities", (0, 9), "must be within 1 to 100"),
        ("data.gray_crops", 16, "config.data.gray_crops=16: must be in"),
        ("model.deeper_widths", (1,), "widths are at least 2"),
        ("model.conditioning", "x", "choose none, planes or modulation"),
        ("qualities_per_crop", 2, "must be 1 with degradation=colour"),
        ("data.name", "gray", "gray_name=gray: is config.data.name too"),
    ],
)
def test_fields_out_of_range_are_rejected(field, value, words):
    config = deblock.get_config("colour")
    config.data.gray_name = "gray"
    tasks.check(config)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=words):
        tasks.check(config)


def test_validation_is_the_same_for_all_seeds(data_dir):
    config = deblock.get_config("colour")
    config.data.update({"data_dir": str(data_dir), "name": "colour"})
    config.validation.update({"examples": 4, "batch_size": 4})
    first, second = (ConfigDict({**config, "seed": seed}) for seed in (0, 7))
    first, second = (stages.deblock_stage(x, None) for x in (first, second))
    jax.tree.map(np.testing.assert_array_equal, first.validation, second.validation)
    ours, theirs = (next(x.batches(0)) for x in (first, second))
    assert any((ours[name] != theirs[name]).any() for name in ours)


def test_missing_records_are_an_error_with_the_kind_to_build(data_dir):
    config = deblock.get_config("colour")
    config.data.update({"data_dir": str(data_dir), "name": "none"})
    with pytest.raises(UserError, match="--kind=colour"):
        stages.deblock_stage(config, None)
