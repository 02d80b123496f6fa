"""Worker processes. The tasks of a worker that was killed raise an error.

This module imports neither TensorFlow nor JAX, because it runs in worker processes.
"""

import concurrent.futures
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any


class Workers(concurrent.futures.Executor):
    """An executor of several pools with one worker process each.

    A `ProcessPoolExecutor` with several workers begins to watch the first one before it
    starts the others. If a worker is killed meanwhile, the executor can wait forever
    for one that started after the others were terminated. This cannot happen with one
    worker, which is started before the executor watches it.
    """

    def __init__(self, processes: int):
        """Prepares `processes` workers. Each starts with its first task."""
        context = multiprocessing.get_context("spawn")
        self._pools = [
            concurrent.futures.ProcessPoolExecutor(1, context, _start_worker)
            for _ in range(processes)
        ]
        self._tasks: list[list[concurrent.futures.Future]] = [[] for _ in self._pools]

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future:
        """Submits a task to the worker that has the fewest.

        Raises:
          BrokenProcessPool: if this worker was killed. `result` of a task raises it
            too.
        """
        self._tasks = [[x for x in tasks if not x.done()] for tasks in self._tasks]
        counts = list(map(len, self._tasks))
        worker = counts.index(min(counts))
        future = self._pools[worker].submit(fn, *args, **kwargs)
        self._tasks[worker].append(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the workers; see `concurrent.futures.Executor.shutdown`."""
        if cancel_futures:
            for future in itertools.chain(*self._tasks):
                future.cancel()
        for pool in self._pools:
            pool.shutdown(wait)


def _start_worker() -> None:
    """Prepares a worker process: it leaves Ctrl-C to its parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
