"""The flash backend of `forest_attention`: a cascade of segment attentions, merged by log-sum-exp.

Legend as in `forest_attention`. A *node* is a longest run of rows of which each is the only child
of the one before; its *descendants* are the rows below its last. The first call is causal
attention inside every node. Each further call belongs to one depth: the descendants of all nodes
of that depth read those nodes' keys, unmasked. A forest of prompts with their responses takes two
calls, however many prompts and responses there are, and no key or value is repeated.

With m the largest and Z the sum of a softmax, out = sum(exp(s - m) v) / Z and lse = m + log Z:
parts over disjoint keys merge into `sum(exp(lse_i - lse) out_i)`, lse = log(sum(exp(lse_i))). The
backward of softmax needs nothing of the other keys but out and lse, so that each call, given the
merged ones, yields its own keys' gradients and its share of the queries', and the shares add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmpi.ops.attention_segments import (
    Segments,
    attend_segments,
    attend_segments_backward,
    refusal,
)

__all__ = ["Cascade", "attend", "prepare", "refusal"]

Int64 = NDArray[np.int64]


class Rows(NamedTuple):
    """Rows of the forest: the `length` from `first` on, or those that `index` lists if it does."""

    first: int
    length: int
    index: Tensor  # (length,) or (0,) int64

    def of(self, x: Tensor) -> Tensor:
        """These rows of x (T, ...): a view of a range, a copy of a list."""
        return x.index_select(0, self.index) if len(self.index) else self._range(x)

    def put_back(self, x: Tensor, values: Tensor) -> None:
        """Makes x hold what `values`, which is `of(x)`, has become."""
        if len(self.index):
            x.index_copy_(0, self.index, values)

    def add(self, x: Tensor, values: Tensor) -> None:
        """Adds `values` to these rows of x."""
        if len(self.index):
            x.index_add_(0, self.index, values.to(x.dtype))
        else:
            self._range(x).add_(values)

    def _range(self, x: Tensor) -> Tensor:
        return x.narrow(0, self.first, self.length)


class Call(NamedTuple):
    """One segment attention: which rows ask, which rows answer, and how they are cut."""

    queries: Rows
    keys: Rows
    segments: Segments


@dataclass(frozen=True, eq=False)
class Cascade:
    """The calls of a forest, as an operator of torch takes them: tensors and integers.

    Per call, tensors: indices of the queries and of the keys, cumulative lengths of both;
    integers: first query and number of queries, first key and number of keys, longest segment
    of both.
    """

    tensors: list[Tensor]
    integers: list[int]


def prepare(subtree_end: Tensor) -> Cascade:
    """The cascade of a forest; its shape is read on the host, once a batch."""
    starts, stops, ends, depths = _nodes(subtree_end.cpu().numpy().astype(np.int64))
    cascade = Cascade([], [])
    if len(starts):
        _append(cascade, (starts, stops), (starts, stops), subtree_end.device)
    inner = stops < ends
    for depth in range(int(depths[inner].max(initial=-1)) + 1):
        chosen = inner & (depths == depth)
        below, own = (stops[chosen], ends[chosen]), (starts[chosen], stops[chosen])
        _append(cascade, below, own, subtree_end.device)
    return cascade


def _nodes(end: Int64) -> tuple[Int64, Int64, Int64, Int64]:
    """Of each node: its first row, the row after its last, the end of its subtree, its depth.

    A row is the only child of the row before iff both subtrees end together.
    """
    starts = np.flatnonzero(np.diff(end, prepend=-1))
    stops = np.append(starts[1:], len(end))[: len(starts)]
    ends = end[starts]
    return starts, stops, ends, _depths(starts, ends)


def _depths(starts: Int64, ends: Int64) -> Int64:
    """How many nodes enclose each. `ValueError` where a subtree leaves the one around it: rows of
    one depth would then be asked for twice in one call."""
    depths, around = [], [int(ends.max(initial=0))]  # ends of the subtrees that we are in
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        while around[-1] <= start:
            around.pop()
        if end > around[-1]:
            raise ValueError(
                f"subtree_end is no forest: row {start} ends its subtree at {end}, after that of "
                f"a row above it at {around[-1]}"
            )
        depths.append(len(around) - 1)
        around.append(end)
    return np.asarray(depths, np.int64)


def _append(
    cascade: Cascade,
    queries: tuple[Int64, Int64],
    keys: tuple[Int64, Int64],
    device: torch.device,
) -> None:
    """Adds the call in which the rows of range s of `queries` read those of range s of `keys`."""
    indices, cumulative, spans, longest = [], [], [], []
    for first, stop in (queries, keys):
        lengths = stop - first
        ends = lengths.cumsum()
        offsets = np.repeat(first - ends + lengths, lengths)
        one_range = bool((first[1:] == stop[:-1]).all())
        indices.append(offsets[:0] if one_range else offsets + np.arange(ends[-1]))
        cumulative.append(np.append(0, ends).astype(np.int32))
        spans += [int(first[0]), int(ends[-1])]
        longest.append(int(lengths.max()))
    cascade.tensors.extend(torch.from_numpy(x).to(device) for x in indices + cumulative)
    cascade.integers.extend(spans + longest)


def _calls(tensors: Sequence[Tensor], integers: Sequence[int]) -> list[Call]:
    """The calls of a `Cascade`; only the first, inside the nodes, is causal."""
    calls = []
    for c in range(len(tensors) // 4):
        index, key_index, cu_queries, cu_keys = tensors[4 * c : 4 * c + 4]
        first, length, first_key, num_keys, longest, longest_keys = integers[6 * c : 6 * c + 6]
        queries, keys = Rows(first, length, index), Rows(first_key, num_keys, key_index)
        segments = Segments(cu_queries, cu_keys, longest, longest_keys, causal=c == 0)
        calls.append(Call(queries, keys, segments))
    return calls


def attend(q: Tensor, k: Tensor, v: Tensor, cascade: Cascade, scale: float) -> Tensor:
    """(T, Hq, D), (T, Hkv, D) twice -> (T, Hq, D)."""
    if scale < 0:  # flash attention finds the highest score before it scales
        q, scale = -q, -scale
    return _cascade_attention(q, k, v, cascade.tensors, cascade.integers, scale)[0]


@torch.library.custom_op("fastmpi::cascade_attention", mutates_args=())
def _cascade_attention(
    q: Tensor, k: Tensor, v: Tensor, tensors: list[Tensor], integers: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    """-> out (T, Hq, D) and log-sum-exp (Hq, T), in float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    if not tensors:
        return q.new_empty(q.shape), q.new_empty(q.shape[1], len(q), dtype=wide)
    inside, *levels = _calls(tensors, integers)
    out, lse = attend_segments(q, k, v, inside.segments, scale)
    if levels:
        out, lse = out.to(wide), lse.t().contiguous()  # rows first, as the rows are chosen
        for call in levels:
            _merge(out, lse, call, q, k, v, scale)
        lse = lse.t()
    return out.to(q.dtype).contiguous(), lse.contiguous()


def _merge(
    out: Tensor, lse: Tensor, call: Call, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> None:
    """Lets the queries of `call` read its keys too. out: (T, Hq, D), lse: (T, Hq), in place."""
    queries, keys, segments = call
    more, more_lse = attend_segments(queries.of(q), keys.of(k), keys.of(v), segments, scale)
    more_lse = more_lse.t()
    merged, merged_lse = queries.of(out), queries.of(lse)
    share = torch.sigmoid(more_lse - merged_lse)  # exp(more) / (exp(merged) + exp(more))
    queries.put_back(out, merged.lerp_(more.to(out.dtype), share[..., None]))
    queries.put_back(lse, torch.logaddexp(merged_lse, more_lse, out=merged_lse))


@_cascade_attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, tensors: list[Tensor], integers: list[int], scale: float
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[1], q.shape[0], dtype=wide)


@torch.library.custom_op("fastmpi::cascade_attention_backward", mutates_args=())
def _cascade_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    tensors: list[Tensor],
    integers: list[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """-> dq, dk, dv. The queries' shares are summed wide; a key gets one or two, rounded once."""
    if not tensors:
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    inside, *levels = _calls(tensors, integers)
    gradients = attend_segments_backward(grad_out, q, k, v, out, lse, inside.segments, scale)
    dq, dk, dv = gradients
    if levels:
        dq = dq.to(torch.promote_types(q.dtype, torch.float32))
    for queries, keys, segments in levels:
        merged = queries.of(out), queries.of(lse.t()).t()
        shares = attend_segments_backward(
            queries.of(grad_out), queries.of(q), keys.of(k), keys.of(v), *merged, segments, scale
        )
        for rows, total, share in zip((queries, keys, keys), (dq, dk, dv), shares, strict=True):
            rows.add(total, share)
    return dq.to(q.dtype).contiguous(), dk.contiguous(), dv.contiguous()


@_cascade_attention_backward.register_fake
def _(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, tensors, integers, scale = inputs
    ctx.save_for_backward(q, k, v, *output, *tensors)
    ctx.integers, ctx.scale = integers, scale
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Any, ...]:
    q, k, v, out, lse, *tensors = ctx.saved_tensors
    gradients = _cascade_attention_backward(
        grad_out, q, k, v, out, lse, tensors, ctx.integers, ctx.scale
    )
    return (*gradients, [None] * len(tensors), None, None)


_cascade_attention.register_autograd(_backward, setup_context=_setup_context)
