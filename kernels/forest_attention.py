"""Attention under the forest rule, forward: one program a block of queries and head.

Legend: T rows, Hq query heads, Hkv key and value heads, D head size. Row q sees row k iff
`k <= q < subtree_end[k]`. Lists of blocks: `forest_attention_plan`.

Unusual: no branch asks what a block of keys needs. One loop runs over the keys that the queries see
fully, without a mask, another over the rest; both are driven by a list, so that loads are
pipelined, and each step reads the next step's entry.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmpi.kernels.forest_attention_tiles import tiles

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
LOWEST: tl.constexpr = tl.constexpr(-3.0e38)  # finite: rows that see nothing yet give no NaN


@triton.jit
def load_rows(base, rows, columns, stride, limit, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr):
    """(rows, columns) of a matrix with rows `stride` apart; 0 past `limit` rows and HEAD_DIM."""
    pointers = base + rows[:, None] * stride + columns[None, :]
    if MASKED:
        return tl.load(pointers, (rows < limit)[:, None] & (columns < HEAD_DIM)[None, :], other=0.0)
    elif HEAD_DIM < columns.shape[0]:
        return tl.load(pointers, (columns < HEAD_DIM)[None, :], other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def store_rows(base, rows, columns, stride, limit, values, HEAD_DIM: tl.constexpr):
    """The counterpart of `load_rows`, masked."""
    pointers = base + rows[:, None] * stride + columns[None, :]
    mask = (rows < limit)[:, None] & (columns < HEAD_DIM)[None, :]
    tl.store(pointers, values.to(base.dtype.element_ty), mask)


@triton.jit
def _read_keys(
    total, sums, peak, q, k_base, v_base, subtree_end, blocks, first, end, query_rows, columns,
    k_stride, v_stride, num_rows, scale, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Softmax, kept up to date, over the key blocks `blocks[first:end]`.

    total (BLOCK_M, D): sum of values; sums (BLOCK_M,): of weights; peak (BLOCK_M,): highest score.
    Scores are in units of log 2.
    """
    offsets = tl.arange(0, BLOCK_N)
    block = tl.load(blocks + first)
    for step in range(first, end):
        start = block.to(tl.int64) * BLOCK_N
        limit = (num_rows - start).to(tl.int32)
        block = tl.load(blocks + step + 1)
        k = load_rows(
            k_base + start * k_stride, offsets, columns, k_stride, limit, HEAD_DIM, MASKED
        )
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            ends = tl.load(subtree_end + start + offsets, offsets < limit, other=0)
            keys = start.to(tl.int32) + offsets
            visible = (keys[None, :] <= query_rows[:, None]) & (query_rows[:, None] < ends[None, :])
            scores = tl.where(visible, scores * scale, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(scores, 1))
            weights = tl.exp2(scores - new_peak[:, None])
        else:
            new_peak = tl.maximum(peak, tl.max(scores, 1) * scale)
            weights = tl.exp2(scores * scale - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        sums = sums * shrink + tl.sum(weights, 1)
        v = load_rows(
            v_base + start * v_stride, offsets, columns, v_stride, limit, HEAD_DIM, MASKED
        )
        total = total * shrink[:, None]
        total = tl.dot(weights.to(v.dtype), v, total, input_precision=PRECISION)
        peak = new_peak
    return total, sums, peak


@triton.jit(do_not_specialize=["num_rows", "list_stride"])
def _forest_attention_kernel(
    q, k, v, subtree_end, schedule, out, lse, scale, num_rows, list_stride,
    q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride,
    out_stride, out_head_stride, lse_stride, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head. Neighbours in the grid read the same keys and values."""
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
    q_base = q + head * q_head_stride + start * q_stride
    q_tile = load_rows(q_base, rows, columns, q_stride, limit, HEAD_DIM, True)
    k_base = k + (head // GROUP) * k_head_stride
    v_base = v + (head // GROUP) * v_head_stride

    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    sums = tl.where(rows < limit, 0.0, 1.0)  # rows past T divide by it
    peak = tl.full([BLOCK_M], LOWEST, tl.float32)
    total, sums, peak = _read_keys(
        total, sums, peak, q_tile, k_base, v_base, subtree_end, blocks, 0, fully, query_rows,
        columns, k_stride, v_stride, num_rows, scale, HEAD_DIM, BLOCK_N, False, PRECISION,
    )  # fmt: skip
    total, sums, peak = _read_keys(
        total, sums, peak, q_tile, k_base, v_base, subtree_end, blocks, fully, seen, query_rows,
        columns, k_stride, v_stride, num_rows, scale, HEAD_DIM, BLOCK_N, True, PRECISION,
    )  # fmt: skip

    out_base = out + head * out_head_stride + start * out_stride
    store_rows(out_base, rows, columns, out_stride, limit, total / sums[:, None], HEAD_DIM)
    log_sum = (peak + tl.log2(sums)) * LN_2
    tl.store(lse + head * lse_stride + start + rows, log_sum, rows < limit)


def forest_attention(
    q: Tensor,  # (T, Hq, D), any strides but of the last dimension, which is contiguous
    k: Tensor,  # (T, Hkv, D)
    v: Tensor,  # (T, Hkv, D)
    subtree_end: Tensor,  # (T,) int32
    schedule: Tensor,  # `query_schedule` for the forward tile
    scale: float,  # not negative
) -> tuple[Tensor, Tensor]:
    """out (T, Hq, D) and the log-sum-exp of each row's scores, (Hq, T) fp32."""
    num_rows, heads, head_dim = q.shape
    out = q.new_empty(q.shape)
    lse = new_row_numbers(q)
    tile = tiles(head_dim, q.dtype).forward
    _forest_attention_kernel[(heads, len(schedule))](
        q, k, v, subtree_end, schedule, out, lse, scale * LOG2_E.value, num_rows,
        schedule.stride(0), *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *out.stride()[:2],
        lse.stride(0), GROUP=heads // k.shape[1], HEAD_DIM=head_dim, BLOCK_D=block_d(head_dim),
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, PRECISION=dot_precision(q.dtype),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, lse


def new_row_numbers(q: Tensor) -> Tensor:
    """(Hq, T) fp32, not yet written. Rows start at multiples of 16 numbers, for wide loads."""
    num_rows, heads, _ = q.shape
    padded = -(-num_rows // 16) * 16
    return q.new_empty((heads, padded), dtype=torch.float32)[:, :num_rows]


def block_d(head_dim: int) -> int:
    """Head size as the kernels see it, padded with zeros."""
    return max(16, triton.next_power_of_2(head_dim))


def dot_precision(dtype: torch.dtype) -> str | None:
    """fp32 is multiplied as fp32, not as TF32; narrower numbers have one way only."""
    return "ieee" if dtype == torch.float32 else None
