"""Launches of decode attention for the compile gate: shipped dtypes and head sizes."""

from __future__ import annotations

from functools import partial

import torch

from fastmpi.ops.decode_attention import DecodePlan, DecodeShape, Segment, decode_attention

SLOTS, POOL, CAPACITY = 4, 1024, 256


def _decode(head_dim: int, dtype: torch.dtype) -> None:
    q = torch.randn(SLOTS, 4, head_dim, dtype=dtype)
    pool = torch.randn(2, POOL + SLOTS * CAPACITY, head_dim, dtype=dtype)
    own = pool[:, POOL:].view(2, SLOTS, CAPACITY, head_dim)
    plan = DecodePlan(
        DecodeShape(SLOTS, 4, 2, head_dim, dtype, q.device), backend="triton", max_parts=16
    )
    plan.update([Segment(0, 600, range(SLOTS)), Segment(600, 100, [1])])
    lengths = torch.arange(SLOTS, dtype=torch.int32) * 64
    decode_attention(q, pool[:, :POOL], pool[:, :POOL], own, own, lengths, plan)


CASES = {
    f"decode_attention D={head_dim} {str(dtype).removeprefix('torch.')}": partial(
        _decode, head_dim, dtype
    )
    for dtype in (torch.bfloat16, torch.float16)
    for head_dim in (64, 80, 128, 256)
}
