"""Measures the speed of data preparation and of the input pipeline.

    python -m benchmarks.data_speed > benchmarks/results/data_speed.md
    python -m benchmarks.data_speed --source=FOLDER > benchmarks/results/data_speed.md

Prints a report in Markdown, which also contains the costs of the pipeline's parts. The
time of preparation is the time of the whole command `data_prep.build`. It is compared
with the minimum work: a loop that encodes the same sub-images at all quality factors
with libjpeg-turbo (through Pillow), with one process on each core. The time of reading
and cutting the images is not included in the minimum. The two alternate. The CPU time
includes the start of the command. It depends little on the load of the machine.
"""

import argparse
import datetime
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from benchmarks import machine, timing, training_speed
from configs import deblock
from cqr_jax.config import level_ranges
from cqr_jax.data import jpeg, pipeline, records
from cqr_jax.errors import one_line_errors
from cqr_jax.restoring import network
from data_prep import ladder, sources
from data_prep.build import MIN_SIDE, SIDE

_NAME = "data_speed"


def _encode(paths: list[str]) -> tuple[int, float, float]:
    """Returns the pixels of all sub-images, and the (CPU) seconds of encoding them."""
    pixels, seconds, cpu = 0, 0.0, 0.0
    for path in paths:
        try:
            parts = [part for _, _, part in ladder.cut(path, SIDE, MIN_SIDE)]
        except jpeg.ImageError:
            continue
        for part in parts:
            start, cpu_start = time.perf_counter(), time.process_time()
            for quality in records.QUALITIES:
                jpeg.encode(part, quality)
            seconds += time.perf_counter() - start
            cpu += time.process_time() - cpu_start
            pixels += part.size
    return pixels, seconds, cpu


def _limit(paths: list[str]) -> tuple[int, float, float]:
    """Returns the encoded pixels, pixels per second over all cores, and CPU seconds."""
    count = network.cores()
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        results = pool.map(_encode, [paths[i::count] for i in range(count)])
    return (
        sum(pixels for pixels, _, _ in results),
        sum(pixels / seconds for pixels, seconds, _ in results if seconds),
        sum(cpu for _, _, cpu in results),
    )


def _build(source: str, data_dir: str) -> tuple[float, float]:
    """Returns the seconds and the CPU seconds of the command."""
    command = [sys.executable, "-m", "data_prep.build", f"--source={source}"]
    command += [f"--name={_NAME}", f"--data_dir={data_dir}", "--overwrite"]
    start, before = time.perf_counter(), _children()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start, _children() - before


def _children() -> float:
    """Returns the CPU seconds of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _preparation(source: str, data_dir: str, repetitions: int) -> str:
    found = sources.find(source)
    paths = [str(path) for split in found.counts for _, path in found.images(split)]
    built, limits, built_cpu, limits_cpu = [], [], [], []
    for _ in range(repetitions):
        pixels, speed, cpu = _limit(paths)
        limits.append(speed / 1e6)
        limits_cpu.append(cpu * 1e9 / pixels)
        seconds, cpu = _build(source, data_dir)
        built.append(pixels / 1e6 / seconds)
        built_cpu.append(cpu * 1e9 / pixels)
    share = np.median(built) / np.median(limits)
    cpu_share = np.median(limits_cpu) / np.median(built_cpu)
    what = "of scikit-image's photographs" if source == "embedded" else "photographs"
    count = network.cores()
    return f"""\
{len(paths)} {what}, {pixels / 1e6:.1f} Mpixel, {len(records.QUALITIES)} JPEGs of each
sub-image. Median and range of {repetitions} repetitions.

| | Mpixel/s | range | per core | CPU ms per Mpixel |
|---|---|---|---|---|
| encoding alone | {_row(limits, limits_cpu, count)} |
| `data_prep.build` | {_row(built, built_cpu, count)} |

`data_prep.build` reaches {share:.2f} of the speed of encoding alone, or
{cpu_share:.2f} measured in CPU time.
"""


def _row(speeds: list[float], cpu: list[float], cores: int) -> str:
    each = np.median(speeds) / cores
    return f"{timing.shown(speeds, '.2f')} | {each:.2f} | {np.median(cpu):.0f}"


def _milliseconds(data: tf.data.Dataset, count: int) -> float:
    """Returns the CPU time of drawing an element, over all threads; median of 5."""
    data = data.take(count)

    def draw():
        start = time.process_time()
        data.reduce(np.int64(0), lambda drawn, _: drawn + 1).numpy()
        return (time.process_time() - start) * 1000 / count

    draw()
    return float(np.median([draw() for _ in range(5)]))


def _costs(builder, config, count: int) -> dict[str, float]:
    """Returns the CPU milliseconds of one example, and of each of its parts.

    Args:
      builder: builder of the records.
      config: config of the deblocker, including the ranker's.
      count: number of examples that are drawn for each measurement.
    """
    patch, batch = config.patch, config.batch_size
    stored = pipeline.read(builder, "train").take(256).cache()
    data = stored.repeat()

    def mapped(function: Callable) -> float:
        return _milliseconds(data.enumerate().map(function), count)

    def example(make: Callable) -> float:
        return mapped(lambda index, record: make(record, pipeline.fold(0, index)))

    def crop(index, record):
        top = (record["height"] - patch) // 16 * 8
        left = (record["width"] - patch) // 16 * 8
        return pipeline.decode_crop(record["jpegs"][9], top, left, patch)

    nothing = mapped(lambda index, record: index)
    element = _milliseconds(data, count)
    still, turned = (
        example(pipeline.ladders(patch, (10,), augment)) for augment in (False, True)
    )
    images = tf.data.Dataset.from_tensors(
        {"clean": tf.zeros((patch, patch, 1), tf.uint8)}
    ).repeat()
    batches = _milliseconds(images.batch(batch), count // batch)
    read = pipeline.read(builder, "train").repeat()
    return {
        "reading a record": _milliseconds(read, count),
        f"decoding a {patch}x{patch} crop of a JPEG, QF 10": mapped(crop) - nothing,
        "decoding the clean PNG": mapped(
            lambda index, record: tf.image.decode_png(record["clean"], channels=1)
        )
        - nothing,
        "augmentation of a crop and its JPEG": turned - still,
        f"putting an image into a batch of {batch}": batches / batch,
        "a whole example of the ranker's stage, from the record on": example(
            pipeline.pairs(config.ranker.patch, level_ranges(config.ranker), True)
        )
        - element,
        "a whole example of the deblocker's stage, one quality": turned - element,
    }


def _input(data_dir: str, repetitions: int, count: int) -> str:
    config = deblock.get_config("compact")
    config.data.update({"name": _NAME, "data_dir": data_dir})
    lines = []
    for stage, of in training_speed.all_stages(config):
        speeds = training_speed.pipeline_speeds(stage, repetitions, steps=100)
        name = f"{stage.name}, {of.patch}x{of.patch}"
        lines.append(f"| {name} | {timing.shown(speeds, '.0f')} |")
    builder = records.open_builder(data_dir, _NAME)
    costs = _costs(builder, config, count)
    units = [f"| {name} | {cost:.3f} |" for name, cost in costs.items()]
    head = "| | images/s | range |\n|---|---|---|"
    unit_head = "| | ms |\n|---|---|"
    return f"""\
Speed of the compact preset's pipeline on all cores, in images per second.
Median and range of {repetitions} repetitions of 100 batches.

{head}
{chr(10).join(lines)}

CPU time of each part, on one core:

{unit_head}
{chr(10).join(units)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--source", default="embedded", help="a folder of images, or embedded"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--examples", type=int, default=4000, help="drawn to measure each part"
    )
    args = parser.parse_args()
    with one_line_errors(), tempfile.TemporaryDirectory() as data_dir:
        preparation = _preparation(args.source, data_dir, args.repetitions)
        feeding = _input(data_dir, args.repetitions, args.examples)
    print(f"# Speed of the data\n\n    {machine.command(FOLDER=args.source)}\n")
    print(f"{datetime.date.today()}, on {machine.describe()}.\n")
    print(f"## Preparation\n\n{preparation}\n## Training input\n\n{feeding}", end="")


if __name__ == "__main__":
    main()
