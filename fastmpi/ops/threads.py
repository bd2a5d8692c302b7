"""How many threads the ops in C++ use."""

from __future__ import annotations

import os

MOST_BY_DEFAULT = 16  # more wait for memory, and for each other


def thread_count(num_threads: int | None = None) -> int:
    """`num_threads`, else FASTMPI_NUM_THREADS, else the processors this process may run on."""
    if num_threads is None:
        wish = os.environ.get("FASTMPI_NUM_THREADS")
        num_threads = _processors() if wish is None else _positive(wish)
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    return num_threads


def _positive(wish: str) -> int:
    if not wish.strip().isdecimal() or int(wish) < 1:
        raise ValueError(f"FASTMPI_NUM_THREADS must be a positive number, got {wish!r}")
    return int(wish)


def _processors() -> int:
    try:
        available = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        available = os.cpu_count() or 1
    return min(available, MOST_BY_DEFAULT)
