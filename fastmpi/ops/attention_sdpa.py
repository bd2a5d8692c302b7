"""The sdpa backend of `forest_attention`: rows in tiles, torch's own attention on each.

Legend as in `forest_attention`. A tile reads the path above its first row and itself, so that work
grows with the depth of the forest and not with its width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why this backend cannot run; empty, since it always can."""
    return ""


@dataclass(frozen=True, eq=False)
class Tiles:
    """Query rows in tiles of `height`, and for each tile the rows it reads.

    keys: the tiles' key rows, concatenated; num_keys: how many each tile has.
    masks: per tile (rows, keys) bool.
    """

    height: int
    keys: Tensor
    num_keys: list[int]
    masks: list[Tensor]


def prepare(subtree_end: Tensor) -> Tiles:
    """The tiles of a forest."""
    total = len(subtree_end)
    height = max(128, total // 32)  # the keys of all tiles stay near 16 T at worst
    rows = torch.arange(total, device=subtree_end.device)
    keys, masks = [], []
    for start in range(0, total, height):
        above = torch.nonzero(subtree_end[:start] > start).squeeze(1)
        inside = rows[start : start + height]
        seen = torch.cat([above, inside])
        below = inside[:, None] < subtree_end[seen][None, :]
        masks.append(below & (seen[None, :] <= inside[:, None]))
        keys.append(seen)
    return Tiles(height, torch.cat(keys or [rows]), [len(seen) for seen in keys], masks)


def attend(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """(T, Hq, D), (T, Hkv, D) twice -> (T, Hq, D)."""
    if not tiles.masks:
        return torch.empty_like(q)
    if len(tiles.masks) > 1:  # one tile reads all rows as they are
        k, v = k.index_select(0, tiles.keys), v.index_select(0, tiles.keys)
    parts = zip(
        q.split(tiles.height),
        k.split(tiles.num_keys),
        v.split(tiles.num_keys),
        tiles.masks,
        strict=True,
    )
    return torch.cat([_attend_tile(*part, scale) for part in parts])


def _attend_tile(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, H, L, D)
    gqa = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=gqa)
    return out[0].transpose(0, 1)
