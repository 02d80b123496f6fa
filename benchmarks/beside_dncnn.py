"""Compares the speed of a deblocker with DnCNN-3 (Zhang et al. 2017) in PyTorch.

    python -m benchmarks.beside_dncnn > benchmarks/results/beside_dncnn.md

Prints a report in Markdown. Like our deblocker, DnCNN-3 is one model for all qualities.
It has 20 3x3 convolutions with 64 channels and ReLUs between them, and costs 0.67 M
multiply-adds per pixel. Its batch norms are folded into the convolutions. Its weights
are random, because they do not affect the speed. Our deblocker runs in the engine that
`cqr-restore` uses on this machine. Each of the two runs in a separate process on all
cores of the same machine, and they alternate. PyTorch runs in both of its memory
formats, and the report contains the faster one.
"""

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor as Pool

import numpy as np
import torch
from torch import nn

from benchmarks import machine
from benchmarks.side_by_side import JAX, LAYOUTS, in_turn
from cqr_jax.errors import one_line_errors
from cqr_jax.restoring import network

_SHAPES = ((1, 256, 256), (1, 512, 512), (3, 321, 481), (6, 192, 192))
_works: dict = {}  # (layout, shape) -> restoring function, in a worker


def dncnn3() -> nn.Module:
    """Returns DnCNN-3 without batch norms. It predicts the artifacts of its input."""
    layers: list[nn.Module] = [nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(inplace=True)]
    for _ in range(18):
        layers += [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(64, 1, 3, padding=1))


def _ours(path: str, shape: tuple[int, ...]):
    run, images = network.load(path), _images(shape)
    return lambda: run(images)


def _theirs(layout: str, shape: tuple[int, ...]):
    module = dncnn3().eval().to(memory_format=LAYOUTS[layout])
    image = torch.tensor(_images(shape))[:, None]
    image = image.to(memory_format=LAYOUTS[layout])

    @torch.inference_mode()
    def restore():
        return image - module(image)

    return restore


def _images(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def _seconds(layout: str, path: str, shape: tuple[int, ...], calls: int) -> float:
    """In a worker: returns the seconds of `calls` calls, after a call to warm up."""
    key = layout, shape
    if key not in _works:
        _works[key] = _theirs(layout, shape) if layout else _ours(path, shape)
        _works[key]()
    start = time.perf_counter()
    for _ in range(calls):
        _works[key]()
    return time.perf_counter() - start


def _row(
    path: str, shape: tuple[int, ...], pools: dict[str, Pool], args
) -> tuple[str, ...]:
    def seconds(layout, calls):
        return pools[layout].submit(_seconds, layout, path, shape, calls).result()

    return "x".join(map(str, shape)), *in_turn(seconds, np.prod(shape) / 1e6, args)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.beside_dncnn",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", default="cqr_jax/weights/compact.safetensors")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="duration of a repetition"
    )
    args = parser.parse_args()
    with one_line_errors():
        _report(args)


def _report(args: argparse.Namespace) -> None:
    # As in `cqr-restore`; read by the workers.
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(network.cores()))
    engine = network.engine_name(network.load(args.weights))
    spawn = multiprocessing.get_context("spawn")
    with Pool(1, spawn) as ours, Pool(1, spawn) as theirs:
        pools = {JAX: ours, **dict.fromkeys(LAYOUTS, theirs)}
        rows = []
        for shape in _SHAPES:
            rows.append(_row(args.weights, shape, pools, args))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    print("# Speed compared with DnCNN-3\n")
    print(f"`{machine.command()}`\n\n{machine.describe()}, torch {torch.__version__}\n")
    print(
        f"Megapixels per second of {args.weights} in {engine}, and of DnCNN-3 in "
        "PyTorch in the faster of its memory formats (NHWC is `channels_last`): median "
        f"(range) of {args.repetitions} repetitions, in which the two alternate. A "
        f"repetition lasts about {args.seconds:g} s, or one call if that is longer. "
        "The ratio is our speed divided by DnCNN-3's in each repetition.\n"
    )
    print("| images | ours | DnCNN-3 | ratio |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
