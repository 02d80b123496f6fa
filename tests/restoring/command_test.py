"""Tests of `python -m cqr_jax.restoring`, some of them as a process."""

import io
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import time

import jax  # noqa: F401  # before a command can set it up for its process
import numpy as np
import pytest
from PIL import Image

from cqr_jax import weights
from cqr_jax.data import jpeg
from cqr_jax.data.compression import libjpeg
from cqr_jax.errors import UserError
from cqr_jax.evaluation import metrics
from cqr_jax.restoring import (
    colour,
    command,
    file_loop,
    pictures,
    projection,
    recompression,
    restorer,
)
from data_prep import sources
from tests.conftest import call, save_fresh

COPYING = ("--copy-skipped", "--skip-above=90")
LUMA_ONLY = weights.SHIPPED / "compact.safetensors"


def _run(*args, **kwargs):
    """Runs the command as a process; standard output is bytes."""
    process = subprocess.run(
        [sys.executable, "-m", "cqr_jax.restoring", *map(str, args)],
        capture_output=True,
        timeout=300,
        **kwargs,
    )
    return process.returncode, process.stdout, process.stderr.decode()


def _call(*args, **kwargs):
    """Runs the command in this process, which is faster."""
    return call(command.main, *args, **kwargs)


@pytest.fixture(scope="module")
def photograph():
    """A colour photograph of 160x120 pixels."""
    with Image.open(sources.embedded("test")[1]) as image:
        return image.convert("RGB").crop((200, 96, 360, 216))


@pytest.fixture
def folder(tmp_path, photograph):
    """Files in several formats in nested folders; two can't be read."""
    root = tmp_path / "in"
    (root / "deep" / "er").mkdir(parents=True)
    photograph.save(root / "a.jpg", quality=10)
    photograph.convert("L").save(root / "deep" / "gray.jpeg", quality=15)
    photograph.save(root / "deep" / "er" / "c.webp", quality=10)
    (root / "bad.jpg").write_bytes((root / "a.jpg").read_bytes()[:1000])
    (root / "empty.png").touch()
    (root / "notes.txt").write_text("no image")
    return root


def test_folders_are_restored_and_outputs_skipped_the_second_time(
    folder, tmp_path, photograph
):
    out, report = tmp_path / "out", tmp_path / "report.json"
    code, stdout, err = _run(folder, "-o", out, "--report", report)
    assert code == 1
    assert stdout == b""
    assert "Traceback" not in err
    found = sorted(str(x.relative_to(out)) for x in out.rglob("*") if x.is_file())
    assert found == ["a.png", "deep/er/c.webp", "deep/gray.png"]
    outcomes = {
        pathlib.Path(x["input"]).name: x for x in json.loads(report.read_text())
    }
    assert {k: x["status"] for k, x in outcomes.items()} == {
        "a.jpg": "restored",
        "c.webp": "restored",
        "gray.jpeg": "restored",
        "bad.jpg": "failed",
        "empty.png": "failed",
    }
    assert outcomes["empty.png"]["reason"] == "an empty file"
    assert "damaged or truncated" in outcomes["bad.jpg"]["reason"]
    assert f"{folder}/bad.jpg: failed: damaged or truncated" in err
    assert "3 restored, 2 failed; 0.1 megapixels in" in err.splitlines()[-1]

    # The outputs have a lower error than the inputs, in colour and in gray.
    clean = np.asarray(photograph)
    for name, mode in (("a", "RGB"), ("deep/gray", "L")):
        before = next(folder.glob(f"{name}.jp*g"))
        errors = [
            np.square(
                np.asarray(Image.open(x), float)
                - np.asarray(Image.fromarray(clean).convert(mode))
            ).mean()
            for x in (before, out / f"{name}.png")
        ]
        assert errors[1] < 0.85 * errors[0], name

    # The second run overwrites nothing, and the same files fail.
    times = {x: x.stat().st_mtime_ns for x in out.rglob("*")}
    code, _, err = _call(folder, "-o", out)
    assert code == 1
    assert "0 restored, 3 skipped, 2 failed" in err
    assert f"{out}/a.png exists; --overwrite replaces it" in err
    assert times == {x: x.stat().st_mtime_ns for x in out.rglob("*")}


def test_quality_only_reports_and_names_what_it_leaves_out(folder, tmp_path):
    (folder / "raw.cr2").touch()
    report = tmp_path / "report.json"
    code, out, err = _call(".", "--quality-only", "--report", report, cwd=folder)
    assert code == 1  # two files can't be read
    assert "raw.cr2: left out: CR2 can't be read" in err
    rows = {x["input"]: x for x in json.loads(report.read_text())}
    assert rows["a.jpg"]["quality_factor"] == 10
    assert "a.jpg" in out


@pytest.mark.parametrize("flags", [("a.jpg", "b.jpg"), ("a.jpg", "--json")])
def test_standard_output_takes_one_image(folder, flags):
    code, out, err = _call(*flags, "-o", "-", cwd=folder)
    assert (code, out) == (1, "")
    assert "-o - writes one image to standard output; name one input" in err


def test_output_of_one_file_beside_it_or_named(folder, tmp_path):
    code, _, err = _call("a.jpg", cwd=folder)
    assert code == 0, err
    with Image.open(folder / "a.restored.png") as image:
        assert image.size == (160, 120)
    code, _, err = _call(
        "a.jpg", "-o", tmp_path / "b.tif", "--bits=16", "--tile=64", cwd=folder
    )
    assert code == 0, err
    wide = pathlib.Path(tmp_path / "b.tif").read_bytes()
    pixels = pictures.decode(wide).pixels
    assert pixels.dtype == np.uint16
    first = np.asarray(Image.open(folder / "a.restored.png"))
    # The results differ only by the tile size.
    assert metrics.psnr_of_mse(np.square(pixels / 257 - first).mean()) > 40


def test_standard_input_is_restored_to_standard_output(folder):
    data = (folder / "a.jpg").read_bytes()
    code, out, err = _run("-", "-o", "-", "--format=jpeg", input=data)
    assert code == 0, err
    with Image.open(io.BytesIO(out)) as image:
        assert (image.format, image.size) == ("JPEG", (160, 120))


def test_quality_only_prints_scores_and_quality_factors(folder, tmp_path, photograph):
    Image.fromarray(
        jpeg.compress(np.asarray(photograph.convert("L")), 12)
    ).save(folder / "decoded.png")  # fmt: skip
    code, out, err = _call("--quality-only", "--json", folder)
    assert code == 1
    assert "empty.png: an empty file" in err
    found = {pathlib.Path(x["input"]).name: x for x in json.loads(out)}
    factors = {
        name: (row["quality_factor"], row["quality_factor_from"])
        for name, row in found.items()
        if "score" in row
    }
    assert factors["a.jpg"] == (10, "tables")
    assert factors["gray.jpeg"] == (15, "tables")
    assert factors["decoded.png"] == (12, "pixels")
    assert found["decoded.png"]["score"] < found["gray.jpeg"]["score"]
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes((folder / "a.jpg").read_bytes())
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    found = folder.glob("caf*")
    code, out, err = _run("--quality-only", *found, env=environment)
    assert code == 0, err
    assert b"caf\\udce9.jpg" in out
    code, out, _ = _call("--quality-only", folder / "a.jpg")
    assert code == 0
    assert out.splitlines()[0].split() == ["file", "score", "QF", "QF", "from"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["in", "-o", "one.png"], "error: -o one.png: names a single file, but there"),
        (["in/a.jpg", "--weights=x"], "error: x: no such weights file"),
        (["-"], "error: standard input needs -o"),
        (["in", "-o", "-"], "error: -o -: writes one image to standard output, not"),
        (["in/a.jpg", "-o", "b.gif"], "error: -o b.gif: no format has this suffix"),
        (["in/a.jpg", "--report=in"], "error: --report=in: is a folder"),
        (
            ["--report", "in/a.jpg", "in"],
            "error: --report=in/a.jpg: is an image's name",
        ),
        (["--report", "in/a.heic", "in"], "error: --report=in/a.heic: is an image's"),
        (["--report", "in/a.cr2", "in"], "error: --report=in/a.cr2: is an image's"),
        (["in", "--report=in/a.jpg/r.json"], "error: --report=in/a.jpg/r.json: can't"),
        (["in", "-o", "x", "--report=x"], "error: --report=x: is the output too"),
        (["in/a.jpg", f"--weights={'b' * 300}"], f"error: {'b' * 300}: no such"),
        (
            ["in/a.jpg", "--quality-factor=20", f"--weights={LUMA_ONLY}"],
            "error: quality factor 20: these weights don't take one; leave it out",
        ),
        (["in/a.jpg", "-o", "in/notes.txt/"], "error: -o in/notes.txt/: can't be writ"),
    ],
)
def test_mistakes_give_one_line_errors(folder, args, message):
    code, out, err = _call(*args, cwd=folder.parent)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(message)
    assert "Traceback" not in err
    assert "0 restored" not in err


@pytest.mark.parametrize(
    "flag",
    [
        "--strength=2",
        "--tile=70",
        "--quality=0",
        "--max-megapixels=inf",
        "--quality-factor=0",
        "--quality-factor=10.5",
    ],
)
def test_flags_out_of_range_are_rejected(flag):
    code, _, err = _call("a.jpg", flag)
    assert code == 2
    assert flag.split("=")[1] in err


def test_a_bad_argument_does_not_end_the_run(folder):
    """Each missing input is reported with its reason, and the others go on."""
    (folder / "empty").mkdir()
    (folder / "link.jpg").symlink_to("nowhere.jpg")
    long = "a" * 300
    inputs = ("a.jpg", "missing.jpg", "empty", "*.gif", "link.jpg", long)
    code, out, err = _call(*inputs, "deep/gray.jpeg", "-o", "out", cwd=folder)
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    for line in (
        "missing.jpg: failed: no such file or folder",
        "empty: failed: no image in this folder",
        "*.gif: failed: matches no file",
        "link.jpg: failed: a broken link",
        f"{long}: failed: no such file or folder",
    ):
        assert line in err
    assert "2 restored, 5 failed" in err
    code, out, err = _call("--quality-only", "missing.jpg", "a.jpg", cwd=folder)
    assert code == 1
    assert "missing.jpg: no such file or folder" in err
    assert "a.jpg" in out


def test_images_that_are_not_read_are_named_and_counted(folder):
    (folder / "deep" / "b.psd").touch()
    (folder / "deep" / "lost.jpg").symlink_to("nowhere.jpg")
    report = folder / "report.json"
    code, _, err = _call("deep", "-o", "out", "--report", report, cwd=folder)
    assert code == 1  # for the link
    assert "deep/b.psd: left out: PSD can't be read" in err
    assert "deep/lost.jpg: failed: a broken link" in err
    assert "2 restored, 1 left out, 1 failed" in err
    rows = {pathlib.Path(x["input"]).name: x for x in json.loads(report.read_text())}
    assert rows["b.psd"]["status"] == "left out"


def test_inputs_with_equal_stems_have_separate_outputs(folder):
    """A second run finds both outputs."""
    gray = (folder / "deep" / "gray.jpeg").read_bytes()
    (folder / "a.jpeg").write_bytes(gray)
    _, _, err = _call(folder, "-o", "out", cwd=folder)
    assert "4 restored, 2 failed" in err
    modes = {}
    for path in (folder / "out").glob("a.*"):
        with Image.open(path) as image:
            modes[path.name] = image.mode
    assert modes == {"a.jpg.png": "RGB", "a.jpeg.png": "L"}
    _, _, err = _call(folder, "-o", "out", cwd=folder)
    assert "0 restored, 4 skipped, 2 failed" in err


def test_results_in_the_input_folder_are_no_inputs_of_the_next_run(folder):
    for _ in range(2):
        _, _, err = _call(".", "-o", ".", "--overwrite", cwd=folder)
        assert "3 restored, 2 failed" in err
        found = {x.name for x in folder.iterdir() if x.is_file()}
        assert found == {"a.jpg", "a.restored.png", "bad.jpg", "empty.png", "notes.txt"}


def test_replaced_input_keeps_its_permissions_and_its_link(folder):
    with Image.open(folder / "a.jpg") as image:
        image.save(folder / "a.png")
    (folder / "a.png").chmod(0o600)
    os.utime(folder / "a.png", (1e9, 1e9))
    (folder / "link.png").symlink_to("a.png")
    before = (folder / "a.png").read_bytes()
    code, _, err = _call("link.png", "-o", ".", "--overwrite", cwd=folder)
    assert code == 0, err
    assert (folder / "link.png").is_symlink()
    assert (folder / "a.png").read_bytes() != before
    assert (folder / "a.png").stat().st_mode & 0o777 == 0o600
    assert (folder / "a.png").stat().st_mtime > 1.5e9


def test_preserve_copies_permissions_and_times(folder):
    os.utime(folder / "a.jpg", (1e9, 1e9))
    (folder / "a.jpg").chmod(0o640)
    code, _, err = _call("a.jpg", "-o", "out/", "--preserve", cwd=folder)
    assert code == 0, err
    found = (folder / "out" / "a.png").stat()
    assert (found.st_mode & 0o777, found.st_mtime) == (0o640, 1e9)


def test_output_that_appears_during_restoring_is_not_overwritten(folder, monkeypatch):
    args = command.parser().parse_args([str(folder / "a.jpg"), "-o", f"{folder}/out/"])
    target = folder / "out" / "a.png"
    written = file_loop._write

    def late(job, picture, args):
        target.parent.mkdir()
        target.write_text("of another program")
        return written(job, picture, args)

    monkeypatch.setattr(file_loop, "_write", late)
    args.report = str(folder / "report.json")
    assert file_loop.restore(args) == 0
    (row,) = json.loads((folder / "report.json").read_text())
    assert row["status"] == "skipped"
    assert target.read_text() == "of another program"
    assert [x.name for x in target.parent.iterdir()] == ["a.png"]


def test_input_that_vanishes_during_restoring_is_reported(folder, restore, monkeypatch):
    found = file_loop._find

    def vanishing(args):
        sources = found(args)
        (folder / "a.jpg").unlink()
        return sources

    monkeypatch.setattr(file_loop, "_find", vanishing)
    rows = restore(folder / "a.jpg", folder / "deep")
    assert rows["a.jpg"]["reason"] == "can't be read: No such file or directory"
    assert rows["gray.jpeg"]["status"] == "restored"


def test_jpegs_above_skip_above_are_skipped_or_copied(folder, photograph):
    photograph.save(folder / "good.jpg", quality=90)
    report = folder / "report.json"
    flags = ("-o", "out/", "--skip-above=80", "--report", report)
    code, _, err = _call("good.jpg", "a.jpg", *flags, cwd=folder)
    assert code == 0, err
    reason = "skipped: its quality factor is 90, above --skip-above=80"
    assert f"good.jpg: {reason}" in err
    assert "1 restored, 1 skipped" in err
    code, _, err = _call("good.jpg", "a.jpg", *flags, "--copy-skipped", cwd=folder)
    assert code == 0, err
    assert "1 copied, 1 skipped" in err
    copy = folder / "out" / "good.jpg"
    assert copy.read_bytes() == (folder / "good.jpg").read_bytes()
    found = json.loads(report.read_text())
    assert {x["status"]: x["output"] for x in found} == {
        "copied": "out/good.jpg",
        "skipped": "out/a.png",
    }


@pytest.mark.parametrize(
    ("flags", "name", "form"),
    [
        (["-f", "jpg"], "a.restored.jpg", "JPEG"),
        (["-f", "TIF", "--suffix=_clean"], "a_clean.tif", "TIFF"),
        (["--keep-extension", "-o", "out/"], "out/a.jpg.png", "PNG"),
    ],
)
def test_flags_set_names_of_outputs(folder, flags, name, form):
    code, _, err = _call("a.jpg", *flags, cwd=folder)
    assert code == 0, err
    with Image.open(folder / name) as image:
        assert image.format == form


def test_new_files_in_a_watched_folder_are_restored_until_ctrl_c(folder):
    command = [
        sys.executable,
        "-m",
        "cqr_jax.restoring",
        "deep",
        "-o",
        "out",
        "--watch",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "gray.jpeg ->" in line:
            (folder / "deep" / "new.jpg").write_bytes((folder / "a.jpg").read_bytes())
        if "new.jpg ->" in line:
            process.send_signal(signal.SIGINT)
            break
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 130, err
    assert "3 restored" in err
    assert (folder / "out" / "new.png").exists()
    code, _, err = _call("a.jpg", "--watch", cwd=folder)
    assert code == 2
    assert "--watch takes folders only" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("in", "--demo"), "--demo takes no files: drop them on its page"),
        (("--demo", "--tile=128"), "--demo takes no other options"),
        (("in", "--quality-only", "-o", "x"), "--quality-only restores nothing"),
        (("in", "--quality-only", "--strength=0.5"), "takes no other options than"),
        (("in", "--quality-only", "--watch"), "--quality-only restores nothing"),
        (("in", "--port=9"), "--port needs --demo"),
        (("in", "-o", "x.png", "--suffix=.y"), "--suffix and --keep-extension name"),
        (("in", "-o", "-", "--keep-extension"), "-o names a single file"),
        (("in", "--watch", "-o", "x.png"), "--watch restores into folders"),
        (("in", "--watch", "-o", "-"), "--watch restores into folders"),
        (("in", *COPYING, "-o", "x.png"), "--copy-skipped needs --skip-above"),
        (("a.jpg", *COPYING, "-o", "-"), "--copy-skipped needs --skip-above"),
        (("-", *COPYING, "-o", "out/"), "--copy-skipped needs --skip-above"),
        (("-", "--skip-above=90", "-o", "-"), "could write nothing to -o -"),
        (("-", "-o", ""), "-o: is empty; name a file, a folder or -"),
    ],
)
def test_contradicting_flags_are_rejected(folder, flags, words):
    code, out, err = _call(*flags, cwd=folder.parent)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]


def test_quality_only_leaves_out_results_with_the_suffix_in_folders(folder):
    deep = folder / "deep"
    shutil.copy(deep / "gray.jpeg", deep / "gray-clean.jpeg")
    code, out, err = _call("--quality-only", "--suffix=-clean", "--json", deep)
    assert code == 0, err
    names = [pathlib.Path(row["input"]).name for row in json.loads(out)]
    assert names == ["c.webp", "gray.jpeg"]


def test_a_file_that_changes_during_the_first_round_is_watched(folder, monkeypatch):
    monkeypatch.setattr(file_loop, "_POLL", 0)
    args = command.parser().parse_args([str(folder / "deep"), "--watch"])
    found = file_loop._find(args)
    rounds = file_loop._rounds(found, args, file_loop._Claims())
    assert next(rounds) == found
    gray = folder / "deep" / "gray.jpeg"
    gray.write_bytes(gray.read_bytes() + b"more")
    assert [x.name for x in next(rounds)] == [str(gray)]


def test_own_results_in_a_watched_folder_are_not_restored_again(folder, monkeypatch):
    """A result that the user has changed is restored."""
    monkeypatch.setattr(file_loop, "_POLL", 0)
    deep = folder / "deep"
    args = command.parser().parse_args([str(deep), "-o", str(deep), "--watch"])
    claims = file_loop._Claims()
    rounds = file_loop._rounds(file_loop._find(args), args, claims)
    next(rounds)
    own, other, changed = (deep / f"{x}.png" for x in ("own", "other", "changed"))
    for path in (own, other, changed):
        shutil.copy(deep / "gray.jpeg", path)
        if path != other:
            claims.wrote(str(path))
    changed.write_bytes(changed.read_bytes() + b"more")
    assert {x.name for x in next(rounds)} == {str(other), str(changed)}


def test_a_png_instead_of_another_format_replaces_no_other_output(folder, photograph):
    """WebP has no 16 bits, so a.webp and b.webp become PNGs."""
    photograph.save(folder / "a.webp")
    photograph.save(folder / "b.png")
    photograph.save(folder / "b.webp")
    names = ("a.jpg", "a.webp", "b.png", "b.webp")
    for output, expected in (
        ("out/", {"a.png", "a.webp.png", "b.png", "b.webp.png"}),
        (".", {*names, "a.restored.png", "a.png", "b.webp.png"}),
    ):
        flags = ("-o", output, "--bits=16", "--overwrite", "--strength=0")
        code, _, err = _call(*names, *flags, cwd=folder)
        assert code == 0, err
        assert "4 restored" in err
        assert {x.name for x in (folder / output).glob("[ab].*")} == expected


def test_a_png_beside_a_webp_is_no_input_of_the_next_run(folder, photograph):
    place = folder / "webp"
    place.mkdir()
    for name in ("a.jpg", "a.webp"):
        photograph.save(place / name)
    code, _, err = _call("webp", "--bits=16", "--strength=0", cwd=folder)
    assert code == 0, err
    names = {"a.jpg", "a.webp", "a.restored.png", "a.webp.restored.png"}
    assert {x.name for x in place.iterdir()} == names
    report = folder / "report.json"
    again = ("webp", "--bits=16", "--strength=0", f"--report={report}")
    code, _, err = _call(*again, cwd=folder)
    assert code == 0, err
    assert {x.name for x in place.iterdir()} == names
    assert [(x["status"], x["output"]) for x in json.loads(report.read_text())] == [
        ("skipped", "webp/a.restored.png"),
        ("skipped", "webp/a.webp.restored.png"),
    ]


def test_a_new_file_gets_another_name_than_an_earlier_one(folder):
    args = command.parser().parse_args([str(folder), "-o", "out", "--watch"])
    first, second = (
        file_loop.Source(str(folder / name), pathlib.PurePath(name))
        for name in ("a.jpg", "a.jpeg")
    )
    naming = file_loop.Naming("out")

    third = file_loop.Source(str(folder / "a.png"), pathlib.PurePath("a.png"))
    names, claims = {}, file_loop._Claims()

    def planned(source):
        found = file_loop._plan([source], names, naming, args, never, claims)
        return [x.target for x in found]

    def never(told):
        raise AssertionError(told)

    assert planned(first) == ["out/a.png"]
    assert planned(second) == ["out/a.jpeg.png"]
    assert planned(first) == ["out/a.png"]  # it has changed
    (target,) = planned(third)
    assert target.endswith("in/a.png")
    assert len({*names.values()}) == 3


def test_a_watched_folder_may_be_empty(tmp_path):
    args = command.parser().parse_args([str(tmp_path), "--watch"])
    found = file_loop._find(args)
    assert len(found) == 1
    assert next(file_loop._rounds(found, args, file_loop._Claims())) == []


def test_too_small_a_memory_is_one_line(folder, monkeypatch):
    def never(*args):
        raise MemoryError
        yield

    monkeypatch.setattr(file_loop.restorer, "restorations", never)
    code, _, err = _call("a.jpg", cwd=folder)
    assert code == 1
    assert err.splitlines()[-1].startswith("error: the memory is too small for an ima")


def test_files_that_were_written_before_an_interrupt_are_reported(tmp_path, capsys):
    report = tmp_path / "report.json"
    args = command.parser().parse_args(["in", f"--report={report}"])
    tell = file_loop._Teller(args)
    told, written = (file_loop.Outcome(x, f"{x}.png") for x in ("a", "b"))
    tell.wrote(told)
    tell(told)
    tell.wrote(written)
    tell.end()
    assert [x["input"] for x in json.loads(report.read_text())] == ["a", "b"]
    assert capsys.readouterr().err.count(" -> ") == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has it")
@pytest.mark.parametrize("count", [1, 200])
def test_full_standard_output_is_one_line(folder, count):
    names = [f"none{i}.jpg" for i in range(count)]
    with open("/dev/full", "w") as full:
        code = subprocess.run(
            [sys.executable, "-m", "cqr_jax.restoring", *names, "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
        )
    assert code.returncode == 1
    assert code.stderr.splitlines()[-1] == (
        "error: standard output: No space left on device"
    )


def test_names_of_pngs_do_not_depend_on_the_time_of_decoding(
    folder, photograph, restore, monkeypatch
):
    """A second run then finds the results of the first."""
    decode = file_loop._decode

    def slow_at_first(job, *args):
        if job.source.name.endswith(".bmp"):
            time.sleep(0.5)
        return decode(job, *args)

    monkeypatch.setattr(file_loop, "_decode", slow_at_first)
    names = [str(folder / name) for name in ("b.bmp", "b.webp")]
    for name in names:
        photograph.save(name)
    rows = restore(*names, "--bits=16")
    found = {pathlib.Path(x["output"]).name for x in rows.values()}
    assert pathlib.Path(rows["b.bmp"]["output"]).name == "b.png"
    assert found == {"b.png", "b.webp.png"}


def test_json_lists_outcomes_and_quality_is_that_of_jpeg_outputs(folder):
    flags = ("-o", "x.jpg", "--quality=30", "--json", "--report=report.json")
    code, out, err = _call("a.jpg", *flags, cwd=folder)
    assert code == 0, err
    (row,) = json.loads(out)
    assert [row] == json.loads((folder / "report.json").read_text())
    assert (row["input"], row["output"], row["status"]) == (
        "a.jpg",
        "x.jpg",
        "restored",
    )
    with Image.open(folder / "x.jpg") as image:
        assert tuple(image.quantization[0]) == libjpeg(30).luma


def test_engines_agree(folder, tmp_path):
    pytest.importorskip("openvino")
    path = save_fresh(tmp_path, "colour")
    found = []
    for engine, words in (("jax", ", JAX on cpu"), ("openvino", ", OpenVINO (")):
        flags = (f"--weights={path}", f"--engine={engine}", "--tile=64", "--overwrite")
        # The command sets JAX up before its import. This needs a new process.
        code, _, err = (_run if engine == "jax" else _call)(
            "a.jpg", "-o", "x.png", *flags, cwd=folder
        )
        assert code == 0, err
        assert words in err.splitlines()[-1]
        found.append(np.asarray(Image.open(folder / "x.png"), int))
    with Image.open(folder / "a.jpg") as image:
        assert np.abs(found[0] - np.asarray(image)).max() > 4
    assert np.abs(found[0] - found[1]).mean() < 0.5


def test_a_suffix_excludes_results_beside_inputs_alone(folder):
    (folder / "a_2.jpg").write_bytes((folder / "a.jpg").read_bytes())

    def found(*flags):
        args = command.parser().parse_args([str(folder), "--suffix=_2", *flags])
        return str(folder / "a_2.jpg") in [x.name for x in file_loop._find(args)]

    assert not found()
    assert not found("-o", str(folder))
    assert found("-o", str(folder.parent))
    assert found("-o", str(folder.parent / "out"))
    args = command.parser().parse_args(
        [str(folder), str(folder / "deep"), "--suffix=_2", "-o", str(folder.parent)]
    )
    assert str(folder / "a_2.jpg") not in [x.name for x in file_loop._find(args)]
    args = command.parser().parse_args([str(folder / "*.jpg"), "--suffix=_2"])
    assert str(folder / "a_2.jpg") not in [x.name for x in file_loop._find(args)]


def test_copies_of_good_files_keep_their_names(folder, photograph):
    for name in ("x.jpg", "x.jpeg"):
        photograph.save(folder / name, quality=97)
    flags = ("-o", "out/", "--skip-above=90", "--copy-skipped")
    code, _, err = _call("x.jpg", "x.jpeg", *flags, cwd=folder)
    assert code == 0, err
    assert "2 copied" in err
    assert {x.name for x in (folder / "out").iterdir()} == {"x.jpg", "x.jpeg"}


def test_closed_standard_streams_are_allowed(folder):
    command = [sys.executable, "-m", "cqr_jax.restoring", "a.jpg", "-o", "x.png"]
    script = 'exec "$@" <&- >&- 2>&-'
    found = subprocess.run(["sh", "-c", script, "sh", *command], cwd=folder)
    assert found.returncode == 0
    assert (folder / "x.png").exists()
    command[3] = "-"
    script = 'exec "$@" <&-'
    found = subprocess.run(
        ["sh", "-c", script, "sh", *command, "--overwrite"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 1
    assert "-: failed: can't be read: standard input is closed" in found.stderr
    command[3:] = ["a.jpg", "-o", "-"]
    script = 'exec "$@" >&-'
    found = subprocess.run(
        ["sh", "-c", script, "sh", *command],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert found.returncode == 1
    told = "a.jpg: failed: can't be written to standard output: it is closed"
    assert told in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="needs SIGPIPE")
def test_a_closed_connection_does_not_end_the_page(monkeypatch):
    handled = {}
    monkeypatch.setattr(signal, "signal", handled.__setitem__)
    monkeypatch.setattr(command, "_run", lambda args: 0)
    for flags, quits in ((["--demo"], False), (["a.jpg"], True)):
        handled.clear()
        monkeypatch.setattr(sys, "argv", ["cqr-restore", *flags])
        with pytest.raises(SystemExit):
            command.main()
        assert (signal.SIGPIPE in handled) == quits


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize(
    ("name", "number"), [("-", signal.SIGINT), ("pipe", signal.SIGTERM)]
)
def test_waiting_for_a_stream_can_be_interrupted(folder, name, number):
    os.mkfifo(folder / "pipe")
    process = subprocess.Popen(
        [
            sys.executable,
            "-X",
            "importtime",
            "-m",
            "cqr_jax.restoring",
            name,
            "-o",
            "x.png",
        ],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    for line in process.stderr:
        if "file_loop" in line:  # the last import of its own
            break
    time.sleep(4)  # it loads the weights and waits for the stream
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    assert "Fatal" not in err
    assert not (folder / "x.png").exists()


def test_pictures_that_can_not_be_written_are_not_restored(folder):
    with Image.open(folder / "a.jpg") as image:
        image.convert("RGBA").save(folder / "alpha.png")
    arguments = ("alpha.png", "a.jpg", "-o", "out", "--format=jpeg")
    code, _, err = _call(*arguments, cwd=folder)
    assert code == 1
    assert "alpha.png: failed: has transparency, which jpeg can't hold" in err
    assert "1 restored, 1 failed; 0.0 megapixels" in err
    code, _, err = _call("a.jpg", "-o", "a.webp", "--bits=16", cwd=folder)
    assert code == 1
    assert "16 bits are more than webp can hold; take --format=png or" in err


def test_truncated_jpeg_fails_unless_salvage_is_given(folder):
    whole = (folder / "a.jpg").read_bytes()
    (folder / "endless.jpg").write_bytes(whole[:-2])
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    code, _, err = _call("endless.jpg", "cut.jpg", "-o", "out/", cwd=folder)
    assert code == 1
    assert "endless.jpg: The JPEG lacks its end marker." in err
    assert "--salvage restores what is there" in err
    assert not (folder / "out" / "cut.png").exists()
    report = folder / "report.json"
    flags = ("--salvage", "-o", "out/", "--report", report)
    code, _, err = _call("cut.jpg", *flags, cwd=folder)
    assert code == 0, err
    assert "cut.jpg: The file is truncated: " in err
    (row,) = json.loads(report.read_text())
    assert row["notes"][0].startswith("The file is truncated")
    assert not row["projected"]
    with Image.open(folder / "out" / "cut.png") as image:
        assert image.size == (160, 120)


def _bmp_with_alpha(image: Image.Image) -> bytes:
    """A BMP of an RGBA image; Pillow writes them without the mask of the alpha."""
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    width, height = image.size
    pixels = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes("raw", "BGRA")
    size = (108, width, height, 1, 32, 3, len(pixels), 2835, 2835, 0, 0)
    info = struct.pack("<IiiHHIIiiII", *size) + struct.pack("<4I", *masks)
    info += b"BGRs" + bytes(48)
    return struct.pack("<2sIHHI", b"BM", 122 + len(pixels), 0, 0, 122) + info + pixels


def test_input_format_without_alpha_falls_back_to_png(folder):
    with Image.open(folder / "a.jpg") as image:
        half = image.convert("RGBA")
    half.putalpha(128)
    (folder / "alpha.bmp").write_bytes(_bmp_with_alpha(half))
    code, _, err = _call("alpha.bmp", "-o", "out/", cwd=folder)
    assert code == 0, err
    assert "alpha.bmp: BMP can't hold it: it is written as PNG." in err
    with Image.open(folder / "out" / "alpha.png") as image:
        assert image.getchannel("A").getextrema() == (128, 128)
    code, _, err = _call("alpha.bmp", "-o", "out/", "--format=bmp", cwd=folder)
    assert code == 1
    assert "has transparency, which bmp can't hold; take --format=png" in err
    code, _, err = _call("alpha.bmp", "-o", "out/", cwd=folder)
    assert code == 0
    assert "skipped: out/alpha.png exists; --overwrite replaces it" in err


def test_compilation_cache_is_written_without_messages(folder, tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    for target in ("1.png", "2.png"):
        code, _, err = _run("a.jpg", "-o", target, cwd=folder, env=environment)
        assert code == 0
        assert len(err.splitlines()) == 2, err
    assert any((tmp_path / "cache").rglob("*"))


def test_summary_counts_jpegs_of_too_high_quality(folder, photograph):
    photograph.save(folder / "good.jpg", quality=81)
    flags = ("-o", "out", f"--weights={LUMA_ONLY}")
    code, _, err = _call("a.jpg", "good.jpg", *flags, cwd=folder)
    assert code == 0, err
    told = "1 with a quality factor of 80 or more: such JPEGs can get worse with a"
    assert err.splitlines()[-1].startswith(told)


def test_folders_without_permission_are_found_before_restoring(folder, monkeypatch):
    """This includes the folder of the input if there is no -o."""
    access = os.access
    locked = folder / "deep"

    def refusing(path, mode):
        return os.fspath(path) != str(locked) and access(path, mode)

    def never(*args, **kwargs):
        raise AssertionError("a network was loaded")

    monkeypatch.setattr(os, "access", refusing)
    monkeypatch.setattr(restorer, "load", never)
    report = folder / "report.json"
    inputs = [str(locked / "gray.jpeg"), "--report", str(report)]
    assert file_loop.restore(command.parser().parse_args(inputs)) == 1
    (row,) = json.loads(report.read_text())
    assert row["reason"].endswith(f"can't be written: no permission for {locked}")
    inputs = [str(folder / "a.jpg"), "-o", str(locked)]
    with pytest.raises(UserError, match="no permission for"):
        file_loop.restore(command.parser().parse_args(inputs))


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs limits of size")
def test_outputs_too_large_for_the_disk_leave_no_file(folder, tmp_path):
    Image.new("L", (16, 16)).save(folder / "small.png")
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "cqr_jax.restoring",
        "a.jpg",
        "small.png",
        "-o",
        out,
    ]
    found = subprocess.run(
        ["sh", "-c", 'ulimit -f 40; exec "$@"', "sh", *map(str, command)],  # of 512
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"},  # would be cut too
        timeout=300,
    )
    err = found.stderr
    assert found.returncode == 1
    assert f"a.jpg: failed: can't be written to {out}/a.png: File too large" in err
    assert [x.name for x in out.iterdir()] == ["small.png"]


def test_output_folder_that_is_a_file_is_rejected(folder):
    code, _, err = _call(folder / "a.jpg", "-o", folder / "notes.txt" / "x")
    assert code == 1
    assert "can't be written to" in err


def test_ctrl_c_leaves_no_half_file(folder, tmp_path):
    out = tmp_path / "out"
    for i in range(200):
        (folder / f"more{i:03}.jpg").write_bytes((folder / "a.jpg").read_bytes())
    process = subprocess.Popen(
        [sys.executable, "-m", "cqr_jax.restoring", str(folder), "-o", str(out)],
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:
        if "more003" in line:
            process.send_signal(signal.SIGINT)
            break
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 130, err
    assert err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in err
    written = list(out.rglob("*"))
    assert len(written) < 150
    for path in written:
        if path.is_file():
            with Image.open(path) as image:  # whole
                image.load()


@pytest.mark.filterwarnings("ignore:Exception ignored")  # it is what is tested
def test_interrupt_in_a_destructor_is_not_lost():
    class Last:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    former = signal.getsignal(signal.SIGINT)
    with file_loop._interrupts() as check:
        check()
        Last()  # no exception leaves a destructor
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is former


def test_strength_and_self_ensemble_change_the_result(folder):
    def restore(*flags):
        code, _, err = _call("a.jpg", "-o", "a.png", *flags, cwd=folder)
        assert code == 0, err
        with Image.open(folder / "a.png") as image:
            return np.asarray(image)

    with Image.open(folder / "a.jpg") as image:
        before = np.asarray(image)
    np.testing.assert_array_equal(restore("--strength=0"), before)
    once = restore("--overwrite")
    eightfold = restore("--overwrite", "--self-ensemble")
    assert 1 < np.abs(once - before.astype(float)).mean() < 20
    assert 0.05 < np.abs(once - eightfold.astype(float)).mean() < 2


@pytest.fixture(scope="module")
def colour_weights(tmp_path_factory):
    """Weights of a network whose output depends on the compression."""
    return save_fresh(tmp_path_factory.mktemp("weights"), "colour")


@pytest.fixture
def restore(tmp_path, monkeypatch):
    """The command in this process; no file counts as compressed before.

    Returns a function of inputs and flags to the report's rows, by the inputs' names.
    """
    limits, report = tmp_path / "limits.tsv", tmp_path / "report.json"
    limits.write_text("quality\tlimit\n1\t1\n100\t1\n")
    monkeypatch.setattr(projection, "LIMITS", limits)

    def restore(*args):
        given = (*args, "-o", tmp_path / "out", "--overwrite", "--report", report)
        parsed = command.parser().parse_args([str(x) for x in given])
        file_loop.restore(parsed)
        rows = json.loads(report.read_text())
        return {pathlib.Path(row["input"]).name: row for row in rows}

    return restore


def _condition(row):
    return row["quality_factor"], row["quality_factor_from"], row["projected"]


def test_report_gives_quality_factor_and_its_source(
    folder, restore, colour_weights, photograph, monkeypatch
):
    flag = f"--weights={colour_weights}"
    photograph.convert("CMYK").save(folder / "cmyk.jpg", quality=40)
    photograph.save(folder / "vague.png")
    guesses = iter([libjpeg(7), None])
    monkeypatch.setattr(recompression, "find", lambda _: next(guesses))
    rows = restore(folder, flag)
    assert {name: _condition(row) for name, row in rows.items()} == {
        "a.jpg": (10, "tables", True),
        "gray.jpeg": (15, "tables", True),
        "cmyk.jpg": (40, "tables", False),
        "c.webp": (7, "pixels", False),
        "vague.png": (None, "nothing", False),
        "bad.jpg": (None, "", False),
        "empty.png": (None, "", False),
    }
    for flags, expected in (
        ([flag, "--no-projection"], (10, "tables", False)),
        ([flag, "--quality-factor=33"], (33, "hand", False)),
        ([f"--weights={LUMA_ONLY}"], (None, "nothing", True)),
    ):
        rows = restore(folder / "a.jpg", *flags)
        assert _condition(rows["a.jpg"]) == expected


def test_files_compressed_before_are_reported(
    folder, restore, colour_weights, monkeypatch
):
    monkeypatch.setattr(projection, "limit", lambda quality: -1.0)
    rows = restore(folder / "a.jpg", f"--weights={colour_weights}")
    assert _condition(rows["a.jpg"]) == (10, "tables", False)
    assert rows["a.jpg"]["compressed_before"]


def test_quality_factor_changes_the_result(folder, restore, colour_weights, tmp_path):
    def restored(*flags):
        restore(folder / "a.jpg", f"--weights={colour_weights}", *flags)
        with Image.open(tmp_path / "out" / "a.png") as image:
            return np.asarray(image).astype(int)

    alone = restored("--no-projection")
    assert (restored("--quality-factor=10") == alone).all()  # the file's own
    weak, strong = (restored(f"--quality-factor={n}") for n in (90, 2))
    assert (weak != alone).any()
    assert (weak != strong).any()


@pytest.mark.parametrize("name", ["fine", "fine-gray"])
def test_projected_results_lie_within_the_intervals(
    folder, restore, colour_weights, photograph, tmp_path, name
):
    """Only luma is tested, because interpolation blurs the projection of chroma."""
    mode = "L" if name.endswith("gray") else "RGB"
    middle = photograph.convert(mode).point(lambda x: 70 + x // 3)  # nothing is clipped
    path = folder / f"{name}.jpg"
    middle.save(path, quality=97, subsampling=0)
    (luma, *_) = pictures.decode(path.read_bytes(), stored=True).stored

    def off(*flags):
        """Returns the largest distance of restored and stored coefficients in steps."""
        restore(path, f"--weights={colour_weights}", "--bits=16", *flags)
        data = (tmp_path / "out" / f"{name}.png").read_bytes()
        plane = colour.planes(pictures.decode(data))[0].values
        whole = np.pad(plane, [(0, -n % 8) for n in plane.shape], mode="edge")
        found = projection._transform(whole * 255 - 128)
        steps = np.tile(luma.steps, [n // 8 for n in found.shape])
        return np.abs(found / steps - luma.coefficients).max()

    assert off("--no-projection") > 1
    assert off() < 0.51  # rounding to 16 bits moves some by a little


def test_images_above_max_megapixels_fail(folder):
    code, _, err = _call(folder / "a.jpg", "--max-megapixels=0.01")
    assert code == 1
    assert "160x120 is above 0.01 megapixels" in err
    # Above Pillow's own limit too.
    Image.new("1", (14_000, 13_600)).save(folder / "large.png")
    code, _, err = _call(folder / "large.png", "--max-megapixels=190")
    assert code == 1
    assert "14000x13600 is above 190 megapixels" in err


def test_files_with_random_damage_are_restored_or_reported(tmp_path, photograph):
    """There is no traceback, and all outputs can be read."""
    rng = np.random.default_rng(0)
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    small = photograph.crop((0, 0, 48, 40))
    for i in range(80):
        name = ("jpeg", "png", "webp", "tiff", "bmp")[i % 5]
        buffer = io.BytesIO()
        small.save(buffer, name)
        data = bytearray(buffer.getvalue())
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(len(data))] = rng.integers(256)
        data = data[: rng.integers(1, len(data) + 1)] if i % 2 else data
        (folder / f"{i:02}.{name}").write_bytes(data)
    report = tmp_path / "report.json"
    code, _, err = _run(
        folder, "-o", out, "-f", "png", "--report", report, "--max-megapixels=1",
        "--tile=64",
    )  # fmt: skip
    assert code == 1
    assert "Traceback" not in err
    outcomes = json.loads(report.read_text())
    assert len(outcomes) == 80
    restored = {x["output"] for x in outcomes if x["status"] == "restored"}
    assert 10 < len(restored) < 70
    assert {str(x) for x in out.rglob("*")} == restored
    for path in restored:
        with Image.open(path) as image:
            image.load()


def test_imports_no_packages_of_training_and_jax_only_after_the_flags():
    script = """
import sys
import cqr_jax.restoring.command
assert "jax" not in sys.modules and "numpy" not in sys.modules
import numpy, cqr_jax
cqr_jax.restore(numpy.zeros((8, 8), numpy.uint8))
heavy = {"tensorflow", "tensorflow_datasets", "orbax", "optax", "tensorboard"}
print(sorted(heavy & sys.modules.keys()))
"""
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert (found.stdout, found.returncode) == ("[]\n", 0), found.stderr


def test_each_line_of_standard_error_names_a_file(tmp_path, photograph):
    """Python's warnings, logging and C libraries print no other lines."""
    damaged = tmp_path / "damaged.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    Image.fromarray(noise).save(damaged)
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    damaged.write_bytes(data)
    odd = tmp_path / "odd.tif"  # of which Pillow warns
    photograph.save(odd, dpi=(300, 300))
    once, twice = (struct.pack("<HHI", 283, 5, count) for count in (1, 2))
    assert once in odd.read_bytes()
    odd.write_bytes(odd.read_bytes().replace(once, twice))
    with pytest.warns(UserWarning, match="too many entries"), Image.open(odd) as opened:
        opened.load()
    cut = tmp_path / "cut.tif"
    photograph.save(cut, compression="tiff_lzw")
    data = bytearray(cut.read_bytes())
    data[5000:5100] = b"\xff" * 100
    cut.write_bytes(data)
    code, _, err = _run(damaged, odd, cut, "-o", tmp_path / "out")
    assert code == 1
    told = (x for x in err.splitlines() if "cpu_aot_loader" not in x)  # XLA's own
    *lines, summary = told
    assert "libjpeg reports that the picture is damaged: Corrupt JPEG data" in err
    assert all(x.startswith(f"{tmp_path}/") for x in lines), err
    assert summary.startswith("2 restored, 1 failed")
