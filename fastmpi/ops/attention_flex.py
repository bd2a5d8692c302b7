"""The flex backend of `forest_attention`: torch's FlexAttention under a block mask.

Legend as in `forest_attention`. It recompiles when the number of blocks changes in ways that its
dynamic shapes do not cover; kept for comparison, and where Triton kernels of ours cannot run.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

_FLEX_BLOCK = 128
_FLEX_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Why this backend cannot run; empty if it can."""
    if device.type != "cuda":
        return f"needs a CUDA device, not {device.type!r}"
    if dtype not in _FLEX_DTYPES:
        return f"takes float32, bfloat16 or float16, not {dtype}"
    return "" if head_dim >= 16 else f"needs heads of 16 or more, not {head_dim}"


def prepare(subtree_end: Tensor) -> Any:
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


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, flex_attention: Any = None
) -> Tensor:
    """(T, Hq, D), (T, Hkv, D) twice -> (T, Hq, D)."""
    flex_attention = flex_attention or _compiled_flex()
    total = len(q)
    q, k, v = (_padded(x).transpose(0, 1)[None] for x in (q, k, v))  # (1, H, L, D)
    gqa = q.shape[1] != k.shape[1]
    out = flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=gqa)
    return out[0].transpose(0, 1)[:total]


def _padded(x: Tensor) -> Tensor:
    """x with whole blocks of rows; `pad` by nothing would copy it."""
    missing = -len(x) % _FLEX_BLOCK
    return torch.nn.functional.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
