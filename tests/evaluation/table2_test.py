"""Table 2: rows against metrics and published JPEG results, sets and errors."""

import csv
import functools
import http.server
import json
import math
import os
import pathlib
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from configs import eval as eval_config
from cqr_jax import weights
from cqr_jax.data import jpeg, pipeline, test_sets
from cqr_jax.data.compression import features
from cqr_jax.errors import UserError
from cqr_jax.evaluation import metrics, table2
from cqr_jax.restoring import pictures
from data_prep import test_sets as test_sets_command
from tests.conftest import ROOT, save_fresh

# Folder of the test sets, which are not in the repository, as in configs/eval.py.
SETS = pathlib.Path(os.environ.get("CQR_JAX_TEST_SETS", ROOT / "data" / "eval"))

# PSNR, SSIM and PSNR-B of plain JPEG on the whole test sets. All equal the literature's
# except PSNR-B on BSDS500, where most authors count block boundaries differently.
JPEG_ROWS = {
    ("classic5", 10): ("27.82", "0.7595", "25.21"),
    ("classic5", 20): ("30.12", "0.8344", "27.50"),
    ("classic5", 30): ("31.48", "0.8666", "28.94"),
    ("live1", 10): ("27.77", "0.7730", "25.34"),
    ("live1", 20): ("30.07", "0.8512", "27.57"),
    ("live1", 30): ("31.41", "0.8851", "28.93"),
    ("bsds500-test", 10): ("27.80", "0.7684", "25.15"),
    ("bsds500-test", 20): ("30.05", "0.8488", "27.30"),
    ("bsds500-test", 30): ("31.37", "0.8836", "28.63"),
    ("bsds500", 10): ("27.87", "0.7660", "25.25"),
    ("bsds500", 20): ("30.11", "0.8458", "27.38"),
    ("bsds500", 30): ("31.41", "0.8807", "28.69"),
}


def _config(sets, **fields):
    config = eval_config.get_config()
    config.update({"sets": sets, **fields})
    return config


def _measure(config, workdir, methods=(), restored=()):
    return table2.measure(config, str(workdir), dict(methods), dict(restored))


@pytest.mark.skipif(
    not all((SETS / x).is_dir() for x in ("classic5", "live1", "bsds500")),
    reason="the test sets are not here",
)
def test_plain_jpeg_equals_the_literature(tmp_path, caplog):
    config = _config("classic5,live1,bsds500-test,bsds500", set_dir=str(SETS))
    rows, images = _measure(config, tmp_path)
    found = {}
    for row in rows:
        shown = (f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{row['psnr_b']:.2f}")
        found[row["dataset"], row["quality"]] = shown
    assert found == JPEG_ROWS
    assert len(images) == 3 * (5 + 29 + 200 + 500)
    assert "differ" not in caplog.text


def test_rows_are_means_over_the_images(photographs, tmp_path):
    config = _config(str(photographs), qualities=(15,))
    (row,), images = _measure(config, tmp_path)
    expected = []
    for path in sorted(photographs.iterdir()):
        y = jpeg.load_luma(path)
        z = jpeg.compress(y, 15)
        expected.append([f(y, z) for f in (metrics.psnr, metrics.ssim, metrics.psnr_b)])
    mean = np.mean(expected, axis=0)
    assert [row["psnr"], row["ssim"], row["psnr_b"]] == pytest.approx(mean.tolist())
    assert (row["images"], row["method"], row["quality"]) == (4, "jpeg", 15)
    assert [[x["psnr"], x["ssim"], x["psnr_b"]] for x in images] == expected
    assert images[0]["image"] == f"{photographs.name}/{min(photographs.iterdir()).stem}"


def test_an_identity_deblocker_equals_jpeg(photographs, tmp_path):
    path = str(save_fresh(tmp_path, "deblocker"))
    config = _config(str(photographs), qualities=(10, 20))
    rows, _ = _measure(config, tmp_path, {"ours": path})
    fields = ("quality", "psnr", "ssim", "psnr_b")
    plain, ours = (
        [[row[field] for field in fields] for row in rows if row["method"] == method]
        for method in ("jpeg", "ours")
    )
    assert len(plain) == 2
    assert plain == ours
    assert {row.get("weights") for row in rows} == {None, path}


def test_conditioned_networks_receive_the_compression_of_the_files(
    photographs, tmp_path, monkeypatch
):
    told = {}

    def spy(images, compression):
        told.update(
            (image.tobytes(), x) for image, x in zip(images, compression, strict=True)
        )
        return images / np.float32(255)

    monkeypatch.setattr(table2, "networks", lambda *args: {"spy": spy})
    config = _config(str(photographs), qualities=(10, 40))
    _measure(config, tmp_path, {"spy": ""})
    assert len(told) == 2 * 4
    for path in photographs.iterdir():
        for quality in (10, 40):
            data = jpeg.encode(jpeg.load_luma(path), quality)
            expected = features(pictures.decode(data).compression)
            found = told[jpeg.decode(data).tobytes()]
            np.testing.assert_array_equal(found, expected)


def test_self_ensemble_increases_psnr(image, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.png").write_bytes(jpeg.encode_png(image[:80]))
    methods = {"compact": str(weights.SHIPPED / "compact.safetensors")}
    psnr = []
    for ensemble in (False, True):
        config = _config(str(tmp_path / "one"), self_ensemble=ensemble)
        rows, _ = _measure(config, tmp_path, methods)
        psnr.append(np.mean([r["psnr"] for r in rows if r["method"] == "compact"]))
    assert psnr[1] > psnr[0]


def test_saved_images_can_be_evaluated_and_have_the_same_metrics(photographs, tmp_path):
    first = tmp_path / "first"
    config = _config(str(photographs), qualities=(10, 20), save_images=True)
    plain, _ = _measure(config, first)
    other = shutil.copytree(first / "images" / "jpeg", tmp_path / "other")
    config.save_images = False
    table2.table2(config, str(tmp_path / "second"), [], [str(other)])
    rows = json.loads((tmp_path / "second" / "rows.json").read_text())
    assert [row["method"] for row in rows] == ["jpeg", "other"] * 2
    for row, (a, b) in zip(plain, zip(rows[::2], rows[1::2], strict=True), strict=True):
        assert a == row
        assert b == {**row, "method": "other"}

    # Gray may be stored in three channels. Colours are rejected.
    wrong = min((other / "q20" / photographs.name).iterdir())
    with Image.open(wrong) as image:
        coloured = image.convert("RGB")
    coloured.save(wrong)
    table2.table2(config, str(tmp_path / "third"), [], [str(other)])
    assert json.loads((tmp_path / "third" / "rows.json").read_text()) == rows
    coloured.putpixel((3, 4), (1, 2, 3))
    coloured.save(wrong)
    with pytest.raises(UserError, match=rf"{wrong.name}: has colours"):
        table2.table2(config, str(tmp_path / "fourth"), [], [str(other)])
    shutil.copy(wrong, wrong.with_suffix(".bmp"))
    with pytest.raises(UserError, match="differ only in their suffix"):
        table2.table2(config, str(tmp_path / "fourth"), [], [str(other)])
    wrong.with_suffix(".bmp").unlink()

    wrong.write_bytes(jpeg.encode_png(np.zeros((20, 30), np.uint8)))
    with pytest.raises(UserError, match=rf"q20.*{wrong.name}: is 30x20, but its orig"):
        table2.table2(config, str(tmp_path / "fourth"), [], [str(other)])
    wrong.unlink()
    with pytest.raises(UserError, match=rf"q20/.*/{wrong.stem}.png: is missing"):
        table2.table2(config, str(tmp_path / "fourth"), [], [str(other)])
    assert not (tmp_path / "fourth").exists()


def test_infinite_psnr_is_left_out_of_the_mean(photographs, tmp_path, capsys):
    """First one restored image equals its original, then all do."""
    keys = sorted(path.stem for path in photographs.iterdir())
    perfect = tmp_path / "perfect" / "q10" / photographs.name
    perfect.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for key in keys:
        y = jpeg.load_luma(photographs / f"{key}.png")
        z = y if key == keys[0] else y ^ noise.integers(0, 2, y.shape, dtype=np.uint8)
        (perfect / f"{key}.png").write_bytes(jpeg.encode_png(z))
    config = _config(str(photographs), qualities=(10,))
    folders = [str(tmp_path / "perfect")]
    table2.table2(config, str(tmp_path / "out"), [], folders)
    _, row = json.loads((tmp_path / "out" / "rows.json").read_text())
    with (tmp_path / "out" / "images.csv").open() as file:
        each = [line for line in csv.DictReader(file) if line["method"] == "perfect"]
    assert [float(line["psnr"]) == math.inf for line in each] == [True] + [False] * 3
    rest = np.mean([float(line["psnr"]) for line in each[1:]])
    assert (row["psnr"], row["identical"]) == (pytest.approx(rest), 1)
    assert row["ssim"] == pytest.approx(np.mean([float(x["ssim"]) for x in each]))
    out = capsys.readouterr().out
    assert (
        "* images equal to their original, whose infinite PSNR no mean includes: perf"
        in out
    )
    assert f"{row['psnr_b']:.2f}*" in out

    for key in keys:
        shutil.copy(photographs / f"{key}.png", perfect / f"{key}.png")
    table2.table2(config, str(tmp_path / "out"), [], folders)
    _, row = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert (row["psnr"], row["ssim"], row["identical"]) == (None, pytest.approx(1), 4)
    assert " inf | 1.0000 | " in capsys.readouterr().out


def test_methods_are_named_after_their_files_or_folders():
    paths = ["runs/a/deblocker.safetensors", "runs/b.safetensors", "other/c-1.0"]
    assert list(table2.by_name(paths, ["jpeg"])) == ["a", "b", "c-1.0"]
    with pytest.raises(UserError, match="another method is called 'b' too"):
        table2.by_name(["runs/b.safetensors", "b"], [])
    assert list(table2.by_name(["other/deblocker"], [])) == ["deblocker"]
    with pytest.raises(UserError, match="'jpeg' too"):
        table2.by_name(["x/jpeg"], ["jpeg"])


def test_validation_sets_are_the_images_held_out_from_training(photographs, builder):
    names = {name.decode() for name in _names(builder, "validation")}
    found = table2.find_images([f"{photographs}:validation"], "")
    assert {image.path.name for image in found.values()} == names
    assert [image.sets for image in found.values()] == [
        [f"{photographs.name}:validation"] for _ in names
    ]
    assert not names & {name.decode() for name in _names(builder, "train")}
    with pytest.raises(UserError, match="no such folder of images"):
        table2.find_images(["nowhere:validation"], "")


def _names(builder, split):
    return {x["name"].numpy() for x in pipeline.read(builder, split)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (jpeg.encode_png(np.zeros((8, 90), np.uint8)), "too small for SSIM"),
        (b"text", "not an image"),
    ],
)
def test_an_unusable_image_is_named_before_the_work(
    photographs, tmp_path, content, words
):
    folder = shutil.copytree(photographs, tmp_path / "images")
    (folder / "zz.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"zz\.png: {words}"):
        table2.find_images([str(folder)], "")


def test_a_damaged_image_is_named(photographs, tmp_path):
    folder = shutil.copytree(photographs, tmp_path / "images")
    damaged = max(folder.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:2000])
    with pytest.raises(UserError, match=rf"{damaged.name}: damaged or truncated"):
        _measure(_config(str(folder)), tmp_path / "out")


def test_folders_with_ambiguous_names_are_rejected(photographs, tmp_path):
    twin = shutil.copytree(photographs, tmp_path / photographs.name)
    with pytest.raises(UserError, match="two of the sets are named"):
        _measure(_config(f"{photographs},{twin}"), tmp_path / "out")
    shutil.copy(min(twin.iterdir()), min(twin.iterdir()).with_suffix(".bmp"))
    with pytest.raises(UserError, match="differ only in their suffix"):
        _measure(_config(str(twin)), tmp_path / "out")
    words = "not one of the sets classic5, live1, bsds500-test, bsds500, embedded"
    with pytest.raises(
        UserError, match=f"nowhere: no such folder of images, and {words}"
    ):
        _measure(_config("nowhere"), tmp_path / "out")


def test_methods_get_the_names_of_their_files_or_given_ones():
    paths = ["runs/a/deblocker.safetensors", "b.safetensors", "c=lr=1/x.safetensors"]
    assert table2.by_name([*paths, "lr=1/d.safetensors"], ["jpeg"]) == {
        "a": paths[0],
        "b": paths[1],
        "c": "lr=1/x.safetensors",
        "lr": "1/d.safetensors",
    }
    twice = ["none/seed0/deblocker.safetensors", "dc/seed0/deblocker.safetensors"]
    with pytest.raises(UserError, match=f"as NAME={twice[1]}"):
        table2.by_name(twice, [])
    with pytest.raises(UserError, match="another method is called 'jpeg' too"):
        table2.by_name(["jpeg=a"], ["jpeg"])


def test_expected_images_of_the_sets():
    counts = {name: len(test_sets.expected(name)) for name in test_sets.SETS}
    assert counts == {
        "classic5": 5,
        "live1": 29,
        "bsds500-test": 200,
        "bsds500": 500,
    }
    shapes = {image.shape for image in test_sets.expected("bsds500").values()}
    assert shapes == {(321, 481), (481, 321)}


@pytest.fixture
def host(tmp_path, photographs, monkeypatch):
    """Serves a set 'classic5' of two photographs that test_sets expects."""
    folder = tmp_path / "www"
    folder.mkdir()
    expected = {}
    for path in sorted(photographs.iterdir())[:2]:
        shutil.copy(path, folder)
        y = jpeg.load_luma(path)
        digest = test_sets.hashlib.sha256(y.tobytes()).hexdigest()
        expected[f"classic5/{path.stem}"] = test_sets.Expected(y.shape, digest)
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(folder)
    )
    handler.log_message = lambda *args: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(test_sets, "expected", lambda name: expected)
    monkeypatch.setattr(test_sets, "HOST", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setitem(test_sets._ADDRESSES, "classic5", "{}.png")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_set_is_downloaded_and_checked(host, tmp_path, caplog):
    set_dir = str(tmp_path / "eval")
    found = test_sets.images("classic5", set_dir)
    assert sorted(path.name for path in found.values()) == sorted(os.listdir(host))
    rows, _ = _measure(_config("classic5", set_dir=set_dir), tmp_path)
    assert [row["images"] for row in rows] == [2, 2, 2]
    assert "differ from the literature's" not in caplog.text

    # A different image causes a warning, a missing one an error that says what to do.
    first, second = found.values()
    shutil.copy(first, second)
    _measure(_config("classic5", set_dir=set_dir), tmp_path)
    assert f"1 of the images differ from the literature's, {second}" in caplog.text
    caplog.clear()
    table2.check(table2.find_images(["classic5"], set_dir).values(), set_dir)
    assert f"differ from the literature's, {second}" in caplog.text
    second.unlink()
    with pytest.raises(UserError, match="lacks 1 of the 2 images of classic5"):
        test_sets.images("classic5", set_dir)
    test_sets.fetch("classic5", set_dir)
    assert list(test_sets.images("classic5", set_dir).values()) == [first, second]


def test_a_set_completes_the_folder_of_its_part(host, tmp_path, monkeypatch):
    """The folder of bsds500-test is within that of bsds500."""
    whole = {}
    for split, path in zip(("test", "train"), sorted(host.iterdir()), strict=True):
        (host / split).mkdir()
        y = jpeg.load_luma(path)
        digest = test_sets.hashlib.sha256(y.tobytes()).hexdigest()
        whole[f"bsds500/{split}/a"] = test_sets.Expected(y.shape, digest)
        path.rename(host / split / "a.png")
    monkeypatch.setitem(test_sets._ADDRESSES, "bsds500", "{}.png")
    monkeypatch.setattr(
        test_sets,
        "expected",
        lambda name: {
            k: x for k, x in whole.items() if k.startswith(test_sets.SETS[name])
        },
    )
    set_dir = str(tmp_path / "eval")
    assert test_sets.images("bsds500-test", set_dir).keys() == {"bsds500/test/a"}
    assert test_sets.images("bsds500", set_dir).keys() == whole.keys()


@pytest.mark.parametrize(
    ("sets", "words"),
    [("", "name a set"), ("embedded,embedded", "two of the sets are named embedded")],
)
def test_empty_and_repeated_sets_are_rejected(sets, words, tmp_path):
    with pytest.raises(UserError, match=words):
        _measure(_config(sets), tmp_path)


def test_a_failed_download_leaves_no_files(host, tmp_path, monkeypatch):
    damaged = min(host.iterdir())
    damaged.write_bytes(jpeg.encode_png(np.zeros((16, 16), np.uint8)))
    with pytest.raises(UserError, match="is not the image that it was"):
        test_sets.images("classic5", str(tmp_path / "eval"))
    damaged.unlink()
    with pytest.raises(UserError, match=r"could not be fetched from .*HTTPError"):
        test_sets.images("classic5", str(tmp_path / "eval"))
    monkeypatch.setattr(test_sets, "HOST", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"put its 2 images into .*/classic5, or name the folder"
    ):
        test_sets.images("classic5", str(tmp_path / "eval"))
    assert not (tmp_path / "eval").exists()


def test_the_command_downloads_and_checks_the_sets(host, tmp_path, monkeypatch, capsys):
    set_dir = str(tmp_path / "eval")
    monkeypatch.setattr(test_sets, "SETS", {"classic5": "classic5"})
    monkeypatch.setattr("sys.argv", ["test_sets", "--set_dir", set_dir])
    test_sets_command.main()
    assert capsys.readouterr().out == "classic5: 2 images, all as expected\n"

    first, second = test_sets.images("classic5", set_dir).values()
    shutil.copy(first, second)
    with pytest.raises(SystemExit) as stop:
        test_sets_command.main()
    assert stop.value.code == 1
    assert capsys.readouterr().err == (
        f"error: classic5: 1 of 2 images differ from the literature's, among them "
        f"{second}; remove them, and run this command again\n"
    )
    second.unlink()
    test_sets_command.main()
    assert capsys.readouterr().out == "classic5: 2 images, all as expected\n"
