"""Attention of many segments in one call, with its log-sum-exp: what the flash backend calls.

Legend: R query rows and N key rows cut into S segments, Hq query heads, Hkv key and value heads, D
head dimension. The queries of segment s read the keys of segment s and no others.

On CUDA flash-attn 2 does the work if it is installed, torch's own copy of it otherwise; on the CPU
torch's flash kernel, segment by segment. The backward takes the out and the log-sum-exp that the
caller says: those of a softmax over more keys than these give the gradients of that softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import metadata
from typing import NamedTuple

import torch
from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor]

_FLASH_DTYPES = (torch.bfloat16, torch.float16)
_CPU_DTYPES = (*_FLASH_DTYPES, torch.float32, torch.float64)


class Segments(NamedTuple):
    """Where the segments lie: s has queries `[cu_queries[s], cu_queries[s + 1])`, keys alike.

    cu_queries, cu_keys: (S + 1,) int32 on the device. max_queries, max_keys: of any segment.
    causal: query i of a segment reads keys 0 to i; it then has as many keys as queries.
    """

    cu_queries: Tensor
    cu_keys: Tensor
    max_queries: int
    max_keys: int
    causal: bool


def refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why segments cannot be attended here; empty if they can."""
    if device.type == "cpu":
        return "" if dtype in _CPU_DTYPES else f"takes a float dtype, not {dtype}"
    if device.type != "cuda":
        return f"needs a CPU or a CUDA device, not {device.type!r}"
    if dtype not in _FLASH_DTYPES:
        return f"takes bfloat16 or float16 on CUDA, not {dtype}"
    if head_dim % 8 or head_dim > 256:
        return f"needs a head size that is a multiple of 8, at most 256, not {head_dim}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "needs compute capability 8.0 or later"
    if flash_attn_version() is None and not torch.backends.cuda.is_flash_attention_available():
        return "needs flash-attn 2, since this torch was built without flash attention"
    return ""


@cache
def flash_attn_version() -> str | None:
    """The flash-attn that is used on CUDA; None for torch's own.

    2.7 and 2.8 alone: older ones name the arguments otherwise, and 4 has another interface.
    """
    try:
        version = metadata.version("flash-attn")
    except metadata.PackageNotFoundError:
        return None
    return version if version.startswith(("2.7.", "2.8.")) else None


def attend_segments(
    q: Tensor,  # (R, Hq, D)
    k: Tensor,  # (N, Hkv, D)
    v: Tensor,  # (N, Hkv, D)
    segments: Segments,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Softmax attention of each segment -> out (R, Hq, D) and log-sum-exp (Hq, R)."""
    if q.device.type == "cpu":
        return _cpu_forward(q, k, v, segments, scale)
    if flash_attn_version():
        return _flash_attn_forward(q, k, v, segments, scale)
    return _torch_forward(q, k, v, segments, scale)


def attend_segments_backward(
    grad_out: Tensor,  # (R, Hq, D)
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,  # (R, Hq, D)
    lse: Tensor,  # (Hq, R)
    segments: Segments,
    scale: float,
) -> Gradients:
    """What these keys add to the gradients of a softmax with this `out` and `lse` -> dq, dk, dv."""
    tensors = (grad_out.contiguous(), q, k, v, out.contiguous(), lse.contiguous())
    if q.device.type == "cpu":
        return _cpu_backward(*tensors, segments, scale)
    if flash_attn_version():
        return _flash_attn_backward(*tensors, segments, scale)
    return _torch_backward(*tensors, segments, scale)


def _max_queries(segments: Segments) -> int:
    """At least 2: told that there is but one query, flash attention turns the heads of a group
    into queries, a way for decoding that leaves the cumulative lengths unread."""
    return max(segments.max_queries, 2)


def _torch_forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float
) -> tuple[Tensor, Tensor]:
    cu_queries, cu_keys, _, max_keys, causal = segments
    lengths = (cu_queries, cu_keys, _max_queries(segments), max_keys)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, *lengths, 0.0, causal, False, scale=scale
    )
    return out, lse


def _torch_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: Segments,
    scale: float,
) -> Gradients:
    cu_queries, cu_keys, _, max_keys, causal = segments
    lengths = (cu_queries, cu_keys, _max_queries(segments), max_keys)
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q.device), q.new_empty(0)
    return torch.ops.aten._flash_attention_backward(
        grad_out, q, k, v, out, lse, *lengths, 0.0, causal, *no_dropout, scale=scale
    )


def _flash_attn_forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float
) -> tuple[Tensor, Tensor]:
    from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

    cu_queries, cu_keys, _, max_keys, causal = segments
    lengths = (cu_queries, cu_keys, _max_queries(segments), max_keys)
    out, lse, *_ = _flash_attn_varlen_forward(q, k, v, *lengths, 0.0, scale, causal)
    return out, lse


def _flash_attn_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: Segments,
    scale: float,
) -> Gradients:
    from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

    cu_queries, cu_keys, _, max_keys, causal = segments
    gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _flash_attn_varlen_backward(
        *(grad_out, q, k, v, out, lse, *gradients),
        *(cu_queries, cu_keys, _max_queries(segments), max_keys),
        dropout_p=0.0,
        softmax_scale=scale,
        causal=causal,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        deterministic=torch.are_deterministic_algorithms_enabled(),  # as torch's own does
    )
    return gradients


def _cpu_forward(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float
) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[1], len(q), dtype=torch.promote_types(q.dtype, torch.float32))
    for queries, keys in _slices(segments):
        part, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *_heads_first(q, queries, k, v, keys), 0.0, segments.causal, scale=scale
        )
        out[queries] = part[0].transpose(0, 1)
        lse[:, queries] = part_lse[0]
    return out, lse


def _cpu_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    segments: Segments,
    scale: float,
) -> Gradients:
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for queries, keys in _slices(segments):
        grad, part_out = (x[queries].transpose(0, 1)[None] for x in (grad_out, out))
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(grad, *_heads_first(q, queries, k, v, keys), part_out, lse[None, :, queries]),
            *(0.0, segments.causal),
            scale=scale,
        )
        part_dq, *parts = (x[0].transpose(0, 1) for x in gradients)  # (L, Hq, D)
        dq[queries] = part_dq
        for total, part in zip((dk, dv), parts, strict=True):  # heads of a group read one key head
            total[keys] = part.unflatten(1, (k.shape[1], -1)).sum(2)
    return dq, dk, dv


def _slices(segments: Segments) -> Iterator[tuple[slice, slice]]:
    queries, keys = segments.cu_queries.tolist(), segments.cu_keys.tolist()
    for s in range(len(queries) - 1):
        yield slice(queries[s], queries[s + 1]), slice(keys[s], keys[s + 1])


def _heads_first(
    q: Tensor, queries: slice, k: Tensor, v: Tensor, keys: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """One segment as (1, Hq, L, D); the CPU's kernel wants a key head for each query head."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x[keys].repeat_interleave(groups, dim=1) for x in (k, v))
    q, k, v = (x.transpose(0, 1)[None] for x in (q[queries], k, v))
    return q, k, v
