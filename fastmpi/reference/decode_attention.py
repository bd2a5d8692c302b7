"""Attention of one new token each of many responses, slot by slot in plain torch.

Legend: B slots, one running response each or none, T tokens of the shared pool, C tokens that a
slot has room for, Hq query heads, Hkv key and value heads, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Segment(NamedTuple):
    """Tokens `[start, start + length)` of the pool, and the slots whose responses begin with them.

    A slot reads its segments in the order of the list that they stand in, which is the order of
    its path (policy, prompt). Order changes no result but by rounding.
    """

    start: int
    length: int
    slots: Sequence[int]


def decode_attention(
    q: Tensor,  # (B, Hq, D)
    shared_keys: Tensor,  # (Hkv, T, D)
    shared_values: Tensor,  # (Hkv, T, D)
    own_keys: Tensor,  # (Hkv, B, C, D)
    own_values: Tensor,  # (Hkv, B, C, D)
    own_lengths: Tensor,  # (B,) int32
    segments: Sequence[Segment],
    *,
    scale: float | None = None,
) -> Tensor:
    """`softmax(scale * q @ keys.T) @ values` for each slot and head -> (B, Hq, D) in q's dtype.

    A slot's keys are those of its segments and its own first `own_lengths[slot]`; without any its
    output is 0. Query head h reads key and value head `h // (Hq // Hkv)`. Computed in fp32, in fp64
    where the inputs are. `scale` is `D ** -0.5` unless given.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out = torch.zeros_like(q)
    for slot, length in enumerate(own_lengths.tolist()):
        places = [slice(s.start, s.start + s.length) for s in segments if slot in s.slots]
        keys = [*(shared_keys[:, place] for place in places), own_keys[:, slot, :length]]
        values = [*(shared_values[:, place] for place in places), own_values[:, slot, :length]]
        out[slot] = _attend(q[slot], torch.cat(keys, 1), torch.cat(values, 1), scale)
    return out


def _attend(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """(Hq, D), (Hkv, N, D) twice -> (Hq, D); 0 where N is."""
    wide = torch.promote_types(q.dtype, torch.float32)
    groups = q.shape[0] // keys.shape[0]
    keys, values = (x.to(wide).repeat_interleave(groups, dim=0) for x in (keys, values))
    scores = torch.einsum("hd,hnd->hn", q.to(wide), keys) * scale
    return torch.einsum("hn,hnd->hd", scores.softmax(-1), values).to(q.dtype)
