"""Signals that ask a training run to stop."""

import contextlib
import signal
import time

from cqr_jax import signals


class Interrupts:
    """Records SIGTERM and SIGINT, so that the loop can save a checkpoint and stop.

    A second signal that arrives more than a second later has its usual effect at once.
    (`timeout` sends two signals within a second.)

    Attributes:
      caught: number of the signal; 0 if none arrived.
    """

    def __init__(self) -> None:
        self.caught = 0
        self._handlers = contextlib.ExitStack()

    def __enter__(self) -> "Interrupts":
        self._former = self._handlers.enter_context(signals.handled(self._record))
        return self

    def _record(self, number, frame):
        del frame
        now = time.monotonic()
        if not self.caught:
            self.caught, self._since = int(number), now
        elif now - self._since > 1:
            signal.signal(number, self._former[number])
            signal.raise_signal(number)

    def __exit__(self, *error: object) -> None:
        self._handlers.close()
