"""Measures how the cost of training and of restoring grows.

    python -m benchmarks.cost > benchmarks/results/cost.md

Prints a report in Markdown. It contains the memory that the paper's network needs for
whole images, and the time of a training step for several batch sizes, widths and patch
sizes. The weights are newly initialised, because they do not affect the cost. Each
measurement runs in a separate process, so that its peak memory is measured alone.
`benchmarks.restoring` measures files of 0.1 to 24 megapixels.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import resource
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from benchmarks import machine, timing
from configs import ablation, deblock
from cqr_jax import tasks
from cqr_jax.config import ablate
from cqr_jax.errors import one_line_errors
from cqr_jax.models.init import shapes
from cqr_jax.training import stages, state

WHOLE_SIDES = (256, 512, 1024)
# Values of one field at a time, of the preset compact of configs/ablation.py.
TRAINING = {
    "batch_size": (4, 16, 64),
    "width": (12, 24, 48),
    "patch": (32, 48, 96),
}


def _train(field: str, value: int, repetitions: int) -> tuple[list[float], float]:
    """Returns the milliseconds of training steps and the peak GiB, without a ranker."""
    config = ablation.get_config("compact")
    config.variants = "cqr"
    owner = config.model if field == "width" else config
    owner[field] = value
    tasks.check(config)
    ablate(config, "cqr")
    steps = stages.deblock_steps(config, None)
    images = np.zeros((config.batch_size, config.patch, config.patch, 1), np.uint8)
    batch = {"clean": images, "compressed": images[:, None]}
    learn = timing.training(steps, config.patch, {}, batch, 5)
    return [1000 * x / 5 for x in timing.seconds(learn, repetitions)], _peak()


def _whole(side: int) -> tuple[list[float], float]:
    """Returns the GiB that the compiler plans for the paper's network on an image."""
    model = _model("paper")
    variables = shapes(model, 48)
    image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
    stats = jax.jit(model.apply).lower(variables, image).compile().memory_analysis()
    planned = stats.argument_size_in_bytes + stats.output_size_in_bytes
    return [], (planned + stats.temp_size_in_bytes) / 2**30


def _whole_run(side: int) -> tuple[list[float], float]:
    """Returns the seconds and the peak GiB of the paper's network on an image."""
    model = _model("paper")
    variables = {"params": state.init(model, 48, 0)["params"]}
    image = np.zeros((1, side, side, 1), np.float32)
    compiled = jax.jit(model.apply).lower(variables, image).compile()
    call = functools.partial(compiled, variables, image)
    return timing.seconds(lambda: jax.block_until_ready(call()), 1), _peak()


def _model(preset: str) -> nn.Module:
    config = deblock.get_config(f"{preset},ablation=cqr")
    return stages.deblock_steps(config, None).model


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # from KiB


def _alone(function, *arguments):
    """Calls the function in a separate process."""
    print(f"{function.__name__[1:]} {arguments}", file=sys.stderr)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--run_whole",
        type=int,
        default=0,
        help="also run the paper's network on an image of this side (512: minutes)",
    )
    args = parser.parse_args()
    with one_line_errors():
        print(f"# How the cost grows\n\n    {machine.command()}")
        print(
            f"\n{machine.describe()}. Median and range of "
            f"{args.repetitions} repetitions.\n"
        )
        print("## Whole images through the paper's network\n")
        print("| side | GiB planned | GiB per Mpixel |\n|---|---|---|")
        for side in WHOLE_SIDES:
            _, planned = _alone(_whole, side)
            print(f"| {side} | {planned:.2f} | {planned / side**2 * 1e6:.2f} |")
        if args.run_whole:
            [seconds], peak = _alone(_whole_run, args.run_whole)
            print(
                f"\nOne run at a side of {args.run_whole} took {seconds:.0f} s and "
                f"at most {peak:.2f} GiB."
            )
        print("\n## A training step of the compact ablation, L_MAE alone\n")
        print("| | ms | range | ms per image | peak GiB |\n|---|---|---|---|---|")
        batch_size = ablation.get_config("compact").batch_size
        for field, values in TRAINING.items():
            for value in values:
                found, peak = _alone(_train, field, value, args.repetitions)
                crops = value if field == "batch_size" else batch_size
                each = np.median(found) / crops
                row = f"{timing.shown(found)} | {each:.3g} | {peak:.2f}"
                print(f"| {field} {value} | {row} |")


if __name__ == "__main__":
    main()
