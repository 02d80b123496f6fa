"""Compares the speed of this package with the same models and steps in PyTorch.

    python -m benchmarks.side_by_side > benchmarks/results/side_by_side.md
    python -m benchmarks.side_by_side --devices=2
    python -m benchmarks.side_by_side --preset=paper

Prints a report in Markdown. Both frameworks use the same weights and images. Before
the measurements, their outputs and losses are checked to be equal. Each framework runs
in a separate process, on all cores or on --threads of them. The two alternate, so that
other load on the machine affects both. With --devices=N, JAX divides the cores into N
devices, as JAX_NUM_CPU_DEVICES=N does in training. It splits a batch over the largest
number of devices that divides it. JAX runs with the flags of XLA that training sets.
PyTorch runs in both of its memory formats, and the report contains the faster one. A
preset is one of configs/ablation.py, whose networks have the paper's layout.
"""

import argparse
import inspect
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor as Pool
from typing import Any, NamedTuple

import jax
import numpy as np
import torch

from benchmarks import machine, pytorch_models, timing
from configs import ablation, deblock
from cqr_jax.main import set_up_xla
from cqr_jax.models import create
from cqr_jax.restoring import tiles
from cqr_jax.training import distributed, stages, state

_TOLERANCE = 1e-4  # of outputs and losses, relative to their largest magnitude
JAX = ""  # used in place of a layout
# PyTorch's deblocker has the paper's layout.
_PRESETS = [x for x in deblock.PRESETS if x != "colour"]
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


class Case(NamedTuple):
    """A model or a training step that is timed.

    Attributes:
      name: name in the table.
      model: 'ranker' or 'deblocker'.
      train: True for a training step, False for inference.
      shape: (images, height, width); for pairs, the images of both branches.
      guided: use the paper's losses in the deblocker's step, instead of L1 alone.
    """

    name: str
    model: str
    train: bool
    shape: tuple[int, int, int]
    guided: bool = False


Work = Callable[[], Any]  # returns restored images, scores or a loss


def _cases(preset: str) -> list[Case]:
    c = ablation.get_config(preset)
    side = c.patch
    crops = c.batch_size * (c.qualities_per_crop or len(c.qualities))
    pairs = 2 * c.ranker.batch_size
    if preset == "paper":  # sizes that a CPU processes in reasonable time
        return [
            Case("deblocker: inference", "deblocker", False, (1, side, side)),
            Case("deblocker: step, L1", "deblocker", True, (1, side, side)),
            Case("deblocker: step, guided", "deblocker", True, (1, side, side), True),
            Case("ranker: inference", "ranker", False, (1, side, side)),
            Case("ranker: step", "ranker", True, (2, side, side)),
        ]
    evaluated = (len(c.evaluation.qualities), 321, 481)  # an image of LIVE1 or BSDS500
    return [
        Case("deblocker: inference", "deblocker", False, (1, 256, 256)),
        Case("deblocker: inference", "deblocker", False, (1, 512, 512)),
        Case("deblocker: inference", "deblocker", False, evaluated),
        Case("deblocker: inference", "deblocker", False, (6, tiles.SIDE, tiles.SIDE)),
        Case("deblocker: step, L1", "deblocker", True, (crops, side, side)),
        Case("deblocker: step, guided", "deblocker", True, (crops, side, side), True),
        Case("ranker: inference", "ranker", False, (1, 256, 256)),
        Case("ranker: inference", "ranker", False, (pairs, side, side)),
        Case("ranker: step", "ranker", True, (pairs, side, side)),
    ]


def _images(case: Case, seed: int) -> np.ndarray:
    """Returns random uint8 images of shape (images, height, width, 1)."""
    return np.random.default_rng(seed).integers(0, 256, (*case.shape, 1), np.uint8)


def _labels(case: Case) -> dict[str, np.ndarray]:
    count = case.shape[0] // 2
    return {"label_i": np.arange(count) % 2, "label_j": 1 - np.arange(count) % 2}


def _variables(preset: str) -> dict[str, dict]:
    """Returns nonzero Flax variables of both models as NumPy arrays."""
    c = ablation.get_config(preset)
    rng = np.random.default_rng(0)
    models = {
        "ranker": create(c.ranker.model, "ranker"),
        "deblocker": create(c.model, "deblocker"),
    }
    return {
        name: jax.tree.map(
            lambda x: np.float32(x + 0.01 * rng.standard_normal(x.shape)),
            state.init(model, c.patch, 0),
        )
        for name, model in models.items()
    }


def _jax_work(preset: str, case: Case, variables: dict[str, dict]) -> Work:
    c = ablation.get_config(preset)
    c.optimizer.name = c.ranker.optimizer.name = "adam"  # as in PyTorch
    if not case.guided:
        c.loss.update({"alpha": 0.0, "beta": 0.0})
    learner = ranking = stages.ranker_steps(c.ranker)
    if case.model == "deblocker":
        learner = stages.deblock_steps(c, ranking.model)
    everywhere, divided = distributed.shardings(_devices(case))
    own = jax.device_put(variables[case.model], everywhere)
    if not case.train:
        images = jax.device_put(_images(case, 1) / np.float32(255), divided)
        infer = jax.jit(learner.model.apply)
        return lambda: infer(own, images)

    ranker_variables = {}
    if case.model == "ranker":
        image_i, image_j = np.split(_images(case, 1), 2)
        batch = {"image_i": image_i, "image_j": image_j, **_labels(case)}
    else:
        batch = {"compressed": _images(case, 1)[:, None], "clean": _images(case, 2)}
        if case.guided:
            ranker_variables = jax.device_put(variables["ranker"], everywhere)
    train_state = state.create(learner.model, c.patch, learner.optimizer, 0).replace(
        params=own["params"],
        batch_stats=own.get("batch_stats", {}),
        ema_params=jax.tree.map(jax.numpy.copy, own["params"]),
    )
    batch = jax.device_put(batch, divided)
    step = jax.jit(learner.train_step, donate_argnums=0, out_shardings=everywhere)
    held = [jax.device_put(train_state, everywhere)]

    def work():
        held[0], metrics = step(held[0], ranker_variables, batch)
        return metrics["loss"]

    return work


def _module(kind: type[torch.nn.Module], fields: Any) -> torch.nn.Module:
    """Makes a PyTorch model from the fields that it has of a model in Flax."""
    known = inspect.signature(kind).parameters
    return kind(**{k: v for k, v in fields.items() if k in known})


def _devices(case: Case) -> list[jax.Device]:
    """Returns the largest number of devices that divides the case's batch."""
    pairs = case.train and case.model == "ranker"
    return distributed.dividing(case.shape[0] // 2 if pairs else case.shape[0])


def _torch_work(
    preset: str, case: Case, variables: dict[str, dict], layout: str
) -> Work:
    c = ablation.get_config(preset)
    memory_format = LAYOUTS[layout]

    def build(module, name):
        pytorch_models.load(module, variables[name])
        return module.to(memory_format=memory_format)

    def to_float(images):
        return images.float().to(memory_format=memory_format) / 255

    def images(seed):
        return torch.tensor(_images(case, seed)).permute(0, 3, 1, 2).contiguous()

    ranker = build(_module(pytorch_models.Ranker, c.ranker.model), "ranker")
    given = images(1)
    if case.model == "ranker":
        module = ranker
    else:
        module = build(_module(pytorch_models.Deblocker, c.model), "deblocker")
    if not case.train:
        module.eval()
        given = to_float(given)

        @torch.inference_mode()
        def infer():
            return module(given)

        return infer

    fields = c.ranker if case.model == "ranker" else c
    rate = float(state.learning_rate(fields.optimizer, fields.steps)(0))
    trainer = pytorch_models.Trainer(module, fields.ema_decay, lr=rate)
    if case.model == "ranker":
        labels = [torch.tensor(x) for x in _labels(case).values()]

        def loss():
            scores = module(to_float(given))[0].chunk(2)
            return pytorch_models.margin_ranking(*scores, *labels, fields.margin)

    else:
        guide = ranker.eval().requires_grad_(False) if case.guided else None
        clean = images(2)

        def loss():
            restored = module(to_float(given))
            terms = pytorch_models.guided_loss(
                restored, to_float(clean), guide, c.loss.alpha, c.loss.beta
            )
            return terms["loss"]

    def work():
        value = loss()
        trainer.update(value)
        return value

    return work


_works: dict[str, Work] = {}  # layout -> work, in a worker


def _prepare(layout: str, preset: str, case: Case, variables: dict) -> np.ndarray:
    """In a worker: makes the work and calls it twice, to compile everything.

    Returns:
      The first loss, the scores or the restored images (images, height, width).
    """
    if layout:
        _works[layout] = _torch_work(preset, case, variables, layout)
    else:
        _works[layout] = _jax_work(preset, case, variables)
    first = _works[layout]()
    _time(layout, 1)
    first = first[0] if isinstance(first, tuple) else first
    return np.squeeze(np.asarray(first.detach() if layout else first))


def _time(layout: str, calls: int) -> float:
    """In a worker: returns the seconds of `calls` calls."""
    start = time.perf_counter()
    for _ in range(calls):
        result = _works[layout]()
    jax.block_until_ready(result)  # PyTorch's result is ready when the call returns
    return time.perf_counter() - start


def _row(
    case: Case, preset: str, variables: dict, pools: dict[str, Pool], args
) -> tuple[str, ...]:
    """Measures a case. Returns the cells of its row."""
    results = {
        layout: pool.submit(_prepare, layout, preset, case, variables).result()
        for layout, pool in pools.items()
    }
    expected = results[JAX]
    for layout, found in results.items():
        error = np.abs(found - expected).max() / np.abs(expected).max()
        if not error < _TOLERANCE:
            raise AssertionError(f"{case.name} {case.shape}: {layout}: {error} apart")

    def seconds(layout, calls):
        return pools[layout].submit(_time, layout, calls).result()

    name = f"{case.name}, {'x'.join(map(str, case.shape))}"
    return name, *in_turn(seconds, case.shape[0], args)


def in_turn(
    seconds: Callable[[str, int], float], size: float, args: argparse.Namespace
) -> tuple[str, str, str]:
    """Measures JAX, and PyTorch in the faster of its layouts, alternately.

    Args:
      seconds: (`JAX` or a layout, number of calls) -> duration of the calls in seconds.
      size: amount of work in a call, in the unit of the speed times seconds.
      args: `seconds` is the duration of a repetition, and `repetitions` their number.

    Returns:
      Cells of a table: both speeds, and the ratio of JAX's speed to PyTorch's.
    """
    layouts = (JAX, *LAYOUTS)
    calls = {x: max(1, round(args.seconds / seconds(x, 1))) for x in layouts}
    speeds: dict[str, list[float]] = {layout: [] for layout in layouts}
    for _ in range(args.repetitions):
        for layout, count in calls.items():
            speeds[layout].append(count * size / seconds(layout, count))
    best = max(LAYOUTS, key=lambda layout: np.median(speeds[layout]))
    return (
        _spread(speeds[JAX]),
        f"{_spread(speeds[best])}, {best}",
        _spread(np.divide(speeds[JAX], speeds[best])),
    )


def _spread(values) -> str:
    """Returns the median and the range with three digits."""
    three = (np.median(values), min(values), max(values))
    median, low, high = map(timing.three_digits, three)
    return f"{median} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.side_by_side",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default="compact", choices=_PRESETS)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="duration of a repetition"
    )
    parser.add_argument("--threads", type=int, help="cores to use (default: all)")
    parser.add_argument("--devices", type=int, default=1, help="number of JAX devices")
    args = parser.parse_args()
    os.environ["JAX_NUM_CPU_DEVICES"] = str(args.devices)  # read by the workers
    set_up_xla("deblock")
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    os.sched_setaffinity(0, cores)  # before the workers start, because they inherit it
    variables = _variables(args.preset)
    spawn = multiprocessing.get_context("spawn")
    with Pool(1, spawn) as ours, Pool(1, spawn) as theirs:
        pools = {JAX: ours, **dict.fromkeys(LAYOUTS, theirs)}
        rows = []
        for case in _cases(args.preset):
            rows.append(_row(case, args.preset, variables, pools, args))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    print(f"# JAX compared with PyTorch, configs/ablation.py:{args.preset}\n")
    flags = os.environ.get("XLA_FLAGS", "")
    with_what = f"{machine.describe()}; {len(cores)} threads; `{flags}`"
    print(f"`{machine.command()}`\n\n{with_what}\n")
    print(
        f"Images per second: median (range) of {args.repetitions} repetitions, in "
        f"which the two alternate. A repetition lasts about {args.seconds:g} s, or one "
        "call if that is longer. PyTorch runs in the faster of its memory formats "
        "(NHWC is `channels_last`). The ratio is JAX's speed divided by PyTorch's in "
        "each repetition. The first outputs and losses differed by less than "
        f"{_TOLERANCE:g} of their largest magnitude.\n"
    )
    print("| | JAX | PyTorch | ratio |\n|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
