"""Finds the image files that a command line names."""

import glob
import os
import pathlib
import re
from collections.abc import Iterator
from typing import NamedTuple

from cqr_jax import formats

STANDARD = "-"  # standard input, and standard output
EMPTY = "no image in this folder"  # the problem of a folder
MARK = ".restored"  # in the names of results that are written beside their input


class Source(NamedTuple):
    """A file that a command line names, or an argument that names no readable file.

    Attributes:
      name: path of the file, or '-' for standard input.
      under: path relative to the named folder, or the name of the file.
      problem: why the file can't be read; empty if it can.
      left_out: whether the file is an image in a format that is not supported. Such
        files in folders are reported, but are no failures.
    """

    name: str
    under: pathlib.PurePath
    problem: str = ""
    left_out: bool = False


def find(
    inputs: list[str], output: str | None, mark: str = MARK, restoring: bool = True
) -> list[Source]:
    """Finds all files that the command line names, each once.

    Files in folders are sorted. Results of earlier runs are excluded from folders and
    patterns: files whose names end with the mark, and the output folder if it is inside
    an input folder. A shell expands `*` to results too. They are therefore left out if
    they are named together with their inputs.

    Args:
      inputs: names of files, folders and patterns, or '-'.
      output: the output file or folder, or None.
      mark: text at the end of the names of earlier results, before the extension.
      restoring: whether the files are to be restored. If not, named results are kept.
    """
    found: dict[str, Source] = {}
    results = _named_results(inputs, output, mark) if restoring else {}
    for name, problem in results.items():
        source = Source(name, pathlib.PurePath(name), problem, left_out=True)
        found[os.path.abspath(name)] = source
    inputs = [name for name in inputs if name not in results]
    folders = sum(os.path.isdir(name) for name in inputs)
    for name in inputs:
        for source in _named(name, output, mark, folders > 1):
            key = source.name
            if key != STANDARD:
                key = os.path.abspath(key)
            found.setdefault(key, source)
    return list(found.values())


def _named_results(inputs: list[str], output: str | None, mark: str) -> dict[str, str]:
    """Returns the inputs that are results of the others, with what they are."""
    files = {os.path.abspath(name) for name in inputs if os.path.isfile(name)}
    originals = files | {os.path.splitext(path)[0] for path in files}
    out = os.path.realpath(output) if output else None
    found = {}
    for name in inputs:
        path = os.path.abspath(name)
        stem = os.path.splitext(path)[0]
        beside = out is None or os.path.dirname(os.path.realpath(path)) == out
        if os.path.isdir(path) and os.path.realpath(path) == out:
            found[name] = "is the output folder"
        is_result = path in files and beside and stem.endswith(mark)
        if is_result and stem.removesuffix(mark) in originals:
            found[name] = "is a result of an earlier run"
    return found if len(found) < len(inputs) else {}


def fixed_part(pattern: str) -> str:
    """Returns a pattern's folder before its first wildcard, with '/' at its end."""
    before = re.split(r"[*?[]", pattern)[0]
    return before[: before.rfind("/") + 1]


def _named(
    name: str, output: str | None, mark: str, with_folder: bool
) -> Iterator[Source]:
    """Yields the files that one argument names."""
    path = pathlib.Path(name)
    if name == STANDARD:
        yield Source(name, pathlib.PurePath("stdin"))
    elif os.path.isdir(name):
        own = os.path.basename(os.path.abspath(name))
        above = pathlib.PurePath(own if with_folder else "")
        readable = 0
        for source in _within(path, output, mark):
            readable += not source.left_out
            under = above / os.path.relpath(source.name, path)
            yield source._replace(under=under)
        if not readable:
            yield Source(name, path, EMPTY)
    elif os.path.exists(name):
        yield Source(name, pathlib.PurePath(path.name))
    elif glob.has_magic(name):
        fixed = fixed_part(name)
        matching = map(pathlib.Path, glob.glob(name, recursive=True))
        out = _own_folder(output, pathlib.Path(fixed or "."))
        files = [
            str(x)
            for x in matching
            if x.is_file() and not _is_result(x, mark) and not (out and _is_in(x, out))
        ]
        for x in sorted(files):
            yield Source(x, pathlib.PurePath(os.path.relpath(x, fixed or ".")))
        if not files:
            yield Source(name, path, "matches no file")
    elif os.path.islink(name):
        yield Source(name, path, "a broken link")
    else:
        yield Source(name, path, "no such file or folder")


def _within(folder: pathlib.Path, output: str | None, mark: str) -> list[Source]:
    """Finds the files in a folder and below it, sorted by path.

    Links to folders are followed, but each folder is visited once.
    """
    out = _own_folder(output, folder)
    found: list[Source] = []
    seen = {_identity(folder)}

    def on_error(error: OSError) -> None:
        problem = "a folder that can't be listed"
        found.append(Source(error.filename, pathlib.PurePath(), problem))

    for place, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
        paths = [pathlib.Path(place, x) for x in folders]
        new = [
            x for x in paths if os.path.realpath(x) != out and _identity(x) not in seen
        ]
        seen.update(map(_identity, new))
        folders[:] = [x.name for x in new]
        for path in (pathlib.Path(place, x) for x in names):
            if (source := _source(path, mark)) is not None:
                found.append(source)
    return sorted(found, key=lambda x: pathlib.PurePath(x.name))


def _own_folder(output: str | None, folder: pathlib.Path) -> str | None:
    """Returns the real path of an output folder inside a folder; None if it is not.

    If it is the folder itself or above it, it holds inputs too.
    """
    if not output or not os.path.isdir(output):
        return None
    out, above = os.path.realpath(output), os.path.realpath(folder)
    return out if out != above and _is_in(out, above) else None


def _is_in(path: str | os.PathLike, folder: str) -> bool:
    return pathlib.Path(os.path.realpath(path)).is_relative_to(folder)


def _identity(folder: pathlib.Path) -> tuple[int, int] | str:
    """Returns device and inode of a folder, or its path if it can't be accessed."""
    try:
        found = folder.stat()
    except OSError:
        return str(folder)
    return found.st_dev, found.st_ino


def _is_result(path: pathlib.Path, mark: str) -> bool:
    return path.stem.endswith(mark)


def _source(path: pathlib.Path, mark: str) -> Source | None:
    """Returns the source for a file in a folder; None if it is not an input image."""
    if path.name.startswith("._") or _is_result(path, mark):
        return None  # metadata of macOS, or a result of an earlier run
    source = Source(str(path), pathlib.PurePath())
    if not (formats.is_read(path) or formats.is_known(path)):
        return None
    if not os.path.exists(path):
        return source._replace(problem="a broken link")
    if not os.path.isfile(path):
        return None
    if formats.is_read(path):
        return source
    kind = path.suffix[1:].upper()
    return source._replace(problem=f"{kind} can't be read", left_out=True)
