"""The triton backend of `decode_attention`: our own kernels, in `fastmpi.kernels`.

Legend as in `decode_attention` and in the kernels' file, which says what items and parts are.

Bytes of a step and layer, at the least: the keys and values of a segment once for every
block_m / (Hq / Hkv) of its slots (8 slots for 8 query heads a key head), own ones once, and
q and out once; beside them 8 Hq D bytes for each part, written and read, which fit the L2 cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastmpi.ops import backend
from fastmpi.reference.decode_attention import Segment

if TYPE_CHECKING:
    from fastmpi.ops.decode_attention import DecodeShape

MAX_HEAD_DIM = 256
PART_TOKENS = 512  # of an item: counted from its segment's start, whoever reads it


def refusal(shape: DecodeShape) -> str:
    """Why this backend cannot run; empty if it can."""
    if shape.device.type != "cuda" and not backend.kernels_run_on_cpu():
        return f"needs a CUDA device, not {shape.device.type!r}"
    if shape.dtype not in backend.KERNEL_DTYPES:
        return f"takes float32, bfloat16 or float16, not {shape.dtype}"
    if shape.head_dim > MAX_HEAD_DIM:
        return f"takes heads up to {MAX_HEAD_DIM}, not {shape.head_dim}"
    from fastmpi.kernels.decode_attention_tiles import MAX_GROUP

    group = shape.heads // shape.kv_heads
    return "" if group <= MAX_GROUP else f"takes up to {MAX_GROUP} heads a key head, not {group}"


def count_parts(segments: Sequence[Segment]) -> int:
    """Partial results of all slots together."""
    return sum(len(s.slots) * -(-s.length // PART_TOKENS) for s in segments)


class Prepared:
    """Tables on the device, as the kernels read them; they never move."""

    def __init__(self, shape: DecodeShape, max_parts: int) -> None:
        from fastmpi.kernels.decode_attention_tiles import tile

        group = shape.heads // shape.kv_heads
        self.item_slots = tile(shape.head_dim, shape.dtype).block_m // group
        self.num_slots = shape.num_slots
        columns = 2 + 2 * self.item_slots
        self.items, self.num_items, self.first_part = (
            torch.zeros(size, dtype=torch.int32, device=shape.device)
            for size in ((max_parts, columns), (1,), (shape.num_slots + 1,))
        )

    def update(self, segments: Sequence[Segment]) -> None:
        """See `DecodePlan.update`."""
        needed = count_parts(segments)
        if needed > len(self.items):
            raise ValueError(
                f"these segments need max_parts={needed}; the plan has room for {len(self.items)}"
            )
        first_part = self._first_parts(segments)
        items = self._items(segments, first_part[:-1])
        self.items[: len(items)].copy_(torch.from_numpy(items))
        self.num_items.fill_(len(items))
        self.first_part.copy_(torch.tensor(first_part))

    def _first_parts(self, segments: Sequence[Segment]) -> list[int]:
        """(B + 1,) where each slot's parts begin."""
        counts = [0] * self.num_slots
        for segment in segments:
            for slot in segment.slots:
                counts[slot] += -(-segment.length // PART_TOKENS)
        return list(accumulate(counts, initial=0))

    def _items(self, segments: Sequence[Segment], next_part: list[int]) -> np.ndarray:
        """(items, 2 + 2 * item_slots). Items of the same tokens come one after the other."""
        rows = []
        for start, length, slots in segments:
            for begin in range(0, length, PART_TOKENS):
                tokens = min(PART_TOKENS, length - begin)
                for some in _cut(slots, self.item_slots):
                    spare = [-1] * (self.item_slots - len(some))
                    parts = [next_part[slot] for slot in some]
                    rows.append([start + begin, tokens, *some, *spare, *parts, *spare])
                    for slot in some:
                        next_part[slot] += 1
        return np.array(rows, np.int32).reshape(-1, self.items.shape[1])


def _cut(slots: Sequence[int], size: int) -> list[Sequence[int]]:
    return [slots[i : i + size] for i in range(0, len(slots), size)]


def attend(
    q: Tensor,  # (B, Hq, D)
    shared_keys: Tensor,  # (Hkv, T, D)
    shared_values: Tensor,
    own_keys: Tensor,  # (Hkv, B, C, D)
    own_values: Tensor,
    own_lengths: Tensor,  # (B,) int32
    prepared: Prepared,
    scale: float,
) -> Tensor:
    """(B, Hq, D) in q's dtype."""
    tables = (prepared.items, prepared.num_items, prepared.first_part)
    tensors = (q, shared_keys, shared_values, own_keys, own_values, own_lengths)
    return _decode_attention(*tensors, *tables, scale)


@torch.library.custom_op("fastmpi::decode_attention", mutates_args=())
def _decode_attention(
    q: Tensor,
    shared_keys: Tensor,
    shared_values: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    own_lengths: Tensor,
    items: Tensor,
    num_items: Tensor,
    first_part: Tensor,
    scale: float,
) -> Tensor:
    """(B, Hq, D) in q's dtype."""
    from fastmpi.kernels.decode_attention import decode_attention

    tensors = (q, shared_keys, shared_values, own_keys, own_values, own_lengths)
    with torch.cuda.device_of(q):  # kernels are launched on the current device
        return decode_attention(*tensors, items, num_items, first_part, scale)


@_decode_attention.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape)
