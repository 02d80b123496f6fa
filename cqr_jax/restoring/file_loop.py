"""Restores many files: decoding and encoding run on threads beside the network.

A file that fails is reported, and the others go on.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import json
import os
import pathlib
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from cqr_jax import files, formats, progress, signals, tables
from cqr_jax.data.compression import nearest_quality
from cqr_jax.data.jpeg import ImageError
from cqr_jax.errors import UserError, standard_output
from cqr_jax.prefetch import prefetch
from cqr_jax.restoring import (
    network,
    pictures,
    quality,
    restorer,
    sources,
    targets,
)
from cqr_jax.restoring.picture import Picture
from cqr_jax.restoring.restorer import Restoration
from cqr_jax.restoring.sources import STANDARD, Source
from cqr_jax.restoring.targets import Naming

_AHEAD = 2  # pictures that are decoded, and encoded, beside those in the network
_POLL = 1.0  # seconds between two polls of a watched folder


class Job(NamedTuple):
    """A file to restore.

    Attributes:
      source: the file.
      target: path of the output, or '-' for standard output.
      data: the file's bytes, if they have been read already.
    """

    source: Source
    target: str
    data: bytes | None = None


class Outcome(NamedTuple):
    """What became of a file.

    Attributes:
      input: path of the file, or '-'.
      output: path of the output that was written or was planned.
      status: 'restored', 'copied', 'skipped', 'failed' or 'left out'.
      reason: why the file was not restored.
      megapixels: size of the image, if it was restored.
      notes: sentences on what the file lacks and on what was not kept of it.
      quality_factor, quality_factor_from, projected, compressed_before: as in
        `restorer.Restoration`, if it was restored.
    """

    input: str
    output: str = ""
    status: str = "restored"
    reason: str = ""
    megapixels: float = 0.0
    notes: tuple[str, ...] = ()
    quality_factor: int | None = None
    quality_factor_from: str = ""
    projected: bool = False
    compressed_before: bool = False


class _Claims:
    """Outputs of a run, and inputs: no file may be written where another belongs."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}  # real path -> name of an input
        self._written: dict[str, tuple[int, int] | None] = {}  # real path -> state

    def owner(self, path: str | os.PathLike, source: Source) -> str:
        """Returns the input that a path belongs to: this one if it had no owner.

        Several threads may call this.
        """
        return self._owners.setdefault(os.path.realpath(path), source.name)

    def wrote(self, path: str) -> None:
        """Notes that this run wrote a file."""
        self._written[os.path.realpath(path)] = _state(path)

    def is_own(self, path: str) -> bool:
        """Returns whether a file is as this run wrote it."""
        state = self._written.get(os.path.realpath(path))
        return state is not None and state == _state(path)


class _NotRestoredError(Exception):
    """Raised for a file that is not restored, with the status and the reason."""

    def __init__(self, reason: str, status: str = "failed", output: str = ""):
        super().__init__(reason)
        self.reason, self.status, self.output = reason, status, output

    def outcome(self, source: Source, target: str) -> Outcome:
        """Returns the outcome of the file, whose output is `target` by default."""
        return Outcome(source.name, self.output or target, self.status, self.reason)


def restore(args: argparse.Namespace) -> int:
    """Restores what the command line names.

    Returns:
      How many files failed.

    Raises:
      UserError: the outputs can't be named or written, the weights can't be read, they
        don't take --quality-factor, or the memory is too small.
    """
    _check_report(args.report, args.output)
    naming = Naming(args.output, args.format, args.suffix, args.keep_extension)
    if naming.output is None and STANDARD in args.inputs:
        raise UserError("standard input needs -o: a file's name, or -")
    found = _find(args)
    targets.check(naming, len(found))
    run = None
    names: dict[Source, str] = {}
    tell, claims = _Teller(args), _Claims()
    try:
        with (
            _interrupts() as check,
            concurrent.futures.ThreadPoolExecutor(2 * _AHEAD) as pool,
        ):
            for batch in _rounds(found, args, claims):
                tell.expect(len(batch))
                jobs = list(_plan(batch, names, naming, args, tell, claims))
                if not jobs:
                    continue
                if run is None:
                    run = restorer.load(args.weights, args.self_ensemble, args.engine)
                    tell.engine = network.engine_name(run)
                    restorer.check_quality_factor(run, args.quality_factor)
                for outcome in _restored(run, jobs, args, pool, tell, claims):
                    tell(outcome)
                    check()
    except MemoryError:
        raise UserError(
            "the memory is too small for an image; restore large images alone, or "
            "leave them out with --max-megapixels"
        ) from None
    finally:
        failed = tell.end()
    return failed


def _find(args: argparse.Namespace) -> list[Source]:
    mark = sources.MARK
    if args.suffix and _writes_beside(args.inputs, args.output):
        mark = args.suffix
    return sources.find(args.inputs, args.output, mark, not args.quality_only)


def _writes_beside(inputs: list[str], output: str | None) -> bool:
    """Returns whether outputs can be written into the folders of the inputs."""
    if output is None:
        return True
    several = sum(map(os.path.isdir, inputs)) > 1  # each becomes a subfolder

    def mirrored(name: str) -> str:
        """Returns the folder whose files are written directly into the output."""
        if os.path.exists(name):
            alone = os.path.isdir(name) and not several
            return name if alone else os.path.dirname(os.path.abspath(name))
        return sources.fixed_part(name) or "."

    out = os.path.realpath(output)
    return any(os.path.realpath(mirrored(x)) == out for x in inputs)


def _rounds(
    found: list[Source], args: argparse.Namespace, claims: _Claims
) -> Iterator[list[Source]]:
    """Yields the files to restore: first those found, then new ones with --watch.

    A new file is yielded when its size and its modification time are the same in two
    successive polls. Until then, another program may still write it. Files that this
    run wrote are not yielded.
    """
    done = {source: _state(source.name) for source in found}
    if not args.watch:
        yield found
        return
    yield [x for x in found if x.problem != sources.EMPTY]  # images may come
    before = dict(done)
    while True:
        time.sleep(_POLL)
        others = (x for x in _find(args) if not (x.problem or claims.is_own(x.name)))
        now = {x: _state(x.name) for x in others}
        new = [x for x in now if now[x] == before.get(x) and now[x] != done.get(x)]
        done |= {x: now[x] for x in new}
        before = now
        if new:
            yield new


def _state(path: str) -> tuple[int, int] | None:
    """Returns what changes when a file is written."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _plan(
    found: list[Source],
    names: dict[Source, str],
    naming: Naming,
    args: argparse.Namespace,
    tell: Callable[[Outcome], None],
    claims: _Claims,
) -> Iterator[Job]:
    """Yields the files to restore, with their targets; reports the others.

    Args:
      found: the files.
      names: targets of the files of earlier rounds, which stay. Those of new files are
        added.
      naming, args: from the command line.
      tell: is called with the outcome of each file that is not restored.
      claims: the outputs and inputs of the run.
    """
    readable = []
    for source in found:
        if source.problem:
            status = "left out" if source.left_out else "failed"
            tell(Outcome(source.name, "", status, source.problem))
        else:
            readable.append(source)
    for source in readable:
        claims.owner(source.name, source)
    new = [source for source in readable if source not in names]
    chosen = targets.name(new, naming)
    if names:  # outputs of earlier rounds can have the names
        pairs = zip(new, chosen, strict=True)
        chosen = [_free(source, target, naming, claims) for source, target in pairs]
    names.update(zip(new, chosen, strict=True))
    for source in readable:
        target = names[source]
        try:
            _claim(target, source, claims)
            _check_target(target, args.overwrite)
        except _NotRestoredError as stop:
            tell(stop.outcome(source, target))
            continue
        yield Job(source, target)


def _free(source: Source, target: str, naming: Naming, claims: _Claims) -> str:
    """Returns the first name for an output that belongs to no other input."""
    for name in (target, *targets.longer(source, naming)):
        if claims.owner(name, source) == source.name:
            return name
    return target


def _claim(target: str, source: Source, claims: _Claims) -> None:
    """Raises a _NotRestoredError for an output that belongs to another input."""
    if target == STANDARD:
        return
    if (owner := claims.owner(target, source)) != source.name:
        raise _NotRestoredError(
            f"{owner} has the same output {target}; restore them separately"
        )


def _check_target(target: str, overwrite: bool) -> None:
    """Checks that a file can be written, before anything is computed for it.

    Raises:
      _NotRestoredError: it exists and may not be replaced, or its folder can't be
        written to.
    """
    if target == STANDARD:
        return
    if os.path.lexists(target) and not overwrite:
        raise _NotRestoredError(f"{target} exists; --overwrite replaces it", "skipped")
    if why := files.obstacle(pathlib.Path(os.path.realpath(target)).parent):
        raise _NotRestoredError(f"{target} can't be written: {why}")


def _restored(
    run: network.Run,
    jobs: Iterable[Job],
    args: argparse.Namespace,
    pool: concurrent.futures.Executor,
    tell: "_Teller",
    claims: _Claims,
) -> Iterator[Outcome]:
    """Restores files; yields what became of those that reached the network."""
    waiting: collections.deque[Job] = collections.deque()
    depth = np.dtype(f"uint{args.bits}") if args.bits else None
    projecting = args.projection and args.quality_factor is None
    good_lose = network.channels(run) == 1

    def read(job: Job) -> tuple[Job, Picture | _NotRestoredError]:
        try:
            return job._replace(data=None), _picture(job, args, projecting, claims)
        except _NotRestoredError as stop:
            return job, stop

    def decoded() -> Iterator[Picture]:
        for job, found in prefetch(pool, read, map(_with_stream, jobs), _AHEAD):
            try:
                if isinstance(found, _NotRestoredError):
                    raise found
                # In this thread, which claims outputs in the order of the files.
                target, picture = _checked(found, job, args, depth, claims)
            except _NotRestoredError as stop:
                tell(stop.outcome(job.source, job.target))
                continue
            if good_lose:
                tell.see(picture)
            waiting.append(job._replace(target=target))
            yield picture

    def restored() -> Iterator[tuple[Job, Restoration]]:
        for restoration in restorer.restorations(
            run,
            decoded(),
            args.strength,
            args.tile,
            depth,
            args.quality_factor,
            projecting,
        ):
            yield waiting.popleft(), restoration

    def write(done: tuple[Job, Restoration]) -> Outcome:
        job, restoration = done
        height, width = restoration.picture.pixels.shape[:2]
        try:
            notes = _write(job, restoration.picture, args)
        except _NotRestoredError as stop:
            return stop.outcome(job.source, job.target)
        claims.wrote(job.target)
        outcome = Outcome(
            job.source.name,
            job.target,
            notes=notes,
            megapixels=height * width / 1e6,
            quality_factor=restoration.quality_factor,
            quality_factor_from=restoration.quality_factor_from,
            projected=restoration.projected,
            compressed_before=restoration.compressed_before,
        )
        tell.wrote(outcome)
        return outcome

    return prefetch(pool, write, restored(), _AHEAD)


def _with_stream(job: Job) -> Job:
    """Reads a stream here, in the main thread, where a signal interrupts reading.

    Errors are left to `_picture`, which reports them.
    """
    name = job.source.name
    with contextlib.suppress(OSError):
        if name == STANDARD or not stat.S_ISREG(os.stat(name).st_mode):
            return job._replace(data=_bytes(name))
    return job


def _picture(
    job: Job,
    args: argparse.Namespace,
    projecting: bool,
    claims: _Claims,
) -> Picture:
    """Decodes a file.

    Raises:
      _NotRestoredError: the file can't be read, its result can't be written or exists
        already, or --skip-above leaves it alone.
    """
    try:
        _check_target(job.target, args.overwrite)  # it may have appeared meanwhile
        data, picture = _decode(job, args, projecting)
    except ImageError as error:
        raise _NotRestoredError(str(error)) from None
    _leave_good(job, picture, data, args, claims)
    return picture


def _decode(
    job: Job, args: argparse.Namespace, stored: bool = False
) -> tuple[bytes, Picture]:
    """Reads and decodes a file.

    Args:
      job: the file.
      args: the command line.
      stored: whether to read the DCT coefficients of a JPEG.

    Raises:
      ImageError: the file can't be read or decoded.
    """
    try:
        data = _bytes(job.source.name) if job.data is None else job.data
    except OSError as error:
        raise ImageError(f"can't be read: {error.strerror or error}") from None
    most = round(args.max_megapixels * 1e6)
    return data, pictures.decode(data, most, stored, args.salvage)


def _bytes(name: str) -> bytes:
    """Reads a file or standard input."""
    if name == STANDARD:
        if sys.stdin is None:
            raise OSError("standard input is closed")
        return sys.stdin.buffer.read()
    return pathlib.Path(name).read_bytes()


def _leave_good(
    job: Job,
    picture: Picture,
    data: bytes,
    args: argparse.Namespace,
    claims: _Claims,
) -> None:
    """Leaves a JPEG of high quality alone; copies it with --copy-skipped.

    Raises:
      _NotRestoredError: the quality factor of the JPEG's tables is above --skip-above.
    """
    if args.skip_above is None or picture.compression is None:
        return
    factor, _ = nearest_quality(picture.compression.luma)
    if factor <= args.skip_above:
        return
    reason = f"its quality factor is {factor}, above --skip-above={args.skip_above}"
    if not args.copy_skipped:
        raise _NotRestoredError(reason, "skipped")
    source = pathlib.Path(job.source.name)
    path = pathlib.Path(job.target).with_name(source.name)
    try:
        _claim(str(path), job.source, claims)
        files.write(path, data, args.overwrite, source if args.preserve else None)
        claims.wrote(str(path))
    except FileExistsError:
        reason = f"{reason}; {path} exists"
        raise _NotRestoredError(reason, "skipped", str(path)) from None
    except UserError as error:
        raise _NotRestoredError(str(error)) from None
    raise _NotRestoredError(f"{reason}; copied to {path}", "copied", str(path))


def measure(args: argparse.Namespace) -> int:
    """Prints the quality of what the command line names.

    Returns:
      How many files failed.

    Raises:
      UserError: the report can't be written, or the engine does not work here.
    """
    _check_report(args.report, args.output)
    found = []
    for source in _find(args):
        if source.left_out:
            print(f"{source.name}: left out: {source.problem}", file=sys.stderr)
        else:
            found.append(source)
    rows: list[dict] = []

    def read(job: Job) -> tuple[str, Picture | str]:
        name = job.source.name
        if job.source.problem:
            return name, job.source.problem
        try:
            _, picture = _decode(job, args)
        except ImageError as error:
            return name, str(error)
        return name, picture

    def measured(case: tuple[str, Picture | str]) -> dict:
        name, picture = case
        if isinstance(picture, str):
            return {"input": name, "reason": picture}
        return {"input": name, **quality.measure(picture, args.engine)._asdict()}

    with concurrent.futures.ThreadPoolExecutor(_AHEAD) as pool:
        jobs = (Job(x, "") if x.problem else _with_stream(Job(x, "")) for x in found)
        each = map(measured, prefetch(pool, read, jobs, _AHEAD))
        rows += progress.over(each, len(found), "measuring", "image")
    failures = [row for row in rows if "reason" in row]
    for row in failures:
        print(f"{row['input']}: {row['reason']}", file=sys.stderr)
    if args.report:
        files.write(pathlib.Path(args.report), json.dumps(rows, indent=2) + "\n")
    if args.json:
        with standard_output():
            print(json.dumps(rows, indent=2))
    elif len(rows) > len(failures):
        lines = [
            [
                x["input"],
                f"{x['score']:.2f}",
                str(x["quality_factor"]),
                x["quality_factor_from"],
            ]
            for x in rows
            if "score" in x
        ]
        with standard_output():
            print(tables.text([["file", "score", "QF", "QF from"], *lines]))
    return len(failures)


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
    """Yields a check that raises a KeyboardInterrupt again if one was lost.

    Python ignores an exception that a signal raises while a destructor or a callback of
    the garbage collector runs.
    """
    caught = []

    def note(number, frame):
        del frame
        caught.append(number)
        raise KeyboardInterrupt

    def check():
        if caught:
            raise KeyboardInterrupt

    with signals.handled(note):
        yield check


class _Teller:
    """Reports each file when it is done: by a bar at a terminal, else by lines."""

    def __init__(self, args: argparse.Namespace):
        self._args = args
        self._outcomes: list[Outcome] = []
        self._written: list[Outcome] = []
        self._good = 0
        self.engine = ""  # its name, for the summary
        self._start = time.perf_counter()
        self._bar = tqdm(
            total=0, unit="image", disable=not sys.stderr.isatty(), leave=False
        )

    def expect(self, count: int) -> None:
        """Raises the number of files to expect."""
        self._bar.total += count
        self._bar.refresh()

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

    def wrote(self, outcome: Outcome) -> None:
        """Notes that a file was written, which is told at the end if not before.

        Threads call this. An interrupt may come before the outcome is told.
        """
        self._written.append(outcome)

    def see(self, picture: Picture) -> None:
        """Counts a picture whose quality is too high to gain."""
        if picture.compression:
            factor, _ = nearest_quality(picture.compression.luma)
            self._good += factor >= quality.TOO_GOOD

    def end(self) -> int:
        """Prints the last line, writes the report, returns how many files failed."""
        args = self._args
        told = set(self._outcomes)
        for outcome in self._written:
            if outcome not in told:
                self(outcome)
        self._bar.close()
        if not self._outcomes:  # an error ends the run before its first file
            return 0
        seconds = time.perf_counter() - self._start
        count = collections.Counter(x.status for x in self._outcomes)
        megapixels = sum(x.megapixels for x in self._outcomes)
        parts = [
            f"{count[status]} {status}"
            for status in ("restored", "copied", "skipped", "left out", "failed")
            if count[status] or status == "restored"
        ]
        print(
            f"{', '.join(parts)}; {megapixels:.1f} megapixels in {seconds:.1f} s "
            f"({megapixels / seconds:.2f} a second)"
            + f", {self.engine}"
            * (count["restored"] > 0),
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
            with standard_output():
                print(text)
        if args.report:
            files.write(pathlib.Path(args.report), text + "\n")
        return count["failed"]


def _check_report(report: str | None, output: str | None) -> None:
    """Raises a UserError for a report that couldn't be written when all is done."""
    if not report:
        return
    if output and os.path.realpath(report) == os.path.realpath(output):
        raise UserError(f"--report={report}: is the output too; choose another name")
    if os.path.isdir(report):
        raise UserError(f"--report={report}: is a folder; name a file in it")
    if formats.is_read(report) or formats.is_known(report):
        raise UserError(f"--report={report}: is an image's name; name a .json file")
    if os.path.exists(report) and not os.path.isfile(report):
        return  # a pipe or a device
    if why := files.obstacle(pathlib.Path(os.path.realpath(report)).parent):
        raise UserError(f"--report={report}: can't be written: {why}")


def _encoding(target: str, args: argparse.Namespace) -> str:
    """Returns the format in which a picture is written."""
    return formats.format_of(target) or args.format or "png"


def _checked(
    picture: Picture,
    job: Job,
    args: argparse.Namespace,
    depth: np.dtype | None,
    claims: _Claims,
) -> tuple[str, Picture]:
    """Checks that a picture can be written; returns its target and the picture.

    A format that the user did not ask for is replaced by PNG if it can't hold the
    picture. If NAME.png belongs to another input, the PNG keeps the extension of its
    input: NAME.webp.png or, beside its input, NAME.webp.restored.png.

    Raises:
      _NotRestoredError: the format can't hold the picture, or the PNG can't be written
        or exists already.
    """
    target = job.target
    name = _encoding(target, args)
    asked = args.format or targets.named_format(args.output) or target == STANDARD
    fallback = name if asked else pictures.fallback(picture, name, depth)
    try:
        pictures.check(picture, fallback, depth)
    except ImageError as error:
        raise _NotRestoredError(str(error)) from None
    if fallback == name:
        return target, picture
    extension = formats.extension(fallback)
    path = pathlib.Path(target)
    other = str(path.with_suffix(extension))
    if claims.owner(other, job.source) != job.source.name:
        mark = args.suffix or sources.MARK  # stays at the end of the name
        stem, end = path.stem.removesuffix(mark), mark * path.stem.endswith(mark)
        other = str(path.with_name(stem + path.suffix + end + extension))
        _claim(other, job.source, claims)
    try:
        _check_target(other, args.overwrite)
    except _NotRestoredError as stop:
        raise _NotRestoredError(stop.reason, stop.status, other) from None
    note = f"{name.upper()} can't hold it: it is written as {fallback.upper()}."
    return other, picture._replace(notes=(*picture.notes, note))


def _write(job: Job, picture: Picture, args: argparse.Namespace) -> tuple[str, ...]:
    """Writes a restored picture; returns notes on what was not kept.

    Raises:
      _NotRestoredError: it can't be written, or its target exists by now.
    """
    try:
        name = _encoding(job.target, args)
        fitted = pictures.fitted(picture, name)
        data = pictures.encode(fitted, name, args.quality)
        if job.target == STANDARD:
            if sys.stdout is None:
                raise OSError("it is closed")
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return fitted.notes
        like = args.preserve and job.source.name != STANDARD
        source = pathlib.Path(job.source.name) if like else None
        files.write(pathlib.Path(job.target), data, args.overwrite, source)
    except FileExistsError:
        reason = f"{job.target} exists; --overwrite replaces it"
        raise _NotRestoredError(reason, "skipped") from None
    except UserError as error:
        raise _NotRestoredError(str(error)) from None
    except OSError as error:
        reason = f"can't be written to standard output: {error.strerror or error}"
        raise _NotRestoredError(reason) from None
    return fitted.notes
