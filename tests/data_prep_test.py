"""Tests of the builder: sub-images, splits, bad images, atomicity, command line."""

import io
import multiprocessing
import os
import pathlib
import re
import signal
import threading
import time

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image

from cqr_jax import files
from cqr_jax.data import jpeg, records
from cqr_jax.data.held_out import EMBEDDED
from cqr_jax.errors import UserError
from data_prep import ladder, sources
from data_prep.build import build
from data_prep.build import main as build_command
from data_prep.workers import Workers
from tests.conftest import call, run, start


@pytest.mark.parametrize("size", [(128, 128), (264, 200), (481, 321), (513, 1000)])
def test_sub_images_tile_all_complete_blocks(size):
    covered = np.zeros(size, int)
    for top, left, height, width in ladder.sub_images(*size, 256):
        assert top % 8 == left % 8 == height % 8 == width % 8 == 0
        assert 128 <= height <= 256
        assert 128 <= width <= 256
        covered[top : top + height, left : left + width] += 1
    whole = tuple(side // 8 * 8 for side in size)
    assert (covered[: whole[0], : whole[1]] == 1).all()
    assert covered.sum() == whole[0] * whole[1]


def test_records_hold_the_image_and_its_jpegs(builder, photographs):
    seen = {}
    for split in ("train", "validation"):
        for record in tfds.as_numpy(builder.as_dataset(split=split)):
            name = record["name"].decode()
            y = jpeg.load_luma(photographs / name)
            top, left = record["top"], record["left"]
            part = y[top : top + record["height"], left : left + record["width"]]
            np.testing.assert_array_equal(jpeg.decode(record["clean"]), part)
            assert len(record["jpegs"]) == 30
            for quality in (1, 17, 30):
                found = jpeg.decode(record["jpegs"][quality - 1])
                whole = jpeg.compress(y, quality)
                np.testing.assert_array_equal(
                    found, whole[top : top + part.shape[0], left : left + part.shape[1]]
                )
            seen.setdefault(split, set()).add(name)
    assert len(seen["validation"]) == 1
    assert len(seen["train"]) == 3
    assert not seen["train"] & seen["validation"]


def test_another_process_writes_the_same_files(tmp_path, data_dir, photographs):
    code, _, err = run(
        "data_prep.build",
        f"--source={photographs}",
        "--name=photos",
        f"--data_dir={tmp_path}",
        "--processes=2",
        env={k: v for k, v in os.environ.items() if not k.startswith("TF_")},
    )
    assert code == 0, err
    # Libraries write no messages between the bars of the progress. A slow bar counts
    # seconds per image.
    bar = re.compile(r"\d+/\d+ .*(image/s|s/image)")
    assert [x for x in err.splitlines() if x.strip() and not bar.search(x)] == []
    paths = [path for path in data_dir.rglob("*") if path.is_file()]
    assert len(paths) >= 4
    for path in paths:
        assert (tmp_path / path.relative_to(data_dir)).read_bytes() == path.read_bytes()


def test_bad_images_are_skipped_with_their_reasons(tmp_path, photographs, capfd):
    good = next(photographs.iterdir())
    folder = tmp_path / "mixed"
    (folder / "deeper").mkdir(parents=True)
    for i in range(2):
        (folder / "deeper" / f"good{i}.png").write_bytes(good.read_bytes())
    (folder / "cut.png").write_bytes(good.read_bytes()[:5000])
    (folder / "text.jpg").write_text("no image")
    (folder / "a.gif").touch()
    (folder / "b.cr2").touch()
    (folder / "notes.txt").touch()
    Image.open(good).resize((100, 300)).save(folder / "small.png")
    Image.open(good).convert("RGBA").save(folder / "opaque.png")
    clear = Image.open(good).convert("RGBA")
    clear.putalpha(100)
    clear.save(folder / "clear.png")
    build(str(folder), str(tmp_path / "data"), processes=1, validation_fraction=0.5)
    metadata = records.open_builder(str(tmp_path / "data"), "mixed").info.metadata
    assert sum(metadata["used"].values()) == 3
    assert metadata["skipped"].keys() == {
        "cut.png",
        "text.jpg",
        "small.png",
        "clear.png",
    }
    out, err = capfd.readouterr()
    assert "4 images skipped" in out
    assert "skipped small.png: too small: 100x300, sides of at least 128" in err
    assert "skipped clear.png: has transparent pixels" in err
    assert (
        f"skipped 2 images in formats that are not read here, such as {folder}" in err
    )


def test_no_usable_image_is_an_error_that_leaves_nothing(tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_text("no image")
    code, _, err = call(build_command, f"--source={folder}", f"--data_dir={tmp_path}")
    assert code == 1
    assert err.count("error:") == 1
    why = r"no usable image among the 1 of the \w+ split \(the last is [ab]\.png: \S"
    assert re.search(why, err)
    assert "Traceback" not in err
    assert not records.exists(str(tmp_path), "bad")


def test_an_empty_folder_is_an_error(tmp_path):
    code, out, err = call(build_command, f"--source={tmp_path}")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {tmp_path}: holds no image")
    assert len(err.splitlines()) == 1


def test_existing_records_that_differ_are_an_error(tmp_path, data_dir, photographs):
    build(str(photographs), str(data_dir), "photos")  # the same source: does nothing
    with pytest.raises(UserError, match="choose another --name"):
        build("embedded", str(data_dir), "photos")
    with pytest.raises(UserError, match="min_side 128, not 120"):
        build(str(photographs), str(data_dir), "photos", min_side=120)
    with pytest.raises(UserError, match="holds records with counts"):
        build(str(photographs), str(data_dir), "photos", validation_fraction=0.8)


def test_records_are_replaced_completely_or_not_at_all(tmp_path, photographs):
    folder, data_dir = tmp_path / "set", str(tmp_path / "data")
    folder.mkdir()
    first, *others = sorted(photographs.iterdir())
    for path in (first, *others):
        (folder / path.name).write_bytes(path.read_bytes())
    where = records.directory(data_dir, "set")
    where.mkdir(parents=True)
    (where / "set-train.tfrecord-00000-of-00001").touch()
    with pytest.raises(UserError, match="holds incomplete records; remove it, or pass"):
        build(str(folder), data_dir, processes=1)
    build(str(folder), data_dir, processes=1, overwrite=True)

    def images():
        splits = records.open_builder(data_dir, "set").info.metadata["used"]
        return sum(splits.values())

    assert images() == 4
    for path in others:
        (folder / path.name).write_text("no image")
    with pytest.raises(UserError, match="no usable image"):
        build(str(folder), data_dir, processes=1, overwrite=True)
    assert images() == 4
    (folder / others[0].name).write_bytes(others[0].read_bytes())
    for path in others[1:]:
        (folder / path.name).unlink()
    build(str(folder), data_dir, processes=1, overwrite=True)
    assert images() == 2
    assert [x.name for x in where.parent.iterdir()] == [where.name]
    # A build with --overwrite that is killed leaves the old records beside.
    where.rename(where.with_name(f"{where.name}.replaced"))
    where.mkdir()
    (where / "set-train.tfrecord-00000-of-00001").touch()  # not complete
    with pytest.raises(UserError, match="holds records with origin"):
        build("embedded", data_dir, "set", processes=1)
    assert images() == 2


def test_bad_sides_and_names_are_errors(photographs, tmp_path):
    with pytest.raises(UserError, match="multiples of 8"):
        build(str(photographs), str(tmp_path), side=250)
    with pytest.raises(UserError, match="can't name a data set"):
        build(str(photographs), str(tmp_path), "a/b")


def test_a_killed_build_is_incomplete_and_can_be_repeated(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "noise"
    folder.mkdir()
    for i in range(60):
        y = rng.integers(0, 256, (512, 512), dtype=np.uint8)
        (folder / f"{i}.png").write_bytes(jpeg.encode_png(y))
    data_dir = tmp_path / "data"
    arguments = ("data_prep.build", f"--source={folder}", f"--data_dir={data_dir}")
    process = start(*arguments, start_new_session=True)
    directory = records.directory(str(data_dir), "noise")
    deadline = time.time() + 60
    while not list(directory.parent.glob("incomplete.*")) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # its workers end too, and close the pipes
    assert list(directory.parent.glob("incomplete.*"))
    assert not records.exists(str(data_dir), "noise")
    for path in sorted(folder.iterdir())[4:]:
        path.unlink()
    assert run(*arguments)[0] == 0
    assert records.exists(str(data_dir), "noise")
    assert not list(directory.parent.glob("incomplete.*"))


def test_a_killed_worker_is_reported_and_nothing_is_written(photographs, tmp_path):
    def kill_a_worker():
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.01)
        workers[0].kill()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    with pytest.raises(UserError, match="a worker process was killed"):
        build(str(photographs), str(tmp_path), "photos")
    killer.join()
    assert not records.exists(str(tmp_path), "photos")


def test_shutdown_cancels_tasks_and_ends_the_workers():
    workers = Workers(2)
    tasks = [workers.submit(time.sleep, 0.3) for _ in range(40)]
    assert len(multiprocessing.active_children()) == 2
    tasks[0].result()
    workers.shutdown(cancel_futures=True)
    assert not multiprocessing.active_children()
    assert sum(task.cancelled() for task in tasks) > 30


def test_second_process_waits_for_the_records_of_the_first(photographs, tmp_path):
    arguments = ("data_prep.build", f"--source={photographs}", f"--data_dir={tmp_path}")
    folder = records.directory(str(tmp_path), "photographs0").parent
    with files.lock(pathlib.Path(folder) / ".lock", pytest.fail):
        process = start(*arguments, "--name=photographs0")
        waits = "waiting for the process that makes these"
        assert any(waits in line for line in process.stderr)
        assert not records.exists(str(tmp_path), "photographs0")
        build(str(photographs), str(tmp_path / "other"), "photographs0", processes=1)
        other = records.directory(str(tmp_path / "other"), "photographs0")
        other.rename(folder / other.name)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "already exists" in out


def test_embedded_photographs_exist_in_disjoint_splits():
    splits = [set(sources.embedded(split)) for split in EMBEDDED]
    assert all(path.is_file() for split in splits for path in split)
    assert len(set.union(*splits)) == sum(map(len, splits))


def test_div2k_without_a_network_says_what_to_run(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "head", no_network)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: False)
    with pytest.raises(UserError, match=r"configs/deblock\.py:quickstart"):
        build("div2k", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_png_of_a_record_is_lossless(image):
    assert Image.open(io.BytesIO(jpeg.encode_png(image))).format == "PNG"
    np.testing.assert_array_equal(jpeg.decode(jpeg.encode_png(image)), image)
