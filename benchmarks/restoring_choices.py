"""Measures what `cqr-restore` chooses: the engine, the tiles and PNG's compression.

    python -m benchmarks.restoring_choices PHOTOGRAPHS

Uses the photographs that the folder's colour records hold out from training. Prints a
report in Markdown with three tables: the speed of each engine on tiles of several
sides, the speed and the PSNR of restoring whole photographs with several sides and
margins, and the time and the size of PNG files at several compression levels.
"""

import argparse
import io
import itertools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from benchmarks import machine, timing
from cqr_jax import tables, weights
from cqr_jax.data import jpeg
from cqr_jax.data.compression import features, libjpeg
from cqr_jax.data.held_out import held_out_images
from cqr_jax.errors import one_line_errors
from cqr_jax.evaluation import metrics
from cqr_jax.export import onnx
from cqr_jax.export.program import deblocker_of
from cqr_jax.restoring import (
    colour,
    jax_network,
    network,
    openvino_compiler,
    openvino_network,
    restorer,
    tiles,
)

_SIDES = (128, 192, 256, 320, 384)  # of tiles, in pixels
_MARGINS = (8, 16, 32)  # in pixels
_QUALITY = 20  # quality factor of the photographs
_LEVELS = range(1, 10)  # of zlib


def onnx_runtime(deblocker: weights.Weights) -> network.Run:
    """Returns the network in ONNX Runtime, on all cores, in float32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = network.cores()
    exported = onnx.network_to_onnx(
        deblocker_of(deblocker), deblocker.variables["params"]
    )
    session = onnxruntime.InferenceSession(exported, options)
    names = [x.name for x in session.get_inputs()]

    def run(images, compression=None):
        inputs = network.inputs(run, images, compression)
        return session.run(None, dict(zip(names, inputs, strict=True)))[0]

    run.channels = deblocker.model.channels
    run.conditioned = deblocker.model.conditioning != "none"
    run.tile_batch = 4 * network.cores()
    return run


def engines(path: str) -> dict[str, network.Run]:
    """Returns name -> network of each engine and precision that works here."""
    deblocker = weights.load(path, "deblocker")
    found: dict[str, network.Run] = {
        "JAX": jax_network.JaxNetwork(deblocker),
        "ONNX Runtime": onnx_runtime(deblocker),
    }
    openvino = openvino_compiler.import_openvino().Core()
    abilities = openvino.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for name, precision in (("FP32", "f32"), ("BF16", "bf16")):
        if name in abilities:
            run = openvino_network.OpenvinoNetwork(path, precision)
            found[network.engine_name(run)] = run
    return found


def best(call: Callable[[], Any], repetitions: int) -> float:
    """Returns the seconds of the fastest of several calls, after one to warm up."""
    call()
    return min(timing.seconds(call, repetitions))


def engine_rows(runs: dict[str, network.Run], repetitions: int) -> list[list[str]]:
    """Returns megapixels per second of each engine, for each side."""
    rows = []
    for side in _SIDES:
        row = [str(side)]
        for run in runs.values():
            shape = (network.tile_batch(run), side, side)
            images = np.random.default_rng(0).random(shape, np.float32)
            spent = best(lambda run=run, x=images: run(x), repetitions)
            row.append(f"{images.size / spent / 1e6:.2f}")
        rows.append(row)
    return rows


def degraded(run: network.Run, photographs: list[np.ndarray]) -> list:
    """Returns the photographs as JPEGs, as `tiles.restore` takes them."""
    images = [jpeg.compress(x, _QUALITY) for x in photographs]
    if not network.conditioned(run):
        return images
    condition = features(libjpeg(_QUALITY, gray=True))
    return [
        tiles.Conditioned(colour.without_colour(x / np.float32(255)), condition)
        for x in images
    ]


def tile_rows(
    run: network.Run, clean: list[np.ndarray], repetitions: int
) -> list[list[str]]:
    """Returns speed and PSNR of restoring photographs, for each side and margin."""
    images = degraded(run, clean)
    pixels = sum(x.size for x in clean)
    rows = []
    for side, margin in itertools.product(_SIDES, _MARGINS):
        found: list[np.ndarray] = []

        def restore(side=side, margin=margin, found=found):
            found[:] = tiles.restore(run, images, side, margin)

        spent = best(restore, repetitions)
        psnr = np.mean(list(map(metrics.psnr, clean, map(_luma, found))))
        speed = pixels / spent / 1e6
        rows.append([str(side), str(margin), f"{speed:.2f}", f"{psnr:.3f}"])
    return rows


def _luma(restored: np.ndarray) -> np.ndarray:
    """Returns 8-bit Y of a restored image."""
    return metrics.to_uint8(restored if restored.ndim == 2 else restored[..., 0])


def png_rows(images: list[np.ndarray], repetitions: int) -> list[list[str]]:
    """Returns the time and the size of PNG files, for each level."""
    pixels = sum(x.size for x in images)
    rows, sizes = [], []
    for level in _LEVELS:
        buffer = io.BytesIO()

        def write(level=level, buffer=buffer):
            buffer.seek(0)
            buffer.truncate()
            for x in images:
                Image.fromarray(x).save(buffer, "PNG", compress_level=level)

        spent = best(write, repetitions) / (pixels / 1e6)
        sizes.append(buffer.tell())
        rows.append([str(level), f"{spent:.3f}"])
    usual = sizes[_LEVELS.index(6)]
    return [[*row, f"{x / usual:.3f}"] for row, x in zip(rows, sizes, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.restoring_choices",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("photographs", help="folder of photographs")
    parser.add_argument("--weights", default=str(weights.DEBLOCKER))
    parser.add_argument("--count", type=int, default=8, help="of photographs")
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(network.cores()))
    with one_line_errors():
        paths = held_out_images(args.photographs)[: args.count]
        clean = [jpeg.load_named(path, jpeg.load_luma) for path in paths]
        runs = engines(args.weights)
        chosen = restorer.load(args.weights)
        name = pathlib.Path(args.weights).name
        print("# Engine, tiles and PNG level of cqr-restore\n")
        print(f"    {machine.command(PHOTOGRAPHS=args.photographs)}\n")
        print(f"{name}, {machine.describe()}.\n")
        print(f"The fastest of {args.repetitions} repetitions.\n")
        print("## Engines\n\nMegapixels of gray tiles per second.\n")
        rows = engine_rows(runs, args.repetitions)
        print(tables.markdown([["side", *runs], *rows]), flush=True)
        print(
            f"\n## Tiles\n\n{len(clean)} held-out photographs, Y, at QF {_QUALITY}, in "
            f"{network.engine_name(chosen)}. The side is the longest one of a tile. "
            "The margin is half of the pixels that neighbouring tiles share.\n"
        )
        rows = tile_rows(chosen, clean, args.repetitions)
        head = ["side", "margin", "megapixels a second", "PSNR (dB)"]
        print(tables.markdown([head, *rows]), flush=True)
        print(
            "\n## PNG\n\nThe restored photographs as PNGs. Sizes are relative to "
            "that of level 6, the default of zlib.\n"
        )
        restored = list(map(_luma, tiles.restore(chosen, degraded(chosen, clean))))
        rows = png_rows(restored, args.repetitions)
        print(tables.markdown([["level", "seconds a megapixel", "size"], *rows]))


if __name__ == "__main__":
    main()
