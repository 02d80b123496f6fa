"""Measures images per second of the input pipeline and of the training step.

    python -m benchmarks.training_speed --preset=compact --name=embedded
    python -m benchmarks.training_speed --preset=colour --name=colour-photographs

Each is measured alone. Prints a Markdown table with the median and the range over the
repetitions, for both stages, and the headroom of the pipeline. The headroom is the
ratio of the pipeline's speed to the step's speed. The ranker that guides the deblocker
is newly initialised, because its weights do not affect the speed. A preset without a
ranker has one stage.
"""

import argparse
import itertools

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import machine, timing
from configs import deblock
from cqr_jax import losses, models, tasks, weights
from cqr_jax.errors import one_line_errors
from cqr_jax.training import stages, state


def all_stages(config) -> list[tuple[stages.Stage, ConfigDict]]:
    """Returns the stages of a deblocker's config, each with its own config.

    The ranker of the second stage is newly initialised.
    """
    tasks.check(config)
    if not losses.needs_ranker(config.loss):
        return [(stages.deblock_stage(config, None), config)]
    ranker = models.create(config.ranker.model, "ranker")
    variables = state.init(ranker, config.patch, 0)
    given = weights.Weights(ranker, variables, {}, {})
    return [
        (stages.ranker_stage(config.ranker), config.ranker),
        (stages.deblock_stage(config, given), config),
    ]


def pipeline_speeds(stage: stages.Stage, repetitions: int, steps: int) -> list[float]:
    """Returns images per second of a stage's input, for `steps` batches at a time."""
    batches = stage.batches(0)
    next(batches)

    def feed():
        for _ in itertools.islice(batches, steps):
            pass

    images = steps * stage.images_per_step
    return [images / spent for spent in timing.seconds(feed, repetitions)]


def _measure(stage: stages.Stage, config, repetitions: int, steps: int) -> list[str]:
    fed = pipeline_speeds(stage, repetitions, steps)
    batch = next(stage.batches(0))
    learn = timing.training(
        stage.steps, config.patch, stage.ranker_variables, batch, steps
    )
    images = steps * stage.images_per_step
    learned = [images / spent for spent in timing.seconds(learn, repetitions)]
    headroom = np.median(fed) / np.median(learned)
    return [
        f"| {stage.name}: pipeline | {timing.shown(fed, '.0f')} | {headroom:.1f} |",
        f"| {stage.name}: step | {timing.shown(learned, '.0f')} | |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="compact", choices=deblock.PRESETS)
    parser.add_argument("--name", default="embedded", help="name of the records")
    parser.add_argument("--data_dir", default="data", help="root of the records")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps of a repetition")
    args = parser.parse_args()
    with one_line_errors():
        config = deblock.get_config(args.preset)
        config.data.update({"name": args.name, "data_dir": args.data_dir})
        lines = []
        for stage, of in all_stages(config):
            lines += _measure(stage, of, args.repetitions, args.steps)
    print("# Speed of training and of its input\n")
    print("    python -m benchmarks.training_speed\n")
    print(f"{args.preset} preset, {jax.devices()[0]}, {machine.describe()}.")
    print(f"Median and range of {args.repetitions} repetitions of {args.steps} steps.")
    print("The headroom is the speed of the pipeline divided by that of the step.\n")
    print("| | images/s | range | headroom |\n|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
