"""The patch embedding from bytes: a matrix product that converts its pixels in registers.

Legend: N patches, K = C * p * p pixels of a patch, E embedding. Weight and bias are folded: they
take raw pixels less 128, which every float type holds exactly.

K is compiled in: a tower has one, and the compiler then sees how rows of 588 bytes are aligned.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmpi.kernels.target import architecture


class Tiles(NamedTuple):
    """Blocks of patches, embeddings and pixels; warps and pipeline stages of a program."""

    patches: int
    embeddings: int
    pixels: int
    warps: int
    stages: int


INTERPRETED = Tiles(64, 64, 128, 4, 1)
FP32 = Tiles(64, 64, 32, 4, 2)  # exact products have no tensor cores
TILES = {80: Tiles(128, 64, 64, 4, 3), 90: Tiles(128, 128, 64, 8, 3)}
GROUP_BLOCKS = 8  # blocks of patches that share weights in L2


@triton.jit(do_not_specialize=["num_patches"])
def _patch_embed(
    pixels, weight, bias, out, num_patches, embedding,
    K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    row_block, column_block = tl.swizzle2d(
        tl.program_id(0) // tl.cdiv(embedding, BLOCK_E),
        tl.program_id(0) % tl.cdiv(embedding, BLOCK_E),
        tl.cdiv(num_patches, BLOCK_N), tl.cdiv(embedding, BLOCK_E), GROUP,
    )  # fmt: skip
    row = row_block * BLOCK_N + tl.arange(0, BLOCK_N)
    column = column_block * BLOCK_E + tl.arange(0, BLOCK_E)
    # Rows beyond the end repeat the last one: their results are not stored.
    row_start = tl.minimum(row, num_patches - 1).to(tl.int64) * K
    column_start = tl.minimum(column, embedding - 1) * K
    total = tl.zeros([BLOCK_N, BLOCK_E], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (k < K)[None, :]
        pixel = tl.load(pixels + row_start[:, None] + k[None, :], mask=inside, other=0)
        part = tl.load(weight + column_start[:, None] + k[None, :], mask=inside, other=0.0)
        centred = (pixel.to(tl.float32) - 128.0).to(weight.dtype.element_ty)
        total = tl.dot(centred, part.T, total, input_precision="ieee")
    total += tl.load(bias + column, mask=column < embedding, other=0.0)[None, :]
    place = row.to(tl.int64)[:, None] * embedding + column[None, :]
    valid = (row < num_patches)[:, None] & (column < embedding)[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=valid)


def patch_embed(
    patches: Tensor,  # (N, K) uint8
    weight: Tensor,  # (E, K) folded; float32, bfloat16 or float16
    bias: Tensor,  # (E,) folded, float32
) -> Tensor:
    """``(patches - 128) @ weight.T + bias``, (N, E) in the weight's dtype, summed in float32."""
    num_patches, pixels = patches.shape
    embedding = len(weight)
    out = weight.new_empty(num_patches, embedding)
    if not out.numel():
        return out
    tiles = tiles_for(weight.dtype)
    grid = (triton.cdiv(num_patches, tiles.patches) * triton.cdiv(embedding, tiles.embeddings),)
    _patch_embed[grid](
        patches.contiguous(), weight.contiguous(), bias.contiguous(), out, num_patches, embedding,
        K=pixels, BLOCK_N=tiles.patches, BLOCK_E=tiles.embeddings, BLOCK_K=tiles.pixels,
        GROUP=GROUP_BLOCKS, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out


def tiles_for(dtype: torch.dtype) -> Tiles:
    """The shipped configuration for this GPU."""
    known = architecture()
    if not known:
        return INTERPRETED
    if dtype == torch.float32:
        return FP32
    return TILES[90 if known >= 90 else 80]
