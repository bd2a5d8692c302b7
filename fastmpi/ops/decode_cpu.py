"""The cpu backend of `decode_attention`: torch's flash kernel, a call for each group of segments.

Legend as in `decode_attention`; P segments of a run, G slots each, r = Hq / Hkv.

The slots of a segment are folded into the query length, so that no key is copied for each of them.
Results over different tokens are merged by log-sum-exp, once for all segments of a depth: the slots
of such segments are different ones.

Unusual: segments that lie equally far apart in the pool, are of similar length and have as many
slots each are one call, padding masked; a call each costs about 10 microseconds, more than the
work itself where few responses share a prompt. So it pays to lay out prompts that way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastmpi.reference.decode_attention import Segment

if TYPE_CHECKING:
    from fastmpi.ops.decode_attention import DecodeShape

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_LONGEST_OVER_SHORTEST = 1.5  # in a run


def refusal(shape: DecodeShape) -> str:
    """Why this backend cannot run; empty if it can."""
    if shape.device.type != "cpu":
        return f"needs the CPU, not {shape.device.type!r}"
    return "" if shape.dtype in _DTYPES else f"takes a float dtype, not {shape.dtype}"


class Run(NamedTuple):
    """P segments of up to `width` tokens, the first at `start`, the others `spacing` apart.

    mask: (P, 1, 1, width), -inf at padding, or None where there is none.
    """

    start: int
    spacing: int
    num_segments: int
    width: int
    mask: Tensor | None


class Level(NamedTuple):
    """Segments of one depth. slots: (n,) of each run in turn, or None where they are all slots in
    order; sizes: how many of each run."""

    slots: Tensor | None
    sizes: list[int]
    runs: list[Run]


class Prepared:
    """The segments as levels of runs. max_parts is not used."""

    def __init__(self, shape: DecodeShape, max_parts: int) -> None:
        self.shape = shape
        self.levels: list[Level] = []

    def update(self, segments: Sequence[Segment]) -> None:
        """See `DecodePlan.update`."""
        end = max((s.start + s.length for s in segments), default=0)
        self.levels = [self._level(level, end) for level in _levels(segments)]

    def _level(self, segments: list[Segment], end: int) -> Level:
        groups = list(_runs(segments, end))
        slots = [slot for segment in segments for slot in segment.slots]
        in_order = slots == list(range(self.shape.num_slots))
        sizes = [len(group) * len(group[0].slots) for group in groups]
        runs = [self._run(group) for group in groups]
        return Level(None if in_order else torch.tensor(slots), sizes, runs)

    def _run(self, group: list[Segment]) -> Run:
        lengths = torch.tensor([segment.length for segment in group])
        width = int(lengths.max())
        mask = None
        if int(lengths.min()) < width:
            mask = _padding(lengths, width, self.shape.dtype)
        spacing = group[1].start - group[0].start if len(group) > 1 else 0
        return Run(group[0].start, spacing, len(group), width, mask)


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
    grouped = q.view(len(q), len(shared_keys), -1, q.shape[2])  # (B, Hkv, r, D)
    out, lse = _attend_own(grouped, own_keys, own_values, own_lengths, scale)
    for slots, sizes, runs in prepared.levels:
        queries = (grouped if slots is None else grouped[slots]).split(sizes)
        pairs = zip(queries, runs, strict=True)
        parts = [_attend_run(part, shared_keys, shared_values, run, scale) for part, run in pairs]
        more, more_lse = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        if slots is None:
            out, lse = _merge(out, lse, more, more_lse)
        else:
            out[slots], lse[slots] = _merge(out[slots], lse[slots], more, more_lse)
    return out.flatten(1, 2).to(q.dtype)


def _attend_own(
    q: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """q (B, Hkv, r, D) -> out (B, Hkv, r, D), and log-sum-exp (B, Hkv, r), 0 and -inf for slots
    without own tokens, both fp32 at least."""
    least, most = (int(bound) for bound in torch.aminmax(lengths))
    width = max(most, 1)
    mask = None
    if least < width:
        mask = _padding(lengths.clamp(min=1), width, q.dtype)
    keys, values = (x[:, :, :width].transpose(0, 1) for x in (keys, values))
    out, lse = _flash(q, keys, values, mask, scale)
    if least == 0:
        empty = (lengths == 0)[:, None, None]
        out, lse = out.masked_fill(empty[..., None], 0.0), lse.masked_fill(empty, -torch.inf)
    return out.to(lse.dtype), lse


def _attend_run(
    q: Tensor, keys: Tensor, values: Tensor, run: Run, scale: float
) -> tuple[Tensor, Tensor]:
    """q (P * G, Hkv, r, D) -> out (P * G, Hkv, r, D), log-sum-exp (P * G, Hkv, r)."""
    _, kv_heads, group, dim = q.shape
    q = q.view(run.num_segments, -1, kv_heads, group, dim).transpose(1, 2).flatten(2, 3)
    out, lse = _flash(q, _view(keys, run), _view(values, run), run.mask, scale)
    out = out.view(run.num_segments, kv_heads, -1, group, dim).transpose(1, 2)
    lse = lse.view(run.num_segments, kv_heads, -1, group).transpose(1, 2)
    return out.flatten(0, 1), lse.flatten(0, 1)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """q (P, Hkv, R, D), k and v (P, Hkv, L, D), mask (P, 1, 1, L) -> out as q, and (P, Hkv, R)."""
    if mask is not None:
        mask = mask.expand(*q.shape[:3], k.shape[2])
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=mask, scale=scale
    )
    return out, lse


def _merge(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over both sets of tokens, and its log-sum-exp; that of `more` is finite."""
    weight = (more_lse - lse).sigmoid()[..., None]
    return torch.lerp(out, more.to(out.dtype), weight), torch.logaddexp(lse, more_lse)


def _view(pool: Tensor, run: Run) -> Tensor:
    """(Hkv, T, D) -> (P, Hkv, width, D) of the run, without a copy."""
    heads, tokens, _ = pool.stride()
    size = (run.num_segments, pool.shape[0], run.width, pool.shape[2])
    stride = (run.spacing * tokens, heads, tokens, 1)
    return pool.as_strided(size, stride, pool.storage_offset() + run.start * tokens)


def _padding(lengths: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """(P,) -> (P, 1, 1, width): 0 before a length, -inf from it on."""
    past = torch.arange(width) >= lengths[:, None]
    return torch.zeros(past.shape, dtype=dtype).masked_fill_(past, -torch.inf)[:, None, None]


def _levels(segments: Sequence[Segment]) -> list[list[Segment]]:
    """The segments by how many others come before them in any of their slots."""
    depth: dict[int, int] = {}
    levels: list[list[Segment]] = []
    for segment in segments:
        level = max(depth.get(slot, 0) for slot in segment.slots)
        if level == len(levels):
            levels.append([])
        levels[level].append(segment)
        depth.update(dict.fromkeys(segment.slots, level + 1))
    return levels


def _runs(segments: list[Segment], end: int) -> Iterator[list[Segment]]:
    """Cuts segments into runs; no segment of a run, padded, reaches past `end`."""
    run = segments[:1]
    for segment in segments[1:]:
        if not _fits([*run, segment], end):
            yield run
            run = []
        run.append(segment)
    yield run


def _fits(run: list[Segment], end: int) -> bool:
    first, last = run[0], run[-1]
    spacing = run[1].start - first.start
    lengths = [segment.length for segment in run]
    return (
        spacing > 0
        and last.start - run[-2].start == spacing
        and len(last.slots) == len(first.slots)
        and max(lengths) <= _LONGEST_OVER_SHORTEST * min(lengths)
        and last.start + max(lengths) <= end
    )
