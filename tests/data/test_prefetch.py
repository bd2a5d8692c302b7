"""Items come in order whatever the timing, memory is bounded, and errors reach the taker."""

from __future__ import annotations

import threading
import time

import pytest

from fastmpi.data.prefetch import Prefetcher


def eventually(condition) -> bool:
    """Whether `condition` holds within two seconds."""
    end = time.monotonic() + 2
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


@pytest.fixture
def prefetch():
    """`prefetch(make, ...)`: a Prefetcher that is closed after the test."""
    made = []

    def build(make, **options):
        made.append(Prefetcher(make, **options))
        return made[-1]

    yield build
    for prefetcher in made:
        prefetcher.close()


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_items_come_in_order_from_the_first(prefetch, depth):
    ahead = prefetch(lambda n: n * n, stop=8, depth=depth)
    assert [ahead.take(n) for n in range(4, 8)] == [16, 25, 36, 49]


def test_items_are_made_ahead_but_no_more_than_depth(prefetch):
    made = []
    ahead = prefetch(lambda n: made.append(n) or n, depth=3)
    ahead.take(0)
    assert eventually(lambda: made == [0, 1, 2, 3])
    time.sleep(0.02)
    assert made == [0, 1, 2, 3]


@pytest.mark.parametrize("depth", [0, 2])
def test_another_item_than_the_next_is_made_anew(prefetch, depth):
    made = []
    ahead = prefetch(lambda n: made.append(n) or (n, len(made)), depth=depth)
    first = ahead.take(5)
    assert ahead.take(5) != first and ahead.take(5)[0] == 5
    assert [ahead.take(n)[0] for n in (6, 7, 2, 3)] == [6, 7, 2, 3]


def test_nothing_is_made_ahead_beyond_the_end(prefetch):
    made = []
    ahead = prefetch(lambda n: made.append(n) or n, depth=5, stop=3)
    ahead.take(1)
    assert eventually(lambda: made == [1, 2])
    time.sleep(0.02)
    assert made == [1, 2]


def test_nothing_is_made_without_need_at_depth_0(prefetch):
    made = []
    ahead = prefetch(lambda n: made.append(n) or n, depth=0)
    ahead.take(0)
    time.sleep(0.02)
    assert made == [0]


def test_bytes_bound_what_waits(prefetch):
    made = []
    ahead = prefetch(lambda n: made.append(n) or n, depth=9, max_bytes=100, size=lambda _: 60)
    ahead.take(0)
    assert eventually(lambda: made == [0, 1, 2])
    time.sleep(0.02)
    assert made == [0, 1, 2]  # two wait with 120 bytes: no third is begun


def test_an_item_larger_than_the_bound_still_comes(prefetch):
    ahead = prefetch(lambda n: n, depth=2, max_bytes=1, size=lambda _: 60)
    assert [ahead.take(n) for n in range(3)] == [0, 1, 2]


def test_an_error_comes_where_its_item_is_taken(prefetch):
    def make(n):
        if n == 2:
            raise ValueError("row 'r2': unreadable")
        return n

    ahead = prefetch(make, depth=5)
    assert [ahead.take(0), ahead.take(1)] == [0, 1]
    with pytest.raises(ValueError, match="row 'r2'"):
        ahead.take(2)


def test_close_ends_the_thread_and_a_later_take_starts_anew(prefetch):
    running = set(threading.enumerate())
    ahead = prefetch(lambda n: n, depth=2)
    ahead.take(0)
    started = set(threading.enumerate()) - running
    assert [thread.name for thread in started] == ["fastmpi-prefetch"]
    ahead.close()
    assert not started & set(threading.enumerate())
    assert ahead.take(1) == 1


def test_waiting_is_counted_and_making_ahead_shortens_it(prefetch):
    def slow(n):
        time.sleep(0.05)
        return n

    at_once, ahead = prefetch(slow, depth=0), prefetch(slow, depth=2)
    at_once.take(0)
    at_once.take(1)
    assert at_once.waited_s >= 0.1
    ahead.take(0)
    first = ahead.waited_s
    time.sleep(0.2)
    ahead.take(1)
    assert ahead.waited_s - first < 0.04


def test_ctrl_c_leaves_a_waiting_take(prefetch):
    """A take that waits for a slow item is left by an exception in its thread, and closes."""
    import signal

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    started = threading.Event()

    def slow(n):
        started.set()
        time.sleep(0.5)
        return n

    ahead = prefetch(slow, depth=1)
    main = threading.main_thread().ident

    def interrupt():
        started.wait()
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            ahead.take(0)
    finally:
        signal.signal(signal.SIGINT, before)


def test_bad_depth_is_refused():
    with pytest.raises(ValueError, match="depth must not be negative"):
        Prefetcher(lambda n: n, depth=-1)
