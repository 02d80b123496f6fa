"""Handlers of the signals that ask a process to stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


@contextlib.contextmanager
def handled(
    handler: Callable[[int, FrameType | None], Any],
) -> Iterator[dict[int, Any]]:
    """Handles SIGINT and SIGTERM by a function within a `with` block.

    Args:
      handler: function of the signal's number and the current stack frame.

    Yields:
      Number of the signal -> its former handler, which is restored after the block.

    Raises:
      ValueError: if this is not the main thread.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    former = {int(number): signal.signal(number, handler) for number in numbers}
    try:
        yield former
    finally:
        for number, before in former.items():
            signal.signal(number, before)
