"""Images per second of the input pipeline alone and of the training step alone.

    python -m benchmarks.training_speed --preset=compact --name=embedded

Prints a Markdown table: median and range over the repetitions, for both stages, and
the pipeline's headroom: how many times as fast as the step it is. The ranker that
guides the deblocker is a fresh one: its weights don't matter for the speed.
"""

import argparse
import itertools
import time
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import machine
from configs import deblock
from cqr_jax import config as config_lib
from cqr_jax import stages, state, weights
from cqr_jax.errors import one_line_errors
from cqr_jax.models.ranker import Ranker


def both_stages(config) -> tuple[stages.Stage, stages.Stage]:
    """Both stages of a config of the deblocker, the second with a fresh ranker."""
    config_lib.check(config)
    ranker = Ranker(**config.ranker.model)
    variables = state.init(ranker, config.patch, 0)
    given = weights.Weights(ranker, variables, {}, {})
    return stages.ranker_stage(config.ranker), stages.deblock_stage(config, given)


def shown(speeds: list[float]) -> str:
    """Median and range as two cells of a table."""
    return f"{np.median(speeds):.0f} | {min(speeds):.0f} to {max(speeds):.0f}"


def pipeline_speeds(stage: stages.Stage, repetitions: int, steps: int) -> list[float]:
    """Images per second of a stage's training batches, `steps` of them at a time."""
    batches = stage.batches(0)
    next(batches)

    def feed():
        for _ in itertools.islice(batches, steps):
            pass

    return _repeat(feed, repetitions, steps * stage.images_per_step)


def _repeat(call: Callable[[], None], repetitions: int, images: int) -> list[float]:
    """Images per second of `call`, which handles `images`, at each repetition."""
    speeds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        speeds.append(images / (time.perf_counter() - start))
    return speeds


def _measure(stage: stages.Stage, config, repetitions: int, steps: int) -> list[str]:
    fed = pipeline_speeds(stage, repetitions, steps)
    batch = next(stage.batches(0))
    held = [state.create(stage.steps.model, config.patch, stage.steps.optimizer, 0)]
    step = jax.jit(stage.steps.train_step, donate_argnums=0)

    def learn():
        for _ in range(steps):
            held[0], metrics = step(held[0], stage.frozen, batch)
        jax.block_until_ready(metrics)

    learn()  # compiles
    learned = _repeat(learn, repetitions, steps * stage.images_per_step)
    headroom = np.median(fed) / np.median(learned)
    return [
        f"| {stage.name}: pipeline | {shown(fed)} | {headroom:.1f} |",
        f"| {stage.name}: step | {shown(learned)} | |",
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
        lines = []
        for stage, of in zip(both_stages(config), (config.ranker, config), strict=True):
            lines += _measure(stage, of, args.repetitions, args.steps)
    print("# Training and its input\n\n    python -m benchmarks.training_speed\n")
    print(f"{args.preset} preset, {jax.devices()[0]}, {machine.describe()}.")
    print(f"Median and range of {args.repetitions} times {args.steps} steps.\n")
    print("| | images/s | range | headroom |\n|---|---|---|---|")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
