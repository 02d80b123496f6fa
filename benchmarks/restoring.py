"""Measures time and memory of `cqr-restore` for JPEGs of 0.1 to 24 megapixels.

    python -m benchmarks.restoring > benchmarks/results/restoring.md

Prints a report in Markdown. Each measurement is a whole process on all cores, from its
start to its end. The process restores a colour JPEG of QF 30 (4:2:0) to a PNG. The JPEG
is made of photographs that are included in scikit-image. The first process is reported
separately, because it compiles the network and caches it on disk.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from benchmarks import machine, timing
from data_prep import sources

_MEGAPIXELS = (0.1, 1, 12, 24)


def _photograph(megapixels: float, path: pathlib.Path) -> None:
    """Writes a JPEG of photographs side by side, with an aspect ratio of 3:2."""
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
        whole.paste(images[i % len(images)], place)
    whole.save(path, quality=30)


def _restore(path: pathlib.Path, cache: str) -> tuple[float, float, float]:
    """Returns the seconds, the reported megapixels per second, and the peak GiB."""
    arguments = [sys.executable, "-m", "cqr_jax.restoring", str(path), "--overwrite"]
    start = time.perf_counter()
    process = subprocess.Popen(
        arguments,
        env={**os.environ, "XDG_CACHE_HOME": cache},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    told = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    found = re.search(r"\((\S+) a second\)", told)
    if process.returncode or not found:
        raise SystemExit(told)
    return seconds, float(found[1]), usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.restoring",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    print("# Restoring files\n\n`python -m benchmarks.restoring`\n")
    print(f"{machine.describe()}\n")
    print(
        f"Median and range of {args.repetitions} processes. The seconds are those of "
        "the whole process. The speed is the one that the command reports, without its "
        "start. The images are in colour with 4:2:0 subsampling: there is half a "
        "chroma sample for each pixel.\n"
    )
    print("| megapixels | s | range | megapixels per second | range | peak GiB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for megapixels in (_MEGAPIXELS[0], *_MEGAPIXELS):
            path = pathlib.Path(folder, f"{megapixels}.jpg")
            first = not path.exists() and megapixels == _MEGAPIXELS[0]
            if not path.exists():
                _photograph(megapixels, path)
            count = 1 if first else args.repetitions
            runs = [_restore(path, folder) for _ in range(count)]
            seconds, speeds, peaks = (list(x) for x in zip(*runs, strict=True))
            name = f"{megapixels:g}" + (", first process" if first else "")
            print(
                f"| {name} | {timing.shown(seconds)} "
                f"| {timing.shown(speeds, '.2f')} | {max(peaks):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
