"""Attention of decoding steps over a pool: each response sees its prompt and its own tokens.

Legend: B rows of the batch, S slots, C own tokens a slot has room for; Hq and Hkv query and key
heads, D head dimension. The pool begins with the S * C own tokens of the slots; segments follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastmpi.ops.decode_attention import (
    PART_TOKENS,
    DecodePlan,
    DecodeShape,
    decode_attention,
    default_backend,
)
from fastmpi.ops.decode_attention import Segment as Part
from fastmpi.rollout.pool import KeyValuePool
from fastmpi.rollout.segments import Request, Segment


class DecodeCache:
    """The pattern of decoding steps.

    heads: Hq. num_slots, capacity: S and C. max_parts: most partial results that one response's
    attention to its prompt has (`count_parts`).
    """

    def __init__(
        self, pool: KeyValuePool, heads: int, num_slots: int, capacity: int, max_parts: int
    ) -> None:
        self.pool, self._heads, self._capacity = pool, heads, capacity
        self._base, self._max_parts = num_slots * capacity, max_parts
        own = pool.storage[:, :, :, : self._base]
        self._own = own.unflatten(3, (num_slots, capacity))  # (layers, 2, Hkv, S, C, D)
        self._rows = torch.arange(num_slots, device=pool.storage.device)
        self._plans: dict[int, DecodePlan] = {}
        self._places = self._lengths = self._rows

    @property
    def waits_for_nothing(self) -> bool:
        """Whether attention runs as kernels; plain torch asks the device for lengths."""
        return default_backend(self._shape(1)) == "triton"

    def _shape(self, num_rows: int) -> DecodeShape:
        storage, pool = self.pool.storage, self.pool
        return DecodeShape(
            num_rows, self._heads, pool.heads, pool.dim, storage.dtype, storage.device
        )

    def write(self, layer: int, segment: Segment, keys: Tensor, values: Tensor) -> None:
        """Keep a segment's (Hkv, length, D), with zeros behind: padding is multiplied by 0."""
        start = self._start(segment)
        held = self.pool.storage[layer, :, :, start : start + segment.room]
        held[0, :, : segment.length] = keys
        held[1, :, : segment.length] = values
        held[:, :, segment.length :] = 0

    def read(self, layer: int, segment: Segment) -> tuple[Tensor, Tensor]:
        """A segment's keys and values, (Hkv, length, D)."""
        start = self._start(segment)
        keys, values = self.pool.storage[layer, :, :, start : start + segment.length]
        return keys, values

    def _start(self, segment: Segment) -> int:
        assert segment.start is not None, "held segments have a place"
        return self._base + segment.start

    def seat(self, rows_of: Mapping[Segment, Sequence[int]], num_rows: int) -> None:
        """From now on the batch is slots 0 to num_rows; `rows_of` says which see each segment."""
        # neighbours of equal room are one product on the CPU
        seen = sorted(rows_of, key=lambda s: (s.depth, s.room, s.start))
        parts = [Part(self._start(s), s.length, tuple(rows_of[s])) for s in seen]
        if num_rows not in self._plans:
            max_parts = num_rows * self._max_parts
            self._plans[num_rows] = DecodePlan(self._shape(num_rows), max_parts=max_parts)
        self._plans[num_rows].update(parts)

    def begin(self, places: Tensor) -> None:
        """A step begins. places: (B,) own tokens of each row before it, below C."""
        self._places, self._lengths = places, (places + 1).int()

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q (B, Hq, 1, D), k and v (B, Hkv, 1, D) of the newest token -> (B, 1, Hq, D)."""
        count = len(q)
        own_keys, own_values = self._own[layer_idx, :, :, :count]
        for held, new in ((own_keys, k), (own_values, v)):
            held[:, self._rows[:count], self._places] = new[:, :, 0].transpose(0, 1)
        keys, values = self.pool.storage[layer_idx]
        plan, lengths = self._plans[count], self._lengths
        own = (own_keys, own_values, lengths, plan)
        return decode_attention(q[:, :, 0], keys, values, *own, scale=scale)[:, None]

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """The first `length` own tokens of slots `sources` go to the slots `targets`."""
        for layer in self._own:
            layer[:, :, list(targets), :length] = layer[:, :, list(sources), :length]


def count_parts(requests: Sequence[Request]) -> int:
    """Partial results of attention to the prompt that has the most, or a few more: a power of two,
    so that it seldom changes."""
    most = max(
        sum(-(-segment.length // PART_TOKENS) for segment in request.segments)
        for request in requests
    )
    return 1 << (most - 1).bit_length()
