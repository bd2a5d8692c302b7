"""Tile sizes of the `decode_attention` kernels, by architecture, head size and width of a number.

Unusual: as for `forest_attention` a table and no run-time tuning. Every entry compiles without
spills; none was chosen by a measurement yet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastmpi.kernels.target import architecture

MAX_GROUP = 32  # query heads of a key head: a tile holds at least one slot


class Tile(NamedTuple):
    """block_m query rows (slots times the query heads of a key head) by block_n keys."""

    block_m: int
    block_n: int
    warps: int
    stages: int


_INTERPRETED = Tile(32, 16, 1, 1)

# By architecture, then by the largest head size. 64 rows are the fewest that Hopper's and
# Blackwell's matrix units take. Two programs fit a multiprocessor, so that one loads while the
# other multiplies, and each has two blocks on their way.
_NARROW = {
    80: {64: Tile(64, 64, 4, 3), 128: Tile(64, 32, 4, 3), 256: Tile(32, 32, 4, 2)},
    90: {64: Tile(64, 64, 4, 3), 128: Tile(64, 64, 4, 3), 256: Tile(64, 32, 8, 2)},
    100: {64: Tile(64, 64, 4, 3), 128: Tile(64, 32, 4, 3), 256: Tile(32, 32, 4, 2)},
}
# fp32 multiplies without tensor cores, in registers: small tiles
_WIDE = {64: Tile(32, 32, 4, 1), 128: Tile(32, 16, 4, 1), 256: Tile(32, 16, 8, 1)}


def tile(head_dim: int, dtype: torch.dtype) -> Tile:
    """What the kernel uses for heads of `head_dim` on the GPU at hand."""
    arch = architecture()
    if not arch:
        return _INTERPRETED
    table = _WIDE if dtype == torch.float32 else _NARROW[_family(arch)]
    return table[min(size for size in table if size >= head_dim)]


def _family(arch: int) -> int:
    """The key of the table: 80 is all that is neither Hopper nor a Blackwell for data centres."""
    return {9: 90, 10: 100, 11: 100}.get(arch // 10, 80)
