"""Tests of finding the files that a command line names."""

import errno
import os
from pathlib import Path

import pytest

from cqr_jax.restoring import sources


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "in"
    (root / "deep" / "er").mkdir(parents=True)
    for name in ("a.jpg", "deep/gray.jpeg", "deep/er/c.webp", "notes.txt"):
        (root / name).touch()
    return root


def _under(found):
    return [str(x.under) for x in found]


def test_results_of_earlier_runs_in_folders_are_excluded(folder):
    out = folder / "out"
    out.mkdir()
    for path in (out / "a.png", folder / "a.restored.png", folder / "._a.jpg"):
        path.touch()
    expected = ["a.jpg", "deep/er/c.webp", "deep/gray.jpeg"]
    assert _under(sources.find([str(folder)], str(out))) == expected
    for output in (folder, folder.parent):  # the folders hold inputs too
        assert len(sources.find([str(folder)], str(output))) == 4
    (folder / "a_clean.png").touch()
    assert "a_clean.png" not in _under(sources.find([str(folder)], None, "_clean"))


def test_results_that_a_shell_names_again_are_left_out(folder):
    out, photo = folder / "out", folder / "a.jpg"
    done, kept = folder / "a.restored.png", folder / "a.jpg.restored.png"
    out.mkdir()
    for path in (out / "a.png", done, kept):
        path.touch()
    named = [os.path.relpath(photo), *map(str, (out, done, kept))]

    def problems(*args):
        return {Path(x.name).name: x.problem for x in sources.find(*args)}

    result = "is a result of an earlier run"
    assert problems(named, None) == {
        "a.jpg": "",
        "a.png": "",
        "a.restored.png": result,
        "a.jpg.restored.png": result,
    }
    # In another folder, the outputs have other names.
    assert problems(named, str(out)) == {
        "a.jpg": "",
        "out": "is the output folder",
        "a.restored.png": "",
        "a.jpg.restored.png": "",
    }
    quality = sources.find(named, None, sources.MARK, restoring=False)
    assert not any(x.problem for x in quality)
    for alone in (done, out):
        assert not any(problems([str(alone)], str(out)).values())


def test_patterns_leave_out_results_and_the_output_folder(folder):
    out = folder / "out"
    out.mkdir()
    for path in (out / "a.png", folder / "a.restored.png"):
        path.touch()
    assert _under(sources.find([f"{folder}/**/a*"], str(out))) == ["a.jpg"]
    assert _under(sources.find([f"{out}/*"], str(out))) == ["a.png"]


def test_each_file_is_found_once(folder):
    deep, deeper = folder / "deep", folder / "deep" / "er"
    two = sources.find([str(deep), str(deeper), str(deep / "gray.jpeg")], None)
    assert _under(two) == ["deep/er/c.webp", "deep/gray.jpeg"]


def test_patterns_are_expanded_from_their_fixed_part(folder):
    (one,) = sources.find([f"{folder}/*/*.jpeg"], None)
    assert str(one.under) == "deep/gray.jpeg"
    assert sources.fixed_part("gs://a/b/c*/**.jpg") == "gs://a/b/"
    assert sources.fixed_part("x?.png") == ""


def test_missing_inputs_have_a_problem(folder):
    (folder / "none").mkdir()
    names = ["a.png", "none", "*.bmp"]
    found = sources.find([str(folder / x) for x in names], None)
    assert [x.problem for x in found] == [
        "no such file or folder",
        "no image in this folder",
        "matches no file",
    ]


def test_links_are_followed_and_loops_are_not(folder):
    (folder / "loop").symlink_to(folder)
    (folder / "more").symlink_to(folder.parent / "elsewhere")
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "d.png").touch()
    (folder / "broken.jpg").symlink_to("nowhere")
    found = sources.find([str(folder)], None)
    expected = ["a.jpg", "broken.jpg", "deep/er/c.webp", "deep/gray.jpeg", "more/d.png"]
    assert _under(found) == expected
    assert [x.problem for x in found if x.problem] == ["a broken link"]


def test_unreadable_folder_is_reported(folder, monkeypatch):
    scandir, locked = os.scandir, str(folder / "deep" / "er")

    def refusing(path):
        if os.fspath(path) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = sources.find([str(folder / "deep")], None)
    assert _under(found) == ["er", "gray.jpeg"]
    assert [x.problem for x in found] == ["a folder that can't be listed", ""]


def test_images_of_unsupported_formats_are_left_out(folder):
    for name in ("b.psd", "c.cr2", "d.gif", "e.heic"):
        (folder / name).touch()
    found = {x.under.name: x for x in sources.find([str(folder)], None)}
    assert {name for name, x in found.items() if x.left_out} == {"b.psd", "c.cr2"}
    assert found["b.psd"].problem == "PSD can't be read"
    assert not found["d.gif"].problem
    assert not found["e.heic"].problem
