"""Images per second of the input pipeline alone and of the training step alone.

    python -m benchmarks.training_speed --preset=compact --name=embedded

Prints a Markdown table: median and range over the repetitions, for both stages. The
ranker that guides the deblocker is a fresh one: its weights don't matter for the speed.
"""

import argparse
import itertools
import os
import time
from collections.abc import Callable

import jax
import numpy as np

from configs import deblock
from cqr_jax import config as config_lib
from cqr_jax import stages, state, weights
from cqr_jax.errors import one_line_errors
from cqr_jax.models.ranker import Ranker


def _repeat(call: Callable[[], None], repetitions: int, images: int) -> str:
    """Median, least and most images per second of `call`, which handles `images`."""
    speeds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        speeds.append(images / (time.perf_counter() - start))
    return f"{np.median(speeds):.0f} | {min(speeds):.0f} to {max(speeds):.0f}"


def _measure(stage: stages.Stage, config, repetitions: int, steps: int) -> list[str]:
    batches = stage.batches(0)
    batch = next(batches)
    images = steps * stage.images_per_step

    def feed():
        for _ in itertools.islice(batches, steps):
            pass

    held = [state.create(stage.steps.model, config.patch, stage.steps.optimizer, 0)]
    step = jax.jit(stage.steps.train_step, donate_argnums=0)

    def learn():
        for _ in range(steps):
            held[0], metrics = step(held[0], stage.frozen, batch)
        jax.block_until_ready(metrics)

    learn()  # compiles
    return [
        f"| {stage.name}: pipeline | {_repeat(feed, repetitions, images)} |",
        f"| {stage.name}: step | {_repeat(learn, repetitions, images)} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="compact", choices=deblock.PRESETS)
    parser.add_argument("--name", default="embedded", help="of the data set")
    parser.add_argument("--data_dir", default="data", help="root of the records")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="in a repetition")
    args = parser.parse_args()
    with one_line_errors():
        config = deblock.get_config(args.preset)
        config.data.update({"name": args.name, "data_dir": args.data_dir})
        config_lib.check(config)
        stage = stages.ranker_stage(config.ranker)
        lines = _measure(stage, config.ranker, args.repetitions, args.steps)
        ranker = Ranker(**config.ranker.model)
        variables = state.init(ranker, config.patch, 0)
        given = weights.Weights(ranker, variables, {}, {})
        stage = stages.deblock_stage(config, given)
        lines += _measure(stage, config, args.repetitions, args.steps)
    print(f"{args.preset} preset, {os.cpu_count()} CPU cores, {jax.devices()[0]}\n")
    print("| | images/s | range |\n|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
