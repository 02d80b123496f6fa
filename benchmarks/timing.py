"""Functions to measure times and to format them."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cqr_jax.training import runner, stages, state


def seconds(call: Callable[[], Any], repetitions: int) -> list[float]:
    """Returns the duration of each call in seconds."""
    found = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


def shown(values: list[float], form: str = "") -> str:
    """Returns median and range as two table cells, by `form` or with three digits."""
    median, low, high = (
        f"{x:{form}}" if form else three_digits(x)
        for x in (np.median(values), min(values), max(values))
    )
    return f"{median} | {low} to {high}"


def three_digits(value: float) -> str:
    """Returns the number with three digits and without an exponent."""
    return f"{float(f'{value:.3g}'):g}"


def training(
    steps: stages.Steps, patch: int, ranker_variables: Any, batch: dict, count: int
) -> Callable[[], None]:
    """Returns a compiled function that runs `count` training steps on one batch."""
    run = runner.JitRunner()
    held = [run.replicate(state.create(steps.model, patch, steps.optimizer, 0))]
    ranker_variables, batch = run.replicate(ranker_variables), run.shard_batch(batch)
    step = run.compile_train_step(steps.train_step)

    def learn():
        for _ in range(count):
            held[0], metrics = step(held[0], ranker_variables, batch)
        jax.block_until_ready(metrics)

    learn()
    return learn
