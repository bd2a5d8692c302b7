"""Gradients of forest attention: one kernel for the queries', one for the keys' and values'.

Legend as in `forest_attention`. With P = exp(S - lse), S = scale Q K^T, and delta = rowsum(dO O):
dV = P^T dO, dS = P (dO V^T - delta), dQ = scale dS K, dK = scale dS^T Q.

Unusual: keys that all branches share have long lists of queries. These lists are cut in parts that
add their sums in fp32 by atomics; sums of a list that is whole are stored. Without cuts the order
of every sum is fixed. delta is made by the queries' kernel, which holds O and dO anyway.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmpi.kernels.forest_attention import (
    LOG2_E,
    block_d,
    dot_precision,
    load_rows,
    new_row_numbers,
    store_rows,
)
from fastmpi.kernels.forest_attention_tiles import tiles


@triton.jit
def _read_keys(
    dq, q, grad_out, lse, delta, k_base, v_base, subtree_end, blocks, first, end, query_rows,
    columns, k_stride, v_stride, num_rows, scale, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq (BLOCK_M, D), not yet scaled, over the key blocks `blocks[first:end]`."""
    offsets = tl.arange(0, BLOCK_N)
    block = tl.load(blocks + first)
    for step in range(first, end):
        start = block.to(tl.int64) * BLOCK_N
        limit = (num_rows - start).to(tl.int32)
        block = tl.load(blocks + step + 1)
        k = load_rows(
            k_base + start * k_stride, offsets, columns, k_stride, limit, HEAD_DIM, MASKED
        )
        v = load_rows(
            v_base + start * v_stride, offsets, columns, v_stride, limit, HEAD_DIM, MASKED
        )
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        weights = tl.exp2(scores * (scale * LOG2_E) - lse[:, None])
        if MASKED:
            ends = tl.load(subtree_end + start + offsets, offsets < limit, other=0)
            keys = start.to(tl.int32) + offsets
            visible = (keys[None, :] <= query_rows[:, None]) & (query_rows[:, None] < ends[None, :])
            weights = tl.where(visible, weights, 0.0)
        grad_weights = tl.dot(grad_out, tl.trans(v), input_precision=PRECISION)
        grad_scores = weights * (grad_weights - delta[:, None])
        dq = tl.dot(grad_scores.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit(do_not_specialize=["num_rows", "list_stride"])
def _query_grad_kernel(
    q, k, v, out, grad_out, lse, subtree_end, schedule, dq, delta, scale, num_rows, list_stride,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride,
    out_stride, out_head_stride, grad_stride, grad_head_stride, dq_stride, dq_head_stride,
    lse_stride, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ and delta of one block of queries of one head."""
    head = tl.program_id(0).to(tl.int64)
    entry = schedule + tl.program_id(1).to(tl.int64) * list_stride
    start = tl.load(entry).to(tl.int64) * BLOCK_M
    fully = tl.load(entry + 1)
    seen = tl.load(entry + 2)
    blocks = entry + 3
    rows = tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    limit = (num_rows - start).to(tl.int32)
    query_rows = start.to(tl.int32) + rows
    out_base = out + head * out_head_stride + start * out_stride
    out_tile = load_rows(out_base, rows, columns, out_stride, limit, HEAD_DIM, True)
    grad_base = grad_out + head * grad_head_stride + start * grad_stride
    grad_tile = load_rows(grad_base, rows, columns, grad_stride, limit, HEAD_DIM, True)
    row_delta = tl.sum(out_tile.to(tl.float32) * grad_tile.to(tl.float32), 1)
    numbers = head * lse_stride + start + rows
    tl.store(delta + numbers, row_delta, rows < limit)
    row_lse = tl.load(lse + numbers, rows < limit, other=0.0) * LOG2_E
    q_base = q + head * q_head_stride + start * q_stride
    q_tile = load_rows(q_base, rows, columns, q_stride, limit, HEAD_DIM, True)
    k_base = k + (head // GROUP) * k_head_stride
    v_base = v + (head // GROUP) * v_head_stride

    dq_tile = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    dq_tile = _read_keys(
        dq_tile, q_tile, grad_tile, row_lse, row_delta, k_base, v_base, subtree_end, blocks, 0,
        fully, query_rows, columns, k_stride, v_stride, num_rows, scale, HEAD_DIM, BLOCK_N, False,
        PRECISION,
    )  # fmt: skip
    dq_tile = _read_keys(
        dq_tile, q_tile, grad_tile, row_lse, row_delta, k_base, v_base, subtree_end, blocks, fully,
        seen, query_rows, columns, k_stride, v_stride, num_rows, scale, HEAD_DIM, BLOCK_N, True,
        PRECISION,
    )  # fmt: skip
    dq_base = dq + head * dq_head_stride + start * dq_stride
    store_rows(dq_base, rows, columns, dq_stride, limit, dq_tile * scale, HEAD_DIM)


@triton.jit
def _read_queries(
    dk, dv, k, v, keys, ends, q_base, grad_base, lse, delta, blocks, first, end, columns,
    q_stride, q_head_stride, grad_stride, grad_head_stride, lse_stride, num_rows, scale,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dk, not yet scaled, and dv (BLOCK_N, D) over `blocks[first:end]` of each head of the group.

    One loop goes through the heads and the list, so that its pipeline fills only once.
    """
    rows = tl.arange(0, BLOCK_M)
    index = first
    head = tl.zeros([], tl.int64)
    block = tl.load(blocks + first)
    for _ in range((end - first) * GROUP):
        start = block.to(tl.int64) * BLOCK_M
        limit = (num_rows - start).to(tl.int32)
        q_tile = q_base + head * q_head_stride + start * q_stride
        q = load_rows(q_tile, rows, columns, q_stride, limit, HEAD_DIM, MASKED)
        grad_tile = grad_base + head * grad_head_stride + start * grad_stride
        grad_out = load_rows(grad_tile, rows, columns, grad_stride, limit, HEAD_DIM, MASKED)
        numbers = head * lse_stride + start + rows
        if MASKED:
            row_lse = tl.load(lse + numbers, rows < limit, other=0.0)
            row_delta = tl.load(delta + numbers, rows < limit, other=0.0)
        else:
            row_lse = tl.load(lse + numbers)
            row_delta = tl.load(delta + numbers)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        weights = tl.exp2(scores * (scale * LOG2_E) - (row_lse * LOG2_E)[None, :])
        if MASKED:
            query_rows = start.to(tl.int32) + rows
            visible = (keys[:, None] <= query_rows[None, :]) & (query_rows[None, :] < ends[:, None])
            weights = tl.where(visible, weights, 0.0)
        dv = tl.dot(weights.to(grad_out.dtype), grad_out, dv, input_precision=PRECISION)
        grad_weights = tl.dot(v, tl.trans(grad_out), input_precision=PRECISION)
        grad_scores = weights * (grad_weights - row_delta[None, :])
        dk = tl.dot(grad_scores.to(q.dtype), q, dk, input_precision=PRECISION)
        index += 1
        head += (index == end).to(tl.int64)
        index = tl.where(index == end, first, index)
        block = tl.load(blocks + index)
    return dk, dv


@triton.jit
def _add_rows(base, rows, columns, stride, limit, values, HEAD_DIM: tl.constexpr):
    """`store_rows`, for sums that several programs share."""
    pointers = base + rows[:, None] * stride + columns[None, :]
    mask = (rows < limit)[:, None] & (columns < HEAD_DIM)[None, :]
    tl.atomic_add(pointers, values, mask, sem="relaxed")


@triton.jit(do_not_specialize=["num_rows", "list_stride"])
def _key_grad_kernel(
    q, k, v, grad_out, lse, delta, subtree_end, lists, parts, dk, dv, scale, num_rows, list_stride,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride,
    grad_stride, grad_head_stride, dk_stride, dk_head_stride, lse_stride,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV of one block of keys of one key head, over one part of its list of queries."""
    part = parts + tl.program_id(1) * 4
    first = tl.load(part + 1)
    end = tl.load(part + 2)
    if first >= end:
        return
    kv_head = tl.program_id(0).to(tl.int64)
    key_block = tl.load(part)
    start = key_block.to(tl.int64) * BLOCK_N
    entry = lists + key_block.to(tl.int64) * list_stride
    fully = tl.load(entry + 1)
    blocks = entry + 3
    rows = tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    limit = (num_rows - start).to(tl.int32)
    keys = start.to(tl.int32) + rows
    ends = tl.load(subtree_end + start + rows, rows < limit, other=0)
    k_base = k + kv_head * k_head_stride + start * k_stride
    k_tile = load_rows(k_base, rows, columns, k_stride, limit, HEAD_DIM, True)
    v_base = v + kv_head * v_head_stride + start * v_stride
    v_tile = load_rows(v_base, rows, columns, v_stride, limit, HEAD_DIM, True)
    q_base = q + kv_head * GROUP * q_head_stride
    grad_base = grad_out + kv_head * GROUP * grad_head_stride
    lse_base = lse + kv_head * GROUP * lse_stride
    delta_base = delta + kv_head * GROUP * lse_stride

    dk_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv_tile = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dk_tile, dv_tile = _read_queries(
        dk_tile, dv_tile, k_tile, v_tile, keys, ends, q_base, grad_base, lse_base, delta_base,
        blocks, first, tl.minimum(end, fully), columns, q_stride, q_head_stride, grad_stride,
        grad_head_stride, lse_stride, num_rows, scale, GROUP, HEAD_DIM, BLOCK_M, False, PRECISION,
    )  # fmt: skip
    dk_tile, dv_tile = _read_queries(
        dk_tile, dv_tile, k_tile, v_tile, keys, ends, q_base, grad_base, lse_base, delta_base,
        blocks, tl.maximum(first, fully), end, columns, q_stride, q_head_stride, grad_stride,
        grad_head_stride, lse_stride, num_rows, scale, GROUP, HEAD_DIM, BLOCK_M, True, PRECISION,
    )  # fmt: skip

    dk_base = dk + kv_head * dk_head_stride + start * dk_stride
    dv_base = dv + kv_head * dk_head_stride + start * dk_stride
    dk_tile *= scale
    whole = tl.load(part + 3)
    if whole:
        store_rows(dk_base, rows, columns, dk_stride, limit, dk_tile, HEAD_DIM)
        store_rows(dv_base, rows, columns, dk_stride, limit, dv_tile, HEAD_DIM)
    else:
        _add_rows(dk_base, rows, columns, dk_stride, limit, dk_tile, HEAD_DIM)
        _add_rows(dv_base, rows, columns, dk_stride, limit, dv_tile, HEAD_DIM)


def query_grad(
    q: Tensor,  # (T, Hq, D); strides as in the forward launcher, for the gradient too
    k: Tensor,  # (T, Hkv, D)
    v: Tensor,
    out: Tensor,  # (T, Hq, D)
    grad_out: Tensor,
    lse: Tensor,  # (Hq, T) fp32, of `new_row_numbers`
    subtree_end: Tensor,  # (T,) int32
    schedule: Tensor,  # `query_schedule` for the query_grad tile
    scale: float,
) -> tuple[Tensor, Tensor]:
    """dQ (T, Hq, D), and delta (Hq, T) fp32 for `key_grad`."""
    num_rows, heads, head_dim = q.shape
    dq = q.new_empty(q.shape)
    delta = new_row_numbers(q)
    tile = tiles(head_dim, q.dtype).query_grad
    _query_grad_kernel[(heads, len(schedule))](
        q, k, v, out, grad_out, lse, subtree_end, schedule, dq, delta, scale, num_rows,
        schedule.stride(0), *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2],
        *grad_out.stride()[:2], *dq.stride()[:2], lse.stride(0),
        GROUP=heads // k.shape[1], HEAD_DIM=head_dim, BLOCK_D=block_d(head_dim),
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, PRECISION=dot_precision(q.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return dq, delta


def key_grad(
    q: Tensor,  # as in `query_grad`
    k: Tensor,
    v: Tensor,
    grad_out: Tensor,
    lse: Tensor,
    delta: Tensor,
    subtree_end: Tensor,
    lists: Tensor,  # `key_schedule` for the key_grad tile
    parts: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """dK and dV (T, Hkv, D), summed in fp32; the sums of lists that are cut in no fixed order."""
    heads, kv_heads, head_dim = q.shape[1], k.shape[1], k.shape[2]
    new = torch.zeros if len(parts) > len(lists) else torch.empty
    dk, dv = (new(k.shape, dtype=torch.float32, device=k.device) for _ in range(2))
    tile = tiles(head_dim, q.dtype).key_grad
    _key_grad_kernel[(kv_heads, len(parts))](
        q, k, v, grad_out, lse, delta, subtree_end, lists, parts, dk, dv, scale, len(k),
        lists.stride(0), *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        *grad_out.stride()[:2], *dk.stride()[:2], lse.stride(0),
        GROUP=heads // kv_heads, HEAD_DIM=head_dim, BLOCK_D=block_d(head_dim),
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, PRECISION=dot_precision(q.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return dk.to(k.dtype), dv.to(v.dtype)
