"""Tests of what a weights file tells about its training."""

import hashlib
import subprocess

import pytest

from cqr_jax.data import records
from cqr_jax.weights import provenance
from data_prep.build import build


def _git(folder, *arguments) -> str:
    names = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    command = ["git", "-C", str(folder), *names, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_commit_is_that_of_the_package_and_tells_of_changes(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    installed = checkout / "lib"  # a package in a virtual environment of a checkout
    installed.mkdir(parents=True)
    monkeypatch.setattr(provenance, "_ROOT", checkout)
    assert provenance.commit() is None
    _git(checkout, "init", "-q")
    (checkout / "a.py").write_text("a")
    _git(checkout, "add", "a.py")
    _git(checkout, "commit", "-qm", "A")
    head = _git(checkout, "rev-parse", "HEAD")
    (checkout / "b.py").write_text("b")  # is not tracked
    assert provenance.commit() == head
    (checkout / "a.py").write_text("b")
    assert provenance.commit() == f"{head}+changes"
    monkeypatch.setattr(provenance, "_ROOT", installed)
    assert provenance.commit() is None
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(provenance, "_ROOT", checkout)
    assert provenance.commit() is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"step": 1}, [{"step": 1}]),
        (
            {"step": 3, "earlier": [{"step": 1}, {"step": 2}]},
            [{"step": 1}, {"step": 2}, {"step": 3}],
        ),
    ],
)
def test_trainings_are_listed_oldest_first(given, expected):
    assert provenance.trainings(given) == expected


def test_digest_depends_on_the_images(data_dir, photographs, tmp_path):
    found = records.digest(str(data_dir), "photos")
    files = records.directory(str(data_dir), "photos").glob("*.tfrecord*")
    content = b"".join(path.read_bytes() for path in sorted(files))
    assert found == hashlib.sha256(content).hexdigest()
    build(str(photographs), str(tmp_path), "again", processes=1)
    assert records.digest(str(tmp_path), "again") == found
    build(str(photographs), str(tmp_path), "other", processes=1, side=128, min_side=64)
    assert records.digest(str(tmp_path), "other") != found
