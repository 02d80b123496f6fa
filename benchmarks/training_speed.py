"""Measures images per second of the input pipeline and of the training step.

    python -m benchmarks.training_speed --preset=compact --name=embedded
    python -m benchmarks.training_speed --preset=colour --name=colour-photographs

Each is measured alone. Prints a Markdown table with the median and the range over the
repetitions, for both stages, and the headroom of the pipeline. The headroom is the
ratio of the pipeline's speed to the step's speed. The ranker that guides the deblocker
is newly initialised, because its weights do not affect the speed. If the ranker guides
only the last steps, the speed is that of a guided step. The other steps are faster. A
preset without a ranker has one stage.
"""

import argparse
import concurrent.futures
import itertools
import multiprocessing
import os
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import machine, timing
from configs import deblock
from cqr_jax import losses, models, tasks, weights
from cqr_jax.errors import one_line_errors
from cqr_jax.main import EIGEN_CONVOLUTIONS, set_up_xla
from cqr_jax.training import stages, state

# Name -> number of devices that share the cores, and XLA's flags.
ARRANGEMENTS = {
    "1 device, YNNPACK": (1, ""),
    "1 device, Eigen": (1, EIGEN_CONVOLUTIONS),
    "2 devices, YNNPACK": (2, ""),
    "2 devices, Eigen": (2, EIGEN_CONVOLUTIONS),
}


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


def step_speeds(stage: stages.Stage, config, repetitions: int, steps: int):
    """Returns images per second of a stage's step, for `steps` steps at a time."""
    batch = next(stage.batches(0))
    learn = timing.training(
        stage.steps, config.patch, stage.ranker_variables, batch, steps
    )
    images = steps * stage.images_per_step
    return [images / spent for spent in timing.seconds(learn, repetitions)]


def _measure(stage: stages.Stage, config, repetitions: int, steps: int) -> list[str]:
    fed = pipeline_speeds(stage, repetitions, steps)
    learned = step_speeds(stage, config, repetitions, steps)
    headroom = np.median(fed) / np.median(learned)
    return [
        f"| {stage.name}: pipeline | {timing.shown(fed, '.0f')} | {headroom:.1f} |",
        f"| {stage.name}: step | {timing.shown(learned, '.0f')} | |",
    ]


def _configured(args: argparse.Namespace) -> ConfigDict:
    config = deblock.get_config(args.preset)
    config.data.update({"name": args.name, "data_dir": args.data_dir})
    return config


def _steps_alone(args: argparse.Namespace) -> dict[str, list[float]]:
    """In a worker: returns images per second of the step, by the name of the stage."""
    return {
        stage.name: step_speeds(stage, of, args.repetitions, args.steps)
        for stage, of in all_stages(_configured(args))
    }


def _arranged(args: argparse.Namespace) -> Iterator[str]:
    """Yields a row for each stage and arrangement."""
    spawn = multiprocessing.get_context("spawn")
    for name, (devices, flags) in ARRANGEMENTS.items():
        # JAX reads these when the worker imports it.
        os.environ.update(JAX_NUM_CPU_DEVICES=str(devices), XLA_FLAGS=flags)
        with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
            for stage, speeds in pool.submit(_steps_alone, args).result().items():
                yield f"| {stage} | {name} | {timing.shown(speeds, '.1f')} |"


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
    parser.add_argument(
        "--arrangements",
        action="store_true",
        help="compare steps with one and two devices and with both convolutions of XLA",
    )
    args = parser.parse_args()
    with one_line_errors():
        if args.arrangements:
            head = "| | arrangement | images per second | range |\n|---|---|---|---|"
            lines = list(_arranged(args))
        else:
            head = "| | images per second | range | headroom |\n|---|---|---|---|"
            lines = []
            set_up_xla("deblock")  # as training does
            for stage, of in all_stages(_configured(args)):
                lines += _measure(stage, of, args.repetitions, args.steps)
    print(f"# Training and its input\n\n    {machine.command()}\n")
    print(f"{args.preset} preset, {jax.devices()[0]}, {machine.describe()}.")
    print(f"Median and range of {args.repetitions} times {args.steps} steps.\n")
    print(head)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
