"""Tile sizes of the `forest_attention` kernels, by architecture, head size and width of a number.

Unusual: a table and no run-time tuning, since tuning runs a kernel many times (the atomic sums of
the keys' gradients too) and starts anew on each machine. Every entry compiles without spills.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastmpi.kernels.target import architecture


class Tile(NamedTuple):
    """block_m query rows by block_n keys, and how a program runs."""

    block_m: int
    block_n: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """Of the three kernels."""

    forward: Tile
    query_grad: Tile
    key_grad: Tile


_INTERPRETED = Tiles(Tile(32, 16, 1, 1), Tile(32, 16, 1, 1), Tile(16, 32, 1, 1))

# By architecture, then by the largest head size. Those of 80 fit the shared memory of smaller GPUs.
# On Hopper the compiler asks for the next block after the last product of a step: with two stages
# the next step would wait at once for what was just asked for, with three it has a step's time.
_NARROW = {
    80: {
        64: Tiles(Tile(128, 64, 4, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
        128: Tiles(Tile(128, 32, 8, 3), Tile(128, 32, 8, 2), Tile(32, 64, 8, 3)),
        256: Tiles(Tile(64, 32, 8, 2), Tile(64, 16, 8, 2), Tile(32, 32, 8, 2)),
    },
    90: {
        64: Tiles(Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
        128: Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
        256: Tiles(Tile(128, 32, 8, 3), Tile(128, 32, 8, 3), Tile(16, 64, 8, 3)),
    },
    100: {
        64: Tiles(Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
        128: Tiles(Tile(128, 64, 8, 3), Tile(128, 64, 8, 3), Tile(64, 128, 8, 3)),
        256: Tiles(Tile(128, 64, 8, 2), Tile(128, 32, 8, 2), Tile(32, 64, 8, 2)),
    },
}
# fp32 multiplies without tensor cores, in registers: small tiles
_WIDE = {
    64: Tiles(Tile(64, 32, 8, 1), Tile(32, 32, 8, 1), Tile(16, 32, 8, 1)),
    128: Tiles(Tile(32, 32, 8, 1), Tile(16, 16, 8, 1), Tile(16, 32, 8, 1)),
    256: Tiles(Tile(32, 16, 8, 1), Tile(16, 16, 8, 2), Tile(16, 16, 8, 1)),
}


def tiles(head_dim: int, dtype: torch.dtype) -> Tiles:
    """What the kernels use for heads of `head_dim` on the GPU at hand."""
    arch = _architecture()
    if not arch:
        return _INTERPRETED
    table = _WIDE if dtype == torch.float32 else _NARROW[_family(arch)]
    return table[min(size for size in table if size >= head_dim)]


@torch.compiler.assume_constant_result
def _architecture() -> int:
    """A constant to torch.compile, which does not look into Triton's drivers."""
    return architecture()


def _family(arch: int) -> int:
    """The key of the table: 80 is all that is neither Hopper nor a Blackwell for data centres."""
    return {9: 90, 10: 100, 11: 100}.get(arch // 10, 80)
