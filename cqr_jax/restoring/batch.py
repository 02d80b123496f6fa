"""Many files: found, read, restored and written; what fails is told, the rest goes on.

Files are decoded and encoded on threads beside the network.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import glob
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cqr_jax import files, formats, progress, tables
from cqr_jax.data.compression import nearest_quality
from cqr_jax.data.jpeg import ImageError
from cqr_jax.errors import UserError
from cqr_jax.prefetch import prefetch
from cqr_jax.restoring import network, pictures, quality, restorer, tiles
from cqr_jax.restoring.pictures import Picture
from cqr_jax.restoring.restorer import Restoration

_AHEAD = 2  # pictures decoded, and encoded, beside those in the network
_STANDARD = "-"
_MARK = ".restored"  # in the names of files written beside their input


class Source(NamedTuple):
    """A file to read.

    Attributes:
      name: its path, or '-' for standard input.
      under: its path from the folder that was named, or its name.
    """

    name: str
    under: pathlib.PurePath


class Outcome(NamedTuple):
    """What became of a file.

    Attributes:
      input: its path, or '-'.
      output: where it went, or was to go.
      status: 'restored', 'skipped' or 'failed'.
      reason: why it was not restored.
      megapixels: of the image, if restored.
      notes: sentences on what the file lacks and what was not kept of it.
      quality_factor, told_by, projected: as of `restorer.Restoration`, if restored.
    """

    input: str
    output: str = ""
    status: str = "restored"
    reason: str = ""
    megapixels: float = 0.0
    notes: tuple[str, ...] = ()
    quality_factor: int | None = None
    told_by: str = ""
    projected: bool = False


class _Failure(NamedTuple):
    reason: str
    status: str = "failed"


def restore(args: argparse.Namespace) -> int:
    """Restores what the command line names; returns how many files failed.

    Raises:
      UserError: an input is not there, --output can't be meant, or the weights can't
        be read, or can't be told --quality-factor.
    """
    _check_report(args.report)
    sources = _find(args.inputs, args.output)
    _check_output(args.output)
    run = restorer.load(args.weights, args.self_ensemble)
    restorer.check_quality_factor(run, args.quality_factor)
    tell = _Teller(len(sources))
    jobs = []
    for job in _plan(sources, args):
        tell(job) if isinstance(job, Outcome) else jobs.append(job)
    waiting: collections.deque[tuple[Source, str]] = collections.deque()
    depth = np.dtype(f"uint{args.bits}") if args.bits else None
    projecting = args.projection and args.quality_factor is None
    good_lose = network.channels(run) == 1 and not projecting

    def read(job):
        source, target = job
        picture = _read(source, args.max_megapixels, projecting, args.salvage)
        if isinstance(picture, Picture):
            try:
                target, picture = _checked(picture, target, args, depth)
            except ImageError as error:
                picture = _Failure(str(error))
            except FileExistsError as error:
                picture = _Failure(str(error), "skipped")
        return (source, target), picture

    def decoded() -> Iterator[Picture]:
        for job, picture in prefetch(pool, read, jobs, _AHEAD):
            if isinstance(picture, _Failure):
                tell(Outcome(job[0].name, job[1], picture.status, picture.reason))
            else:
                if good_lose:
                    tell.see(picture)
                waiting.append(job)
                yield picture

    def restored() -> Iterator[tuple[Source, str, Restoration]]:
        for restoration in restorer.restorations(
            run,
            decoded(),
            args.strength,
            args.tile or tiles.SIDE,
            depth,
            args.quality_factor,
            projecting,
        ):
            yield *waiting.popleft(), restoration

    def write(job):
        source, target, restoration = job
        picture = restoration.picture
        try:
            notes = _write(picture, target, args)
        except UserError as error:
            return Outcome(source.name, target, "failed", str(error))
        return Outcome(
            source.name,
            target,
            notes=notes,
            megapixels=picture.pixels.shape[0] * picture.pixels.shape[1] / 1e6,
            quality_factor=restoration.quality_factor,
            told_by=restoration.told_by,
            projected=restoration.projected,
        )

    try:
        with (
            _interrupts() as check,
            concurrent.futures.ThreadPoolExecutor(2 * _AHEAD) as pool,
        ):
            for outcome in prefetch(pool, write, restored(), _AHEAD):
                tell(outcome)
                check()
    finally:
        failed = tell.end(args)
    return failed


def measure(args: argparse.Namespace) -> int:
    """Prints the quality of what the command line names; returns how many failed.

    Raises:
      UserError: an input is not there.
    """
    _check_report(args.report)
    sources = _find(args.inputs, None)
    rows: list[dict] = []

    def read(source):
        return source, _read(source, args.max_megapixels, salvage=args.salvage)

    def measured(case) -> dict:
        source, picture = case
        if isinstance(picture, _Failure):
            return {"input": source.name, "reason": picture.reason}
        return {"input": source.name, **quality.measure(picture)._asdict()}

    with concurrent.futures.ThreadPoolExecutor(_AHEAD) as pool:
        found = map(measured, prefetch(pool, read, sources, _AHEAD))
        rows += progress.over(found, len(sources), "measuring", "image")
    failures = [row for row in rows if "reason" in row]
    for row in failures:
        print(f"{row['input']}: {row['reason']}", file=sys.stderr)
    if args.report:
        files.write(pathlib.Path(args.report), json.dumps(rows, indent=2) + "\n")
    if args.json:
        print(json.dumps(rows, indent=2))
    elif len(rows) > len(failures):
        lines = [
            [x["input"], f"{x['score']:.2f}", str(x["factor"]), x["source"]]
            for x in rows
            if "score" in x
        ]
        print(tables.text([["file", "score", "QF", "QF from"], *lines]))
    return len(failures)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
    """A check that raises a KeyboardInterrupt anew, if one was lost.

    Python ignores what a signal raises while it runs a destructor or a callback of the
    garbage collector.
    """
    caught = []

    def note(number, frame):
        del frame
        caught.append(number)
        raise KeyboardInterrupt

    def check():
        if caught:
            raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, note) for number in numbers]
    try:
        yield check
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _Teller:
    """Tells of each file as it is done: a bar where a person watches, else lines."""

    def __init__(self, count: int):
        self._outcomes: list[Outcome] = []
        self._good = 0
        self._start = time.perf_counter()
        self._bar = tqdm(
            total=count, unit="image", disable=not sys.stderr.isatty(), leave=False
        )

    def __call__(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)
        self._bar.update()
        for note in outcome.notes:
            self._bar.write(f"{outcome.input}: {note}", sys.stderr)
        if outcome.status != "restored":
            line = f"{outcome.input}: {outcome.status}: {outcome.reason}"
        elif self._bar.disable:
            line = f"{outcome.input} -> {outcome.output}"
        else:
            return
        self._bar.write(line, sys.stderr)

    def see(self, picture: Picture) -> None:
        """Counts a picture that is too good to gain."""
        if picture.compression:
            factor, _ = nearest_quality(picture.compression.luma)
            self._good += factor >= quality.TOO_GOOD

    def end(self, args: argparse.Namespace) -> int:
        """The last line, the report; how many failed."""
        self._bar.close()
        seconds = time.perf_counter() - self._start
        count = collections.Counter(x.status for x in self._outcomes)
        megapixels = sum(x.megapixels for x in self._outcomes)
        parts = [
            f"{count[status]} {status}"
            for status in ("restored", "skipped", "failed")
            if count[status] or status == "restored"
        ]
        print(
            f"{', '.join(parts)}; {megapixels:.1f} megapixels in {seconds:.1f} s "
            f"({megapixels / seconds:.2f} a second)",
            file=sys.stderr,
        )
        if self._good:
            print(
                f"{self._good} with a quality factor of {quality.TOO_GOOD} or more: "
                f"such JPEGs {quality.LOSE}",
                file=sys.stderr,
            )
        text = json.dumps([x._asdict() for x in self._outcomes], indent=2)
        if args.json:
            print(text)
        if args.report:
            files.write(pathlib.Path(args.report), text + "\n")
        return count["failed"]


def _check_report(report: str | None) -> None:
    """Raises a UserError for a report that couldn't be written when all is done."""
    if report and os.path.isdir(report):
        raise UserError(f"--report={report}: is a folder; name a file in it")
    if report and formats.format_of(report):
        raise UserError(f"--report={report}: is an image's name; name a .json file")
    folder = os.path.dirname(report or "") or "."
    if os.path.isdir(folder) and not os.access(folder, os.W_OK):
        raise UserError(f"--report={report}: the folder can't be written to")


def _check_output(output: str | None) -> None:
    """Raises a UserError for a folder or a file that can't be made."""
    if not output or output == _STANDARD:
        return
    path = pathlib.Path(output).resolve()
    there = next(x for x in (path, *path.parents) if os.path.exists(x))
    if os.path.isfile(there):
        if not (there == path and _named(output)):
            raise UserError(f"-o {output}: can't be written to: {there} is a file")
        there = there.parent  # a new file takes the place of the old one
    if not os.access(there, os.W_OK):
        raise UserError(f"-o {output}: can't be written to: no permission for {there}")


def _named(output: str | None) -> str | None:
    """The format that --output names; None for a folder, or without one."""
    return formats.format_of(output) if output and not _is_folder(output) else None


def _is_folder(output: str) -> bool:
    return output.endswith("/") or os.path.isdir(output)


def _find(inputs: list[str], output: str | None) -> list[Source]:
    """All files named; those under a folder sorted, without earlier outcomes.

    Raises:
      UserError: nothing is there by a name, or no image in a folder.
    """
    found: dict[str, Source] = {}
    out = pathlib.Path(output).resolve() if output else None
    folders = sum(os.path.isdir(name) for name in inputs)
    for name in inputs:
        path = pathlib.Path(name)
        if name == _STANDARD:
            sources = [Source(name, pathlib.PurePath("stdin"))]
        elif os.path.isdir(name):
            inside = out and os.path.isdir(out) and path.resolve() in out.parents
            within = sorted(
                x for x in _below(path) if not (inside and out in x.resolve().parents)
            )
            if not within:
                raise UserError(f"{name}: no image in this folder")
            own = os.path.basename(os.path.abspath(name))
            above = pathlib.PurePath(own if folders > 1 else "")
            sources = [Source(str(x), above / x.relative_to(path)) for x in within]
        elif os.path.exists(name):
            sources = [Source(name, pathlib.PurePath(path.name))]
        else:
            sources = [
                Source(x, pathlib.PurePath(x).relative_to(_fixed_part(name)))
                for x in sorted(glob.glob(name, recursive=True))
                if os.path.isfile(x)
            ]
            if not sources:
                kind = (
                    "matches no file"
                    if glob.has_magic(name)
                    else "no such file or folder"
                )
                raise UserError(f"{name}: {kind}")
        for x in sources:  # each file once, however often it is named
            key = x.name if x.name == _STANDARD else os.path.abspath(x.name)
            found.setdefault(key, x)
    return list(found.values())


def _below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The images in a folder, and the folders that can't be listed."""
    unlisted: list[OSError] = []
    for place, _, names in os.walk(folder, onerror=unlisted.append):
        for path in (pathlib.Path(place, name) for name in names):
            if (
                formats.format_of(path)
                and not path.name.startswith("._")  # what macOS knows of a file
                and not path.stem.endswith(_MARK)
                and os.path.isfile(path)
            ):
                yield path
    yield from (pathlib.Path(error.filename) for error in unlisted)


def _fixed_part(pattern: str) -> pathlib.PurePath:
    """The folder before a pattern's first wildcard."""
    parts = pathlib.PurePath(pattern).parts
    fixed = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return pathlib.PurePath(*fixed)


def _plan(
    sources: list[Source], args: argparse.Namespace
) -> Iterator[tuple[Source, str] | Outcome]:
    """Each file with where it goes, or why it won't."""
    target_of = _targets(sources, args)
    inputs = {os.path.realpath(source.name) for source in sources}
    taken: dict[str, str] = {}
    for source in sources:
        if os.path.isdir(source.name):  # of the folders `_find` leaves only these
            yield Outcome(source.name, "", "failed", "a folder that can't be listed")
            continue
        target = target_of(source)
        where = os.path.realpath(target)
        if target == _STANDARD:
            yield source, target
            continue
        own = where == os.path.realpath(source.name)
        first = taken.setdefault(where, source.name)
        if first != source.name and not own:
            reason = f"{first} goes to {target} too; restore it apart"
            yield Outcome(source.name, target, "failed", reason)
        elif os.path.exists(target) and not args.overwrite:
            reason = f"{target} exists; --overwrite replaces it"
            yield Outcome(source.name, target, "skipped", reason)
        elif where in inputs and not own:
            reason = f"{target} is another of the images; restore it apart"
            yield Outcome(source.name, target, "failed", reason)
        else:
            yield source, target


def _targets(
    sources: list[Source], args: argparse.Namespace
) -> Callable[[Source], str]:
    """Where each file goes."""
    output = args.output
    if output == _STANDARD:
        if len(sources) > 1:
            raise UserError(
                f"-o -: writes one image to standard output, not {len(sources)}"
            )
        return lambda source: _STANDARD
    named = _named(output)
    unknown = output and not named and not _is_folder(output)
    if unknown and pathlib.Path(output).suffix[1:].isalpha():
        known = " ".join(formats.SUFFIXES)
        raise UserError(
            f"-o {output}: no format has this suffix; name a file with one of {known}, "
            "or a folder, with / behind it"
        )
    if named:
        if len(sources) > 1:
            raise UserError(
                f"-o {output}: is a file's name, but there are {len(sources)} images; "
                "name a folder"
            )
        if args.format and args.format != named:
            raise UserError(f"-o {output}: is not a name for --format {args.format}")
        return lambda source: output

    def target(source: Source) -> str:
        name = _format(source, args)
        suffix = formats.FORMATS[name][0]
        if output:
            return str(pathlib.Path(output, source.under).with_suffix(suffix))
        if source.name == _STANDARD:
            raise UserError("standard input needs -o: a file's name, or -")
        return str(pathlib.Path(source.name).with_suffix(_MARK + suffix))

    return target


def _format(source: Source, args: argparse.Namespace) -> str:
    """Of the output, by --format, its name, or the input's."""
    if args.format:
        return args.format
    if named := _named(args.output):
        return named
    own = formats.format_of(source.name)
    return own if own and own != "jpeg" else "png"


def _encoding(target: str, args: argparse.Namespace) -> str:
    """The format in which a picture is written."""
    return formats.format_of(target) or args.format or "png"


def _checked(
    picture: Picture, target: str, args: argparse.Namespace, depth: np.dtype | None
) -> tuple[str, Picture]:
    """Where a picture goes, and the picture, once it is sure that it can be written.

    A format that nobody asked for gives way to PNG where it can't hold the picture.

    Raises:
      ImageError: the format can't hold it.
      FileExistsError: the PNG is there already.
    """
    name = _encoding(target, args)
    asked = args.format or _named(args.output) or target == _STANDARD
    fallback = name if asked else pictures.fallback(picture, name, depth)
    pictures.check(picture, fallback, depth)
    if fallback == name:
        return target, picture
    other = str(pathlib.Path(target).with_suffix(formats.FORMATS[fallback][0]))
    if os.path.lexists(other) and not args.overwrite:
        raise FileExistsError(f"{other} exists; --overwrite replaces it")
    note = f"{name.upper()} can't hold it: it is written as {fallback.upper()}."
    return other, picture._replace(notes=(*picture.notes, note))


def _read(
    source: Source, max_megapixels: float, stored: bool = False, salvage: bool = False
) -> Picture | _Failure:
    """A file's picture, or why it can't be had; `stored`, `salvage` as of `decode`."""
    try:
        if source.name == _STANDARD:
            data = sys.stdin.buffer.read()
        else:
            data = pathlib.Path(source.name).read_bytes()
        return pictures.decode(data, round(max_megapixels * 1e6), stored, salvage)
    except ImageError as error:
        return _Failure(str(error))
    except OSError as error:
        return _Failure(f"can't be read: {error.strerror or error}")


def _write(picture: Picture, target: str, args: argparse.Namespace) -> tuple[str, ...]:
    """Writes a picture; returns notes on what was not kept.

    Raises:
      UserError: it can't be written.
    """
    name = _encoding(target, args)
    fitted = pictures.fitted(picture, name)
    data = pictures.encode(fitted, name, args.quality)
    if target != _STANDARD:
        files.write(pathlib.Path(target), data)
        return fitted.notes
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"can't be written to standard output: {reason}") from None
    return fitted.notes
