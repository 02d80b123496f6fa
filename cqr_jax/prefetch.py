"""Prefetching: computes items ahead in a pool while earlier ones are used."""

import collections
import concurrent.futures
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")
Pool = TypeVar("Pool", bound=concurrent.futures.Executor)


def prefetch(
    pool: concurrent.futures.Executor,
    function: Callable[[A], B],
    items: Iterable[A],
    depth: int,
) -> Iterator[B]:
    """Yields `function` of each item, in order, computed up to `depth` items ahead."""
    futures: collections.deque = collections.deque()
    for item in items:
        futures.append(pool.submit(function, item))
        if len(futures) > depth or futures[0].done():
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


@contextlib.contextmanager
def cancelling(pool: Pool) -> Iterator[Pool]:
    """Shuts `pool` down at the end of the context, without starting what waits."""
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
