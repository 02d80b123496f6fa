"""Tests that the builder writes the same bytes on Apache Beam as on one machine.

They need the extra `beam`. `.ci/run` installs it in a separate environment.
"""

import pytest

from cqr_jax.data import kinds, records
from cqr_jax.errors import UserError
from data_prep.build import build
from tests.conftest import run

pytest.importorskip("apache_beam", reason="needs the extra 'beam'")

from tensorflow_datasets.core.utils import shard_utils


def _contents(data_dir):
    return {
        str(path.relative_to(data_dir)): path.read_bytes()
        for path in data_dir.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def mixed(tmp_path, photographs):
    """A folder of four photographs, a truncated file and an image that is too small."""
    from PIL import Image

    folder = tmp_path / "mixed"
    (folder / "deeper").mkdir(parents=True)
    for path in photographs.iterdir():
        (folder / "deeper" / path.name).write_bytes(path.read_bytes())
    (folder / "half.png").write_bytes(path.read_bytes()[:5000])
    Image.open(path).resize((100, 300)).save(folder / "small.png")
    return folder


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_the_files_equal_those_of_one_machine(tmp_path, mixed, capfd, kind):
    build(
        str(mixed),
        str(tmp_path / "here"),
        kind=kind,
        validation_fraction=0.5,
        processes=1,
    )
    told = capfd.readouterr().out
    code, out, err = run(
        "data_prep.build",
        f"--source={mixed}",
        f"--data_dir={tmp_path / 'beam'}",
        f"--kind={kind}",
        "--validation_fraction=0.5",
        "--beam_pipeline_options=runner=DirectRunner",
    )
    assert code == 0, err
    assert _contents(tmp_path / "beam") == _contents(tmp_path / "here")
    assert out == told.replace("here", "beam")
    assert "skipped small.png: too small: 100x300" in err
    assert "skipped half.png: damaged or truncated" in err


def test_the_shards_equal_those_of_one_machine(tmp_path, mixed, monkeypatch):
    monkeypatch.setattr(shard_utils.ShardConfig, "min_shard_size", 2**15)
    build(str(mixed), str(tmp_path / "here"), processes=1)
    options = "runner=DirectRunner"
    build(str(mixed), str(tmp_path / "beam"), beam_pipeline_options=options)
    here = _contents(tmp_path / "here")
    assert sum("train.tfrecord" in name for name in here) == 4  # of 6 sub-images
    assert _contents(tmp_path / "beam") == here


def test_no_usable_image_is_an_error_that_leaves_nothing(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_text("no image")
    with pytest.raises(UserError, match="no usable image among the 1 of the train"):
        build(str(folder), str(tmp_path), beam_pipeline_options="runner=DirectRunner")
    assert not records.exists(str(tmp_path), "bad")


def test_unknown_runner_is_an_error(tmp_path, mixed):
    with pytest.raises(UserError, match="runner Nobody: Unexpected pipeline runner"):
        build(str(mixed), str(tmp_path), beam_pipeline_options="runner=Nobody")
