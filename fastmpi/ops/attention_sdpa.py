"""The sdpa backend of `forest_attention`: rows in tiles, torch's own attention on each.

Legend as in `forest_attention`. A tile reads the path above its first row and itself, so that work
grows with the depth of the forest and not with its width. Tiles are cut where branches are, as far
as they are long enough: rows of two branches in one tile read each other's keys for nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why this backend cannot run; empty, since it always can."""
    return ""


# What one more tile costs, in pairs of query and key that torch's CPU kernel does meanwhile.
TILE_COST = 4096
MAX_HEIGHT = 128


@dataclass(frozen=True, eq=False)
class Tiles:
    """Query rows in tiles, and for each tile the rows it reads.

    heights: query rows of each tile. asked: of each, whether its output is read at all; what
    follows is of those alone. keys: the tiles' key rows, concatenated; num_keys: how many each tile
    has. masks: per tile (rows, keys) bool.
    """

    heights: list[int]
    asked: list[bool]
    keys: Tensor
    num_keys: list[int]
    masks: list[Tensor]


def prepare(subtree_end: Tensor, unread: np.ndarray | None = None) -> Tiles:
    """The tiles of a forest. unread: (T,) bool, rows whose output nobody reads: it will be 0."""
    bounds = tile_bounds(subtree_end.cpu().numpy())
    asked = [True] * (len(bounds) - 1)
    if unread is not None:
        bounds = sorted({*bounds, *(np.flatnonzero(np.diff(unread)) + 1).tolist()})
        asked = [not unread[start] for start in bounds[:-1]]
    rows = torch.arange(len(subtree_end), device=subtree_end.device)
    keys, masks = [], []
    for (start, stop), wanted in zip(pairwise(bounds), asked, strict=True):
        if not wanted:
            continue
        above = torch.nonzero(subtree_end[:start] > start).squeeze(1)
        inside = rows[start:stop]
        seen = torch.cat([above, inside])
        below = inside[:, None] < subtree_end[seen][None, :]
        masks.append(below & (seen[None, :] <= inside[:, None]))
        keys.append(seen)
    heights = [stop - start for start, stop in pairwise(bounds)]
    return Tiles(heights, asked, torch.cat(keys or [rows]), [len(seen) for seen in keys], masks)


def tile_bounds(subtree_end: np.ndarray) -> list[int]:
    """Where tiles begin, and T: whole branches, short ones together, long ones in pieces.

    A piece joins the tile before it where the pairs that this adds cost less than a tile of its
    own. Pieces grow with T, so that the keys of all tiles stay near 32 T at worst.
    """
    total = len(subtree_end)
    height = max(MAX_HEIGHT, total // 64)
    # Rows of one branch end together: each is the only child of the one before it.
    branches = np.flatnonzero(np.diff(subtree_end, prepend=-1)).tolist()
    ends_before = np.bincount(subtree_end, minlength=total + 1).cumsum()
    depth = (np.arange(total) - ends_before[:total]).tolist()
    bounds: list[int] = []
    for start, stop in pairwise([*branches, total]):
        size = math.ceil((stop - start) / math.ceil((stop - start) / height))
        for piece in range(start, stop, size):
            end = min(piece + size, stop)
            if not bounds or not _joins(bounds[-1], piece, end, depth, height):
                bounds.append(piece)
    return [*bounds, total]


def _joins(start: int, piece: int, stop: int, depth: list[int], height: int) -> bool:
    """Whether rows piece:stop should be read in one tile with rows start:piece."""
    tall, before, after = stop - start, piece - start, stop - piece
    apart = before * (depth[start] + before) + after * (depth[piece] + after)
    return tall <= height and tall * (depth[start] + tall) - apart <= TILE_COST


def attend(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """(T, Hq, D), (T, Hkv, D) twice -> (T, Hq, D)."""
    if not tiles.masks:
        return torch.empty_like(q)
    if len(tiles.heights) > 1:  # one tile reads all rows as they are
        k, v = k.index_select(0, tiles.keys), v.index_select(0, tiles.keys)
    parts = zip(k.split(tiles.num_keys), v.split(tiles.num_keys), tiles.masks, strict=True)
    return torch.cat(
        [
            _attend_tile(rows, *next(parts), scale) if asked else torch.zeros_like(rows)
            for rows, asked in zip(q.split(tiles.heights), tiles.asked, strict=True)
        ]
    )


def _attend_tile(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, H, L, D)
    gqa = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=gqa)
    return out.squeeze(0).transpose(0, 1)
