"""Attention over a prefix forest. Twin: `fastmpi.reference.forest_attention`.

Legend: T rows of the forest in depth-first order, Hq query heads, Hkv key and value heads, D head
dimension. Row q sees row k iff `k <= q < subtree_end[k]`: k lies on q's own path.

Unusual: what depends on the forest alone is a *plan*, made once a batch and used by every layer.
The sdpa plan cuts the rows into tiles; a tile reads the path above its first row and itself, so
that work grows with the depth of the forest and not with its width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastmpi.reference.forest_attention import forest_attention as reference_forest_attention

BACKENDS = ("sdpa", "flex", "reference")
_FLEX_BLOCK = 128
_FLEX_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class ForestPlan:
    """What one backend prepared for one forest: `Tiles`, a flex `BlockMask`, or nothing."""

    subtree_end: Tensor
    backend: str
    prepared: Any


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


def forest_attention(
    q: Tensor,  # (T, Hq, D)
    k: Tensor,  # (T, Hkv, D)
    v: Tensor,  # (T, Hkv, D)
    subtree_end: Tensor,  # (T,) int32
    *,
    scale: float | None = None,
    backend: str | None = None,
    plan: ForestPlan | None = None,
) -> Tensor:
    """`softmax(scale * q @ k.T + log(mask)) @ v` for each head, `mask[q, k] = k <= q < end[k]`.

    Without the (T, T) matrix, forward and backward. Query head h reads key and value head
    `h // (Hq // Hkv)`. Returns (T, Hq, D) in q's dtype; `scale` is `D ** -0.5` unless given.

    backend: "sdpa" (any device), "flex" (CUDA), "reference", or None for flex on CUDA where it
    can take the inputs and sdpa elsewhere. plan: of `plan_forest` for this forest and backend;
    made here if None. `ValueError` for shapes, dtypes or devices that do not fit and for a
    backend that is unknown or cannot run here, with the reason.
    """
    _check_inputs(q, k, v, subtree_end)
    if plan is None:
        plan = plan_forest(subtree_end, backend or default_backend(q))
    elif plan.subtree_end is not subtree_end or backend not in (None, plan.backend):
        raise ValueError("the plan was made for another forest or another backend")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if plan.backend == "reference":
        return reference_forest_attention(q, k, v, subtree_end, scale=scale)
    if plan.backend == "sdpa":
        return _sdpa(q, k, v, plan.prepared, scale)
    _check_flex(q)
    return _flex(q, k, v, plan.prepared, scale, _compiled_flex())


def default_backend(q: Tensor) -> str:
    """The backend that serves q: "flex" on CUDA where it can take it, "sdpa" elsewhere."""
    return "sdpa" if _flex_refusal(q.device, q.dtype, q.shape[-1]) else "flex"


def plan_forest(subtree_end: Tensor, backend: str) -> ForestPlan:
    """Prepares `backend` for one forest. `ValueError` for a bad forest or backend."""
    _check_forest(subtree_end)
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; known: {', '.join(BACKENDS)}")
    if backend == "reference":
        return ForestPlan(subtree_end, backend, None)
    if backend == "sdpa":
        return ForestPlan(subtree_end, backend, _tiles(subtree_end))
    return ForestPlan(subtree_end, backend, _block_mask(subtree_end))


def _tiles(subtree_end: Tensor) -> Tiles:
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


def _sdpa(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
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
    return torch.cat([_sdpa_tile(*part, scale) for part in parts])


def _sdpa_tile(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, H, L, D)
    gqa = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=gqa)
    return out[0].transpose(0, 1)


def _block_mask(subtree_end: Tensor) -> Any:
    """The flex BlockMask, from the ends alone: the dense mask is never built.

    Rows are padded to whole blocks, so that the compiled kernel sees few lengths; a padding row
    sees itself, since a softmax over nothing is NaN.
    """
    from torch.nn.attention.flex_attention import BlockMask

    total = len(subtree_end)
    padding = torch.arange(total, -(-total // _FLEX_BLOCK) * _FLEX_BLOCK, device=subtree_end.device)
    end = torch.cat([subtree_end, padding.to(torch.int32) + 1])
    ends = end.view(-1, _FLEX_BLOCK)  # of the keys of each block
    block = torch.arange(len(ends), device=end.device)
    first_query = block[:, None] * _FLEX_BLOCK
    touched = (block[None] <= block[:, None]) & (ends.amax(1)[None] > first_query)
    full = (block[None] < block[:, None]) & (ends.amin(1)[None] >= first_query + _FLEX_BLOCK)
    num_partial, partial = _listed(touched & ~full)
    num_full, fully = _listed(full)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[key])

    return BlockMask.from_kv_blocks(
        num_partial, partial, num_full, fully, BLOCK_SIZE=_FLEX_BLOCK, mask_mod=sees
    )


def _listed(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Number and indices of the True columns of each row, as BlockMask wants them."""
    order = dense.int().argsort(dim=1, descending=True, stable=True)
    return dense.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, attend: Any) -> Tensor:
    total = len(q)
    q, k, v = (_padded(x).transpose(0, 1)[None] for x in (q, k, v))  # (1, H, L, D)
    out = attend(q, k, v, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out[0].transpose(0, 1)[:total]


def _padded(x: Tensor) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, 0, 0, -len(x) % _FLEX_BLOCK))


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _flex_refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why flex cannot run; empty if it can."""
    if device.type != "cuda":
        return f"needs a CUDA device, not {device.type!r}"
    if dtype not in _FLEX_DTYPES:
        return f"takes float32, bfloat16 or float16, not {dtype}"
    return "" if head_dim >= 16 else f"needs heads of 16 or more, not {head_dim}"


def _check_flex(q: Tensor) -> None:
    if refusal := _flex_refusal(q.device, q.dtype, q.shape[-1]):
        raise ValueError(f"backend 'flex' {refusal}")


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, subtree_end: Tensor) -> None:
    if not (q.ndim == k.ndim == v.ndim == 3) or k.shape != v.shape:
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        raise ValueError(f"q is (T, Hq, D), k and v are (T, Hkv, D), not {shapes}")
    if q.shape[0] != k.shape[0] or q.shape[2] != k.shape[2] or q.shape[1] % k.shape[1]:
        raise ValueError(f"q {tuple(q.shape)} does not fit k and v {tuple(k.shape)}")
    if not q.dtype.is_floating_point or not (q.dtype == k.dtype == v.dtype):
        raise ValueError(f"q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}: need one float")
    if subtree_end.shape != q.shape[:1]:
        raise ValueError(f"subtree_end is ({q.shape[0]},), not {tuple(subtree_end.shape)}")
    if len({x.device for x in (q, k, v, subtree_end)}) > 1:
        raise ValueError("q, k, v and subtree_end are on different devices")


def _check_forest(subtree_end: Tensor) -> None:
    if subtree_end.ndim != 1 or subtree_end.dtype != torch.int32:
        shape = tuple(subtree_end.shape)
        raise ValueError(f"subtree_end is (T,) int32, not {shape} {subtree_end.dtype}")
    total = len(subtree_end)
    rows = torch.arange(total, device=subtree_end.device)
    if not bool(((subtree_end > rows) & (subtree_end <= total)).all()):
        raise ValueError("subtree_end[k] lies after k and at most at T")
