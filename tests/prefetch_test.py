"""Prefetching: the order of results, and what happens after an error."""

import concurrent.futures
import threading

import pytest

from cqr_jax.prefetch import cancelling, prefetch


def test_results_come_in_the_order_of_the_items():
    first_may_end = threading.Event()

    def double(x):
        if x == 0:
            assert first_may_end.wait(60)
        else:
            first_may_end.set()
        return 2 * x

    with cancelling(concurrent.futures.ThreadPoolExecutor(2)) as pool:
        assert list(prefetch(pool, double, range(5), 3)) == [0, 2, 4, 6, 8]


def test_after_an_error_no_waiting_item_is_started():
    started, waiting, failed = [], threading.Event(), threading.Event()

    def items():
        for x in range(5):
            if x == 3:
                waiting.set()
            yield x

    def fail_at_first(x):
        started.append(x)
        if x == 0:
            assert waiting.wait(60)
            raise ValueError("item 0")
        assert failed.wait(60)

    def run():
        with cancelling(concurrent.futures.ThreadPoolExecutor(1)) as pool:
            try:
                list(prefetch(pool, fail_at_first, items(), 3))
            finally:
                threading.Timer(0.2, failed.set).start()

    with pytest.raises(ValueError, match="item 0"):
        run()
    assert started in ([0], [0, 1])
