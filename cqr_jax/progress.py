"""Shows the progress of a loop and the remaining time on standard error.

A terminal gets a progress bar. Otherwise a line is printed from time to time.
"""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def over(items: Iterable[T], total: int, what: str, unit: str) -> Iterable[T]:
    """Iterates over `items` and shows how many of `total` are done.

    The work must be done by the iterator `items`, not by the body of the loop. Items
    are then counted when they are done, and the progress line is ended before an error
    is printed.
    """
    if sys.stderr is None:  # it is closed
        return items
    interval = 0.2 if sys.stderr.isatty() else 10
    return tqdm(items, what, total, unit=unit, mininterval=interval)
