"""Measures time and memory of `cqr-restore`, also beside another commit.

    git worktree add /tmp/before COMMIT
    python -m benchmarks.restoring --before=/tmp/before

Prints a report in Markdown. Each measurement is a whole process on all cores, from its
start to its end. The process restores colour JPEGs of QF 30 (4:2:0) to PNGs: one of 0.1
to 24 megapixels, or a folder of one megapixel each. The JPEGs are made of photographs
that are included in scikit-image. The first process is reported separately, because it
compiles the network and caches it on disk. With --before, the processes of both commits
alternate.

For the folder, the report also has the share of the network's own speed: the time that
the network alone takes for the same tiles, over the time of the process.
"""

import argparse
import collections
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks import machine, timing
from cqr_jax import tables
from cqr_jax.restoring import network, pictures, restorer
from data_prep import sources

_MEGAPIXELS = (0.1, 1, 12, 24)
_HEAD = ["megapixels", "s", "range", "peak GiB"]


class Process(NamedTuple):
    """One process of `cqr-restore`: its seconds, and its peak memory in GiB."""

    seconds: float
    peak: float


def photograph(megapixels: float, path: pathlib.Path, first: int = 0) -> None:
    """Writes a JPEG of photographs side by side, with an aspect ratio of 3:2.

    Args:
      megapixels: size of the JPEG.
      path: path of the JPEG.
      first: number of the photograph at its top left.
    """
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    width = round(1.5 * height)
    whole = Image.new("RGB", (width, height))
    images = [
        np.asarray(Image.open(x).convert("RGB"))[:256, :256]
        for x in sources.embedded("train") + sources.embedded("test")
    ]
    images = [Image.fromarray(x) for x in images if x.shape[:2] == (256, 256)]
    places = [(x, y) for y in range(0, height, 256) for x in range(0, width, 256)]
    for i, place in enumerate(places):
        whole.paste(images[(first + i) % len(images)], place)
    whole.save(path, quality=30)


# Runs a command; prints its seconds and its peak memory in KiB. A small process starts
# the command, because Linux counts the memory of the process that starts it as its own.
_TIMED = """
import resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True)
seconds = time.perf_counter() - start
print(seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def restore(source: pathlib.Path, cache: str, code: pathlib.Path) -> Process:
    """Restores a file, or the files of a folder, with the code of a checkout."""
    arguments = [sys.executable, "-m", "cqr_jax.restoring", str(source), "--overwrite"]
    done = subprocess.run(
        [sys.executable, "-c", _TIMED, *arguments],
        cwd=code,
        env={**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    seconds, peak = map(float, done.stdout.split())
    return Process(seconds, peak / 2**20)


def cells(runs: dict[str, list[Process]]) -> list[str]:
    """Returns the cells of one row: of this commit, and of the one before."""
    row = []
    for found in runs.values():
        row += timing.shown([x.seconds for x in found]).split(" | ")
        row.append(f"{max(x.peak for x in found):.2f}")
    if len(runs) > 1:
        now, before = runs.values()
        pairs = zip(now, before, strict=True)
        row.append(f"{np.median([x.seconds / y.seconds for x, y in pairs]):.2f}")
    return row


def network_seconds(files: list[pathlib.Path]) -> float:
    """Returns the seconds that the network alone takes for the tiles of these files."""
    run = restorer.load()
    counted: collections.Counter[tuple[int, ...]] = collections.Counter()

    def count(images, *compression):
        counted[images.shape[1:]] += len(images)
        return images

    count.__dict__.update(network.attributes(run))
    decoded = map(pictures.decode, (x.read_bytes() for x in files))
    for _ in restorer.restore_pictures(count, decoded):
        pass
    total = 0.0
    for shape, number in counted.items():
        shape = (network.tile_batch(run), *shape)
        images = np.random.default_rng(0).random(shape, np.float32)
        run(images)
        each = np.median(timing.seconds(lambda x=images: run(x), 5)) / len(images)
        total += number * float(each)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.restoring",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--before", help="checkout of a commit to compare with")
    parser.add_argument(
        "--photographs",
        type=int,
        default=20,
        help="number of photographs in the folder; 0 for no folder (%(default)s)",
    )
    parser.add_argument(
        "--megapixels",
        type=float,
        nargs="+",
        default=_MEGAPIXELS,
        help="sizes of the JPEGs (default: 0.1 1 12 24)",
    )
    args = parser.parse_args()
    codes = {"": pathlib.Path(__file__).resolve().parent.parent}
    if args.before:
        codes["before: "] = pathlib.Path(args.before).resolve()
    head = [_HEAD[0]] + [f"{name}{cell}" for name in codes for cell in _HEAD[1:]]
    rows = [head + ["ratio"] * (len(codes) > 1)]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        many = folder / "many"
        many.mkdir()
        for i in range(args.photographs):
            photograph(1, many / f"{i}.jpg", i)
        sizes = [args.megapixels[0], *args.megapixels]
        if args.photographs:
            sizes.append(0)
        for i, megapixels in enumerate(sizes):
            source = folder / f"{megapixels}.jpg" if megapixels else many
            if megapixels:
                photograph(megapixels, source)
            runs: dict[str, list[Process]] = {name: [] for name in codes}
            for _ in range(1 if i == 0 else args.repetitions):
                for name, code in codes.items():
                    cache = folder / f"cache of {code.name}"
                    runs[name].append(restore(source, str(cache), code))
            kind = f"{megapixels:g}" if megapixels else f"{args.photographs} of 1"
            rows.append([kind + ", first process" * (i == 0), *cells(runs)])
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
        if args.photographs:
            taken = network_seconds(sorted(many.glob("*.jpg")))
            share = taken / np.median([x.seconds for x in runs[""]])
    print(f"# Restoring files\n\n    {machine.command()}\n")
    print(f"{machine.describe()}.\n")
    print(
        f"Seconds of whole processes: median and range of {args.repetitions}. The "
        "images are in colour with 4:2:0 subsampling.\n"
    )
    print(tables.markdown(rows))
    if args.photographs:
        print(
            f"\nThe network alone takes {taken:.1f} s for the tiles of the folder, "
            f"{share:.2f} of the time of the process."
        )


if __name__ == "__main__":
    main()
