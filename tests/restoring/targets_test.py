"""Tests of the names of outputs."""

import pathlib

import pytest

from cqr_jax.errors import UserError
from cqr_jax.restoring import targets
from cqr_jax.restoring.sources import Source
from cqr_jax.restoring.targets import Naming


def _names(*paths, **naming):
    found = [Source(x, pathlib.PurePath(pathlib.PurePath(x).name)) for x in paths]
    return targets.name(found, Naming(**naming))


@pytest.mark.parametrize(
    ("path", "naming", "expected"),
    [
        ("p/a.jpg", {}, "p/a.restored.png"),
        ("p/a.tiff", {}, "p/a.restored.tiff"),
        ("p/a.JPEG", {"format": "jpeg"}, "p/a.restored.JPEG"),
        ("p/a.jpg", {"output": "out/"}, "out/a.png"),
        ("p/a.jpg", {"output": "out/", "suffix": "_x"}, "out/a_x.png"),
        ("p/a.jpg", {"output": "out/", "keep_extension": True}, "out/a.jpg.png"),
        ("p/a.png", {"output": "p/"}, "p/a.png"),
        ("p/a.jpg", {"output": "p/"}, "p/a.restored.png"),
        ("p/a.jpg", {"output": "b.gif/"}, "b.gif/a.png"),
        ("p/a.jpg", {"output": "q/b.webp"}, "q/b.webp"),
    ],
)
def test_output_of_one_file_follows_the_flags(path, naming, expected):
    assert _names(path, **naming) == [expected]


def test_outputs_that_would_share_a_name_are_made_distinct():
    names = _names("a.jpg", "a.jpeg", "a.png", "b.jpg", output="out/")
    assert names == ["out/a.jpg.png", "out/a.jpeg.png", "out/a.png", "out/b.png"]
    assert _names("a.jpg", "a.png") == ["a.jpg.restored.png", "a.restored.png"]
    names = _names("p/a.jpg", "q/a.jpg", "a.jpg.png", output="/out/")
    assert names == ["/out/p/a.jpg.png", "/out/q/a.jpg.png", "/out/a.jpg.png"]
    names = _names("x/p/a.jpg", "y/p/a.jpg", output="/out/")
    assert names == ["/out/x/p/a.jpg.png", "/out/y/p/a.jpg.png"]


def test_no_result_replaces_another_input():
    names = _names("in/a.jpg", "out/a.png", output="out/")
    assert names == ["out/a.jpg.png", "out/a.png"]


def test_one_output_for_several_inputs_or_a_wrong_suffix_is_rejected():
    for output in ("-", "a.png"):
        with pytest.raises(UserError, match="2 images"):
            targets.check(Naming(output), 2)
    with pytest.raises(UserError, match="contradicts --format png"):
        targets.check(Naming("a.tif", "png"), 1)
