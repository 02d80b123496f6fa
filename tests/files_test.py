"""Tests that files are written completely or not at all."""

import os
import pathlib
import threading

import pytest

from cqr_jax import files
from cqr_jax.errors import UserError


def test_a_new_file_does_not_replace_one_that_exists(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "a.txt"
    files.write(path, "one", replace=False)
    for _ in range(2):
        with pytest.raises(FileExistsError):
            files.write(path, "two", replace=False)
        # The second pass is for file systems without hard links.
        monkeypatch.delattr(os, "link", raising=False)
    assert path.read_text() == "one"
    files.write(tmp_path / "b.txt", "three", replace=False)
    assert (tmp_path / "b.txt").read_text() == "three"
    assert sorted(x.name for x in tmp_path.rglob("*")) == ["a.txt", "b.txt", "sub"]


def test_concurrent_writers_leave_one_complete_file(tmp_path):
    path, contents = tmp_path / "a", [b"a" * 1_000_000, b"b" * 1_000_000]
    threads = [
        threading.Thread(target=files.write, args=(path, contents[i % 2]))
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_name_of_255_characters_is_written(tmp_path):
    path = tmp_path / ("n" * 255)
    files.write(path, b"x")
    assert path.read_bytes() == b"x"


def test_replacing_keeps_permissions_and_symbolic_links(tmp_path):
    path, link = tmp_path / "a", tmp_path / "link"
    path.write_text("one")
    path.chmod(0o600)
    link.symlink_to("a")
    files.write(link, "two")
    assert link.is_symlink()
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("two", 0o600)


def test_attributes_are_copied_from_another_file(tmp_path):
    like = tmp_path / "like"
    like.touch(mode=0o640)
    like.chmod(0o640)
    os.utime(like, (1e9, 1e9))
    files.write(tmp_path / "a", "x", attributes_of=like)
    found = (tmp_path / "a").stat()
    assert (found.st_mode & 0o777, found.st_mtime) == (0o640, 1e9)


def test_a_pipe_gets_the_content_and_stays_a_pipe(tmp_path):
    path, found = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: found.append(path.read_text()))
    reader.start()
    files.write(path, "one")
    reader.join(timeout=60)
    assert found == ["one"]
    assert path.is_fifo()


def test_content_is_on_the_disk_before_the_file_has_its_name(tmp_path, monkeypatch):
    path, sync, synced = tmp_path / "a", os.fsync, []

    def record(descriptor):
        sync(descriptor)
        synced.append((os.fstat(descriptor).st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", record)
    files.write(path, b"x" * 1000)
    assert synced == [(1000, False)]


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("replace", [True, False])
def test_failed_write_leaves_no_file(tmp_path, monkeypatch, has_links, replace):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "replace", full)
    monkeypatch.setattr(os, "link", full)
    if not has_links:
        monkeypatch.delattr(os, "link")
    with pytest.raises(UserError, match="No space left on device"):
        files.write(tmp_path / "a", "x", replace=replace)
    assert list(tmp_path.iterdir()) == []


def test_what_prevents_new_files_in_a_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "a.txt").touch()
    assert files.obstacle(tmp_path / "new" / "folder") == ""
    assert not (tmp_path / "new").exists()
    why = f"{tmp_path / 'a.txt'} is a file, not a folder"
    assert files.obstacle(tmp_path / "a.txt") == why
    assert files.obstacle(tmp_path / "a.txt" / "b") == why
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert files.obstacle(tmp_path / "new") == f"no permission for {tmp_path}"
