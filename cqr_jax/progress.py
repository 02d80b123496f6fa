"""Progress with the time left: a bar when someone watches, a line now and then else."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def over(items: Iterable[T], total: int, what: str, unit: str) -> Iterable[T]:
    """Iterates over `items`, telling on standard error how many of `total` are done.

    The work must be in drawing the items, not in the loop over them: then they are
    counted when they are done, and the last line is closed before an error's.
    """
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(items, what, total, unit=unit, mininterval=interval)
