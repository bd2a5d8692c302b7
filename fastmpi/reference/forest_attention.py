"""Attention under the forest rule, in plain torch: the whole (T, T) matrix, masked.

Legend: T rows of the forest, Hq query heads, Hkv key and value heads, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor


def forest_mask(subtree_end: Tensor) -> Tensor:
    """(T, T) bool: row q sees column k iff `k <= q < subtree_end[k]`. subtree_end: (T,) int32."""
    rows = torch.arange(len(subtree_end), device=subtree_end.device)
    return (rows[None, :] <= rows[:, None]) & (rows[:, None] < subtree_end[None, :])


def forest_attention(
    q: Tensor,  # (T, Hq, D)
    k: Tensor,  # (T, Hkv, D)
    v: Tensor,  # (T, Hkv, D)
    subtree_end: Tensor,  # (T,) int32
    *,
    scale: float | None = None,
) -> Tensor:
    """`softmax(scale * q @ k.T + log(mask)) @ v` for each head -> (T, Hq, D) in q's dtype.

    Query head h reads key and value head `h // (Hq // Hkv)`. Computed in fp32, in fp64 where the
    inputs are. `scale` is `D ** -0.5` unless given.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    groups = q.shape[1] // k.shape[1]
    keys, values = (x.to(wide).repeat_interleave(groups, dim=1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("qhd,khd->hqk", q.to(wide), keys) * scale
    scores = scores.masked_fill(~forest_mask(subtree_end), float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), values).to(q.dtype)
