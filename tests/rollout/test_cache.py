"""The decoding cache against plain attention over each response's whole path."""

from __future__ import annotations

import pytest
import torch

from fastmpi.models.attention import AttentionPattern
from fastmpi.rollout.cache import DecodeCache, PromptRecorder, SharedShelf, Shelf, shelves

LENGTHS = [3, 4, 9, 10, 30]
OWNERS = [[0, 0, 0, 1], [0, 0, 1, 1], [0]]  # of the shelves (3, 4), (9, 10) and (30)
# Trunks above them, level by level: their lengths, and the responses below each.
TRUNKS = [([7, 9], [[0, 1, 2, 5], [4, 8]]), ([3], [[0, 5]])]
HEADS, KV_HEADS, DIM, SCALE = 6, 2, 4, 0.7


@pytest.mark.parametrize(
    ("lengths", "ranges"),
    [
        (LENGTHS, [(0, 2), (2, 4), (4, 5)]),
        ([10, 15], [(0, 2)]),
        ([10, 16], [(0, 1), (1, 2)]),
        ([5], [(0, 1)]),
        ([], []),
    ],
)
def test_shelves_hold_prompts_of_similar_length(lengths, ranges):
    assert list(shelves(lengths)) == ranges


class _Attention(AttentionPattern):
    def attend(self, layer_idx, q, k, v, scale):
        return q.transpose(1, 2)


class _Responses:
    """Keys and values of every response's path, kept whole beside the cache under test."""

    def __init__(self, dtype: torch.dtype = torch.float64, trunks: list = []) -> None:  # noqa: B006
        self.generator = torch.Generator().manual_seed(0)
        self.dtype = dtype
        starts = torch.tensor([0, *LENGTHS]).cumsum(0)
        key, value = (self.random(1, KV_HEADS, sum(LENGTHS), DIM) for _ in "kv")
        self.shelves, self.paths = [], []
        for (start, stop), owner in zip(shelves(LENGTHS), OWNERS, strict=True):
            lengths = torch.tensor(LENGTHS[start:stop])
            within = torch.arange(int(lengths.max())).minimum(lengths[:, None] - 1)
            rows = starts[start:stop, None] + within
            self.shelves.append(Shelf(rows, lengths, torch.tensor(owner)))
            spans = [(starts[start + p], starts[start + p + 1]) for p in owner]
            self.paths += [[key[0, :, a:b], value[0, :, a:b]] for a, b in spans]
        query = self.random(1, HEADS, sum(LENGTHS), DIM)
        PromptRecorder(_Attention(), self.shelves).attend(0, query, key, value, SCALE)
        self.cache = DecodeCache(self.shelves, [self.shared(*level) for level in trunks])

    def shared(self, lengths: list[int], below: list[list[int]]) -> SharedShelf:
        """One level of trunks, which its responses' paths get too."""
        starts = torch.tensor([0, *lengths]).cumsum(0)
        key, value = (self.random(1, KV_HEADS, sum(lengths), DIM) for _ in "kv")
        within = torch.arange(max(lengths)).minimum(torch.tensor(lengths)[:, None] - 1)
        owner = [trunk for trunk, rows in enumerate(below) for _ in rows]
        shelf = Shelf(starts[:-1, None] + within, torch.tensor(lengths), torch.tensor(owner))
        PromptRecorder(_Attention(), [shelf]).attend(0, key, key, value, SCALE)
        rows = [row for of_trunk in below for row in of_trunk]
        for trunk, row in zip(owner, rows, strict=True):
            span = slice(starts[trunk], starts[trunk + 1])
            path = self.paths[row]
            path[0] = torch.cat([key[0, :, span], path[0]], 1)
            path[1] = torch.cat([value[0, :, span], path[1]], 1)
        return SharedShelf(shelf, torch.tensor(rows))

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=self.dtype, generator=self.generator)

    def step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One token more for everyone: what the cache says, and plain attention."""
        rows = len(self.paths)
        q = self.random(rows, HEADS, 1, DIM)
        k, v = (self.random(rows, KV_HEADS, 1, DIM) for _ in "kv")
        got = self.cache.attend(0, q, k, v, SCALE)
        self.cache.advance()
        for path, new_key, new_value in zip(self.paths, k, v, strict=True):
            path[0], path[1] = torch.cat([path[0], new_key], 1), torch.cat([path[1], new_value], 1)
        wanted = [self.attention(query, *path) for query, path in zip(q, self.paths, strict=True)]
        return got, torch.stack(wanted)

    def attention(self, q, k, v):
        k, v = (x.repeat_interleave(HEADS // KV_HEADS, 0) for x in (k, v))
        return ((q @ k.mT * SCALE).softmax(-1) @ v).transpose(0, 1)

    def keep(self, rows: list[int]) -> None:
        self.cache.keep(torch.tensor(rows))
        self.paths = [self.paths[row] for row in rows]


@pytest.mark.parametrize("trunks", [[], TRUNKS])
def test_steps_equal_plain_attention(trunks):
    responses = _Responses(trunks=trunks)
    for _ in range(70):  # beyond the first buffers, twice
        torch.testing.assert_close(*responses.step(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("trunks", [[], TRUNKS])
def test_steps_equal_plain_attention_as_responses_finish(trunks):
    responses = _Responses(trunks=trunks)
    for left in ([0, 1, 3, 4, 5, 6, 7, 8], [0, 2, 3, 4, 5, 6, 7], [1, 4, 6], [0, 2], [1]):
        torch.testing.assert_close(*responses.step(), rtol=0, atol=1e-13)
        responses.keep(left)
        torch.testing.assert_close(*responses.step(), rtol=0, atol=1e-13)
    assert len(responses.paths) == 1


@pytest.mark.parametrize("trunks", [[], TRUNKS])
def test_low_precision_keeps_its_dtype(trunks):
    responses = _Responses(torch.bfloat16, trunks)
    got, wanted = responses.step()
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, wanted, rtol=0.05, atol=0.05)
