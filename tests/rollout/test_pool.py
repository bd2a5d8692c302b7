"""The pool's size in bytes, and which part of it is free."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmpi.models.sizes import TextShape
from fastmpi.rollout.pool import KeyValuePool, Room, token_bytes

TEXT = TextShape(layers=3, hidden=16, query=16, key=8, heads=4, wide=32, vocabulary=10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_bytes(dtype):
    pool = KeyValuePool(TEXT, 5, dtype, torch.device("cpu"))
    assert pool.storage.shape == (3, 2, 2, 5, 4) and not pool.storage.any()
    assert pool.nbytes == 5 * token_bytes(TEXT, dtype) == 5 * 2 * 3 * 8 * dtype.itemsize


@pytest.mark.parametrize("tokens", [10**13, 10**30])  # more than there is, than a number can say
def test_what_there_is_no_memory_for_names_the_settings(tokens):
    with pytest.raises(torch.OutOfMemoryError, match="GiB, .*: lower rollout_memory_gib or max_c"):
        KeyValuePool(TEXT, tokens, torch.float32, torch.device("cpu"))


def test_room_takes_the_first_gap_that_is_long_enough():
    room = Room(10)
    assert [room.take(size) for size in (4, 3, 3, 1)] == [0, 4, 7, None]
    room.give(4, 3)
    assert (room.take(4), room.take(2), room.free) == (None, 4, 1)
    room.give(7, 3)  # beside what is left of the gap
    assert (room.take(4), room.free) == (6, 0)


def test_gaps_join_again():
    rng = np.random.default_rng(0)
    room, taken = Room(64), {}
    for _ in range(300):
        start = room.take(int(rng.integers(1, 20)))
        if start is None:
            start, size = taken.popitem()
            room.give(start, size)
            continue
        size = 64 - room.free - sum(taken.values())
        assert all(start + size <= a or a + n <= start for a, n in taken.items())
        taken[start] = size
    for start, size in taken.items():
        room.give(start, size)
    assert room.take(64) == 0


def test_no_room():
    assert Room(0).take(1) is None
