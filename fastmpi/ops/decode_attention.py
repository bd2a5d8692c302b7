"""Attention of one new token each of many responses. Twin: `fastmpi.reference.decode_attention`.

Legend: B slots, one running response each or none, T tokens of the shared pool, C tokens that a
slot has room for, Hq query heads, Hkv key and value heads, D head dimension.

What several responses begin with (a policy, a prompt) lies once in the pool, as a *segment*; each
response reads the segments of its path and its own tokens. Which slots read which segments is a
*plan*, updated in place when responses come and go, and used by every layer and every step between.

Unusual: shapes and addresses never change, so that a CUDA graph can hold the op. Own lengths are
numbers on the device that grow by one a step; the plan's tables are of a fixed size.

Heads come first and tokens are neighbours, in the pool and in the slots. A head's tokens of one
segment are then one block of memory: a kernel reads it in a stream, and on the CPU it is an operand
of a matrix product as it lies. Both regions may be views of one tensor, for instance
`pool[:, :T]` and `pool[:, T:].view(Hkv, B, C, D)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastmpi.ops import decode_cpu, decode_triton
from fastmpi.ops.decode_triton import PART_TOKENS
from fastmpi.ops.tensor_checks import check_device, check_shape
from fastmpi.reference.decode_attention import Segment
from fastmpi.reference.decode_attention import decode_attention as reference_decode_attention

__all__ = [
    "BACKENDS",
    "PART_TOKENS",
    "DecodePlan",
    "DecodeShape",
    "Segment",
    "decode_attention",
    "default_backend",
]

_MODULES: dict[str, ModuleType] = {"triton": decode_triton, "cpu": decode_cpu}
BACKENDS = (*_MODULES, "reference")


@dataclass(frozen=True)
class DecodeShape:
    """What never changes while a plan is in use: B, Hq, Hkv, D, the dtype and the device of q."""

    num_slots: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device

    def __post_init__(self) -> None:
        sizes = (self.num_slots, self.heads, self.kv_heads, self.head_dim)
        if min(sizes) < 1 or self.heads % self.kv_heads:
            raise ValueError(f"{self}: sizes are at least 1, heads a multiple of kv_heads")
        if not self.dtype.is_floating_point:
            raise ValueError(f"{self}: needs a float dtype")


class DecodePlan:
    """Which segments each slot reads, as one backend needs it. At first there are none.

    backend: "triton" (CUDA), "cpu", "reference" (any device), or None for the fastest that can take
    the shape. max_parts: room for partial results of "triton", of which each slot has one for every
    `PART_TOKENS` of each of its segments, begun ones too; others need none. `ValueError` for a
    backend that is unknown or cannot run here.
    """

    def __init__(
        self, shape: DecodeShape, *, backend: str | None = None, max_parts: int = 0
    ) -> None:
        self.shape = shape
        self.backend = backend or default_backend(shape)
        if self.backend not in BACKENDS:
            raise ValueError(
                f"unknown decode backend {self.backend!r}; known: {', '.join(BACKENDS)}"
            )
        if self.backend != "reference" and (refusal := _MODULES[self.backend].refusal(shape)):
            raise ValueError(f"backend {self.backend!r} {refusal}")
        self.segments: tuple[Segment, ...] = ()
        self.pool_end = 0
        self.prepared: Any = None
        if self.backend != "reference":
            self.prepared = _MODULES[self.backend].Prepared(shape, max_parts)

    def update(self, segments: Sequence[Segment]) -> None:
        """From now on slots read `segments`; tables keep their addresses.

        A response that left, or one that grew, changes nothing here: update when a slot gets
        another prompt. `ValueError` for a segment without tokens or slots, outside the pool's
        beginning, or with a slot that does not exist or stands twice; and where `max_parts` is too
        small, with what is needed; the plan is then as before.
        """
        for index, segment in enumerate(segments):
            _check_segment(index, segment, self.shape.num_slots)
        if self.prepared is not None:
            self.prepared.update(segments)
        self.segments = tuple(segments)
        self.pool_end = max((s.start + s.length for s in segments), default=0)


def decode_attention(
    q: Tensor,  # (B, Hq, D)
    shared_keys: Tensor,  # (Hkv, T, D)
    shared_values: Tensor,  # (Hkv, T, D)
    own_keys: Tensor,  # (Hkv, B, C, D)
    own_values: Tensor,  # (Hkv, B, C, D)
    own_lengths: Tensor,  # (B,) int32
    plan: DecodePlan,
    *,
    scale: float | None = None,
) -> Tensor:
    """`softmax(scale * q @ keys.T) @ values` for each slot and head -> (B, Hq, D) in q's dtype.

    A slot's keys are those of its segments and its own first `own_lengths[slot]`, the newest
    token's included; without any its output is 0. Query head h reads key and value head
    `h // (Hq // Hkv)`. `scale` is `D ** -0.5` unless given. Strides are free but for the last
    dimension, which is contiguous.

    Own lengths are not checked, since nothing here waits for a GPU. "cpu" takes memory past a
    length into its products with weight 0: numbers there must be finite, so allocate with zeros.
    There is no gradient: `ValueError` where one would be asked for, and for shapes, dtypes or
    devices that do not fit the plan.
    """
    _check_inputs(q, shared_keys, shared_values, own_keys, own_values, own_lengths, plan)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    tensors = (q, shared_keys, shared_values, own_keys, own_values, own_lengths)
    if plan.backend == "reference":
        return reference_decode_attention(*tensors, plan.segments, scale=scale)
    attend = _MODULES[plan.backend].attend
    out: Tensor = attend(*tensors, plan.prepared, scale)
    return out


def default_backend(shape: DecodeShape) -> str:
    """The one that serves `shape`: "triton" on CUDA, "cpu" on the CPU, else "reference"."""
    name = {"cuda": "triton", "cpu": "cpu"}.get(shape.device.type, "reference")
    if name == "reference" or _MODULES[name].refusal(shape):
        return "reference"
    return name


def _check_segment(index: int, segment: Segment, num_slots: int) -> None:
    start, length, slots = segment
    if start < 0 or length < 1 or not len(slots):
        raise ValueError(
            f"segment {index} starts at {start} and has {length} tokens and {len(slots)} slots: "
            "it starts at 0 or later and has at least one of each"
        )
    if min(slots) < 0 or max(slots) >= num_slots or len(set(slots)) < len(slots):
        raise ValueError(
            f"segment {index}: slots {list(slots)} are not different numbers in [0, {num_slots})"
        )


def _check_inputs(
    q: Tensor,
    shared_keys: Tensor,
    shared_values: Tensor,
    own_keys: Tensor,
    own_values: Tensor,
    own_lengths: Tensor,
    plan: DecodePlan,
) -> None:
    shape = plan.shape
    check_shape("q", q, (shape.num_slots, shape.heads, shape.head_dim))
    check_shape("shared_keys", shared_keys, (shape.kv_heads, None, shape.head_dim))
    check_shape("own_keys", own_keys, (shape.kv_heads, shape.num_slots, None, shape.head_dim))
    check_shape("shared_values", shared_values, tuple(shared_keys.shape))
    check_shape("own_values", own_values, tuple(own_keys.shape))
    check_shape("own_lengths", own_lengths, (shape.num_slots,))
    floats = {
        "q": q,
        "shared_keys": shared_keys,
        "shared_values": shared_values,
        "own_keys": own_keys,
        "own_values": own_values,
    }
    check_device(shape.device, **floats, own_lengths=own_lengths)
    for name, tensor in floats.items():
        if tensor.dtype != shape.dtype:
            raise ValueError(f"{name} must be {shape.dtype}, got {tensor.dtype}")
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in its last dimension")
        if torch.is_grad_enabled() and tensor.requires_grad:
            raise ValueError(f"{name} requires a gradient, which decode attention does not have")
    if own_lengths.dtype != torch.int32 or not own_lengths.is_contiguous():
        raise ValueError(f"own_lengths must be int32 and contiguous, got {own_lengths.dtype}")
    if plan.pool_end > shared_keys.shape[1]:
        raise ValueError(
            f"a segment ends at token {plan.pool_end} of a pool of {shared_keys.shape[1]}"
        )
