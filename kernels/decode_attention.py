"""Attention of one new token each of many responses: partial results, then their merging.

Legend: B slots, C tokens that a slot has room for, Hq query heads, Hkv key and value heads,
r = Hq / Hkv, D head size. An *item* is up to `PART_TOKENS` neighbouring tokens of a segment with up
to block_m / r of the slots that read it; a *part* is what one slot has from one item, or from one
split of its own tokens: (Hq, D) numbers, normalised, and the log-sum-exp of each head.

Unusual: one launch reads everything. Its first programs go through the items (how many there are
stands on the device), so that tables may have room for many more without a program for each; the
others take a slot's own tokens, block by block in turn where several share them. A second launch
merges the parts of a slot, which lie side by side, in the order of its path.

Nothing is added in an order that depends on timing, and the parts of a slot depend on nothing but
its own segments and tokens and C: bits repeat, and no other slot of the batch changes them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmpi.kernels.decode_attention_tiles import tile
from fastmpi.kernels.forest_attention import LOG2_E, LOWEST, block_d, dot_precision

ITEM_PROGRAMS = 264  # as many as run at once: two for each multiprocessor of an H200
OWN_TOKENS = 512  # that a program reads of a slot which is full


@triton.jit
def _read_keys(
    q, k_base, v_base, first, limit, step, columns, k_stride, v_stride, scale,
    HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Softmax over the blocks of keys at `first`, `first + step`, ... before `limit`.

    Returns the values' mean under it (rows, D) and the log-sum-exp (rows,), in units of log 2.
    """
    offsets = tl.arange(0, BLOCK_N)
    in_head = (columns < HEAD_DIM)[None, :]
    total = tl.zeros([q.shape[0], columns.shape[0]], tl.float32)
    sums = tl.zeros([q.shape[0]], tl.float32)
    peak = tl.full([q.shape[0]], LOWEST, tl.float32)
    for start in range(first, limit, step):
        keys = start + offsets
        seen = keys < limit
        mask = seen[:, None]
        if HEAD_DIM < columns.shape[0]:
            mask = mask & in_head
        k = tl.load(k_base + keys[:, None] * k_stride + columns[None, :], mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        sums = sums * shrink + tl.sum(weights, 1)
        v = tl.load(v_base + keys[:, None] * v_stride + columns[None, :], mask, other=0.0)
        total = tl.dot(weights.to(v.dtype), v, total * shrink[:, None], input_precision=PRECISION)
        peak = new_peak
    return total / sums[:, None], peak + tl.log2(sums)


@triton.jit
def _store_part(
    parts, parts_lse, part, heads, columns, mask, mean, log_sum, HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """mean (rows, D) and log_sum (rows,) of query heads `heads` (rows,) to parts `part` (rows,)."""
    row = part.to(tl.int64) * HEADS + heads
    in_head = (columns < HEAD_DIM)[None, :]
    tl.store(parts + row[:, None] * HEAD_DIM + columns[None, :], mean, mask[:, None] & in_head)
    tl.store(parts_lse + row, log_sum, mask)


@triton.jit(do_not_specialize=["max_parts", "capacity", "splits", "item_programs"])
def _decode_attention_kernel(
    q, shared_keys, shared_values, own_keys, own_values, own_lengths, items, num_items, parts,
    parts_lse, scale, max_parts, capacity, splits, item_programs, q_stride, q_head_stride,
    shared_k_head_stride, shared_k_stride, shared_v_head_stride, shared_v_stride,
    own_k_head_stride, own_k_slot_stride, own_k_stride,
    own_v_head_stride, own_v_slot_stride, own_v_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    ITEM_SLOTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Parts of items for the first `item_programs` programs, of a slot's own tokens for others."""
    program = tl.program_id(0)
    columns = tl.arange(0, BLOCK_D)
    in_head = (columns < HEAD_DIM)[None, :]
    KEY_HEADS: tl.constexpr = HEADS // GROUP
    if program < item_programs:
        rows = tl.arange(0, BLOCK_M)
        count = tl.load(num_items)
        for unit in range(program, count * KEY_HEADS, item_programs):
            key_head = (unit // count).to(tl.int64)  # neighbours read the same keys
            item = items + (unit % count).to(tl.int64) * (2 + 2 * ITEM_SLOTS)
            start = tl.load(item).to(tl.int64)
            length = tl.load(item + 1)
            in_item = rows < ITEM_SLOTS * GROUP
            slot = tl.load(item + 2 + rows // GROUP, in_item, other=-1)
            part = tl.load(item + 2 + ITEM_SLOTS + rows // GROUP, in_item, other=0)
            there = slot >= 0
            heads = key_head * GROUP + rows % GROUP
            place = slot.to(tl.int64) * q_stride + heads * q_head_stride
            q_tile = tl.load(
                q + place[:, None] + columns[None, :], there[:, None] & in_head, other=0.0
            )
            mean, log_sum = _read_keys(
                q_tile, shared_keys + key_head * shared_k_head_stride + start * shared_k_stride,
                shared_values + key_head * shared_v_head_stride + start * shared_v_stride,
                0, length, BLOCK_N, columns, shared_k_stride, shared_v_stride, scale, HEAD_DIM,
                BLOCK_N, PRECISION,
            )  # fmt: skip
            _store_part(
                parts, parts_lse, part, heads, columns, there, mean, log_sum, HEADS, HEAD_DIM
            )
    else:
        own = program - item_programs
        split = own % splits
        key_head = (own // splits % KEY_HEADS).to(tl.int64)
        slot = (own // splits // KEY_HEADS).to(tl.int64)
        length = tl.minimum(tl.load(own_lengths + slot), capacity)
        first = split * BLOCK_N
        if first < length:
            rows = tl.arange(0, BLOCK_G)
            there = rows < GROUP
            heads = key_head * GROUP + rows
            place = slot * q_stride + heads * q_head_stride
            q_tile = tl.load(
                q + place[:, None] + columns[None, :], there[:, None] & in_head, other=0.0
            )
            mean, log_sum = _read_keys(
                q_tile, own_keys + key_head * own_k_head_stride + slot * own_k_slot_stride,
                own_values + key_head * own_v_head_stride + slot * own_v_slot_stride,
                first, length, splits * BLOCK_N, columns, own_k_stride, own_v_stride, scale,
                HEAD_DIM, BLOCK_N, PRECISION,
            )  # fmt: skip
            part = max_parts + slot * splits + split + tl.zeros([BLOCK_G], tl.int64)
            _store_part(
                parts, parts_lse, part, heads, columns, there, mean, log_sum, HEADS, HEAD_DIM
            )


@triton.jit(do_not_specialize=["max_parts", "capacity", "splits"])
def _merge_parts_kernel(
    parts, parts_lse, first_part, own_lengths, out, max_parts, capacity, splits,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One slot and query head: its parts weighted by exp2(log-sum), BLOCK_P at a time."""
    head = tl.program_id(0)
    slot = tl.program_id(1).to(tl.int64)
    first = tl.load(first_part + slot).to(tl.int64)
    shared = tl.load(first_part + slot + 1).to(tl.int64) - first
    length = tl.minimum(tl.load(own_lengths + slot), capacity)
    count = shared + tl.minimum(tl.cdiv(length, BLOCK_N), splits)
    columns = tl.arange(0, BLOCK_D)
    in_head = (columns < HEAD_DIM)[None, :]
    total = tl.zeros([BLOCK_D], tl.float32)
    sums = tl.zeros([], tl.float32)
    peak = tl.full([], LOWEST, tl.float32)
    for begin in range(0, count, BLOCK_P):
        number = begin + tl.arange(0, BLOCK_P)
        there = number < count
        own = max_parts + slot * splits + number - shared
        row = tl.where(number < shared, first + number, own) * HEADS + head
        log_sum = tl.load(parts_lse + row, there, other=float("-inf"))
        new_peak = tl.maximum(peak, tl.max(log_sum, 0))
        weights = tl.exp2(log_sum - new_peak)
        shrink = tl.exp2(peak - new_peak)
        sums = sums * shrink + tl.sum(weights, 0)
        means = tl.load(
            parts + row[:, None] * HEAD_DIM + columns[None, :], there[:, None] & in_head, other=0.0
        )
        total = total * shrink + tl.sum(weights[:, None] * means, 0)
        peak = new_peak
    mean = total / tl.where(count > 0, sums, 1.0)  # a slot that reads nothing: 0
    place = out + (slot * HEADS + head) * HEAD_DIM + columns
    tl.store(place, mean.to(out.dtype.element_ty), columns < HEAD_DIM)


def decode_attention(
    q: Tensor,  # (B, Hq, D), as all others contiguous in the last dimension
    shared_keys: Tensor,  # (Hkv, T, D)
    shared_values: Tensor,  # (Hkv, T, D)
    own_keys: Tensor,  # (Hkv, B, C, D)
    own_values: Tensor,  # (Hkv, B, C, D)
    own_lengths: Tensor,  # (B,) int32
    items: Tensor,  # (max_parts, 2 + 2 * item_slots) int32 [start, tokens, slots..., parts...]
    num_items: Tensor,  # (1,) int32
    first_part: Tensor,  # (B + 1,) int32: slot b has parts first_part[b] to first_part[b + 1]
    scale: float,
) -> Tensor:
    """(B, Hq, D) in q's dtype. Unused places of an item have slot -1."""
    num_slots, heads, head_dim = q.shape
    key_heads, _, capacity, _ = own_keys.shape
    block = tile(head_dim, q.dtype)
    splits = -(-capacity // OWN_TOKENS)
    max_parts = len(items)
    rows = max_parts + num_slots * splits
    parts = q.new_empty((rows, heads, head_dim), dtype=torch.float32)
    parts_lse = q.new_empty((rows, heads), dtype=torch.float32)
    out = q.new_empty(q.shape)
    item_programs = min(ITEM_PROGRAMS, max_parts * key_heads)
    group = heads // key_heads
    _decode_attention_kernel[(item_programs + num_slots * key_heads * splits,)](
        q, shared_keys, shared_values, own_keys, own_values, own_lengths, items, num_items, parts,
        parts_lse, scale * LOG2_E.value, max_parts, capacity, splits, item_programs,
        *q.stride()[:2], *shared_keys.stride()[:2], *shared_values.stride()[:2],
        *own_keys.stride()[:3], *own_values.stride()[:3],
        HEADS=heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_D=block_d(head_dim),
        ITEM_SLOTS=block.block_m // group, BLOCK_M=block.block_m,
        BLOCK_G=max(16, triton.next_power_of_2(group)), BLOCK_N=block.block_n,
        PRECISION=dot_precision(q.dtype), num_warps=block.warps, num_stages=block.stages,
    )  # fmt: skip
    _merge_parts_kernel[(heads, num_slots)](
        parts, parts_lse, first_part, own_lengths, out, max_parts, capacity, splits, HEADS=heads,
        HEAD_DIM=head_dim, BLOCK_D=block_d(head_dim), BLOCK_N=block.block_n, BLOCK_P=16,
        num_warps=4,
    )  # fmt: skip
    return out
