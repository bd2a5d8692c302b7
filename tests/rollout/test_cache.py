"""The decoding cache: what is written is read, and a step sees its path and its own tokens."""

from __future__ import annotations

import pytest
import torch

from fastmpi.models.sizes import TextShape
from fastmpi.rollout.cache import DecodeCache, count_parts
from fastmpi.rollout.pool import KeyValuePool
from fastmpi.rollout.segments import Request, Segment

TEXT = TextShape(layers=2, hidden=24, query=24, key=8, heads=6, wide=32, vocabulary=10)
SLOTS, CAPACITY, HEADS, DIM, SCALE = 5, 4, 2, 4, 0.7
LAYER = 1
# A trunk above two prompts, and a prompt alone; the first is padded.
TRUNK, FIRST, SECOND, ALONE = (
    Segment(7, 7, 0, start=5),
    Segment(2, 3, 1, start=12),
    Segment(3, 3, 1, start=15),
    Segment(3, 3, 0, start=0),
)
PATHS = [[TRUNK, FIRST], [TRUNK, FIRST], [TRUNK, SECOND], [TRUNK, SECOND], [ALONE]]


class _Responses:
    """Every response's keys and values, kept whole beside the cache under test."""

    def __init__(self, paths: list[list[Segment]], dtype: torch.dtype = torch.float64) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.dtype, self.paths = dtype, paths
        pool = KeyValuePool(TEXT, SLOTS * CAPACITY + 20, dtype, torch.device("cpu"))
        self.cache = DecodeCache(pool, 6, SLOTS, CAPACITY, 2)
        self.held = {}
        for segment in (TRUNK, FIRST, SECOND, ALONE):
            self.held[segment] = [self.random(HEADS, segment.length, DIM) for _ in "kv"]
            pool.storage[LAYER, :, :, SLOTS * CAPACITY + segment.start :][..., :3, :] = torch.nan
            self.cache.write(LAYER, segment, *self.held[segment])
        self.own = [[self.random(HEADS, 0, DIM) for _ in "kv"] for _ in paths]
        self.seat()

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=self.dtype, generator=self.generator)

    def seat(self) -> None:
        rows: dict[Segment, list[int]] = {}
        for row, path in enumerate(self.paths):
            for segment in path:
                rows.setdefault(segment, []).append(row)
        self.cache.seat(rows, len(self.paths))

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One token more for everyone: what the cache says, and plain attention."""
        rows = len(self.paths)
        q = self.random(rows, 6, 1, DIM)
        k, v = (self.random(rows, HEADS, 1, DIM) for _ in "kv")
        self.cache.begin(torch.tensor([own[0].shape[1] for own in self.own]))
        got = self.cache.attend(LAYER, q, k, v, SCALE)
        wanted = []
        for row, path in enumerate(self.paths):
            new = [torch.cat([x, y[row]], 1) for x, y in zip(self.own[row], (k, v), strict=True)]
            self.own[row] = new
            whole = [torch.cat([*(self.held[s][i] for s in path), new[i]], 1) for i in (0, 1)]
            keys, values = (x.repeat_interleave(3, 0) for x in whole)
            wanted.append(((q[row] @ keys.mT * SCALE).softmax(-1) @ values).transpose(0, 1))
        return got, torch.stack(wanted)

    def restart(self, row: int) -> None:
        self.own[row] = [self.random(HEADS, 0, DIM) for _ in "kv"]


def test_segments_are_read_as_they_were_written():
    responses = _Responses(PATHS)
    for segment, (keys, values) in responses.held.items():
        read = responses.cache.read(LAYER, segment)
        assert torch.equal(read[0], keys) and torch.equal(read[1], values)


def test_steps_equal_plain_attention():
    responses = _Responses(PATHS)
    for step in range(CAPACITY):
        torch.testing.assert_close(*responses.step(), rtol=0, atol=1e-13)
        if step == 1:
            responses.restart(3)  # its slot was given to another
            responses.paths[3] = [ALONE]
            responses.seat()


def test_responses_that_move_keep_their_tokens():
    responses = _Responses(PATHS)
    for _ in range(2):
        responses.step()
    responses.cache.move([3, 4], [2, 0], 2)
    keep = [4, 1, 3]
    responses.own = [responses.own[row] for row in keep]
    responses.paths = [responses.paths[row] for row in keep]
    responses.seat()
    for _ in range(2):
        torch.testing.assert_close(*responses.step(), rtol=0, atol=1e-13)


def test_low_precision_keeps_its_dtype():
    got, wanted = _Responses(PATHS, torch.bfloat16).step()
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("lengths", "parts"), [([1], 1), ([512], 1), ([513, 5], 4), ([512] * 5, 8)]
)
def test_partial_results(lengths, parts):
    segments = tuple(Segment(length, length, 0) for length in lengths)
    short = Request(None, [], (Segment(1, 1, 0),))
    assert count_parts([short, Request(None, [], segments)]) == parts
