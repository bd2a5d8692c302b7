"""Which blocks of keys a block of queries reads, and in what order: the plan of `forest_attention`.

Legend: T rows, cut into query blocks of `block_m` rows and key blocks of `block_n`. A query block
sees a key block fully (every query every key: no mask is needed), partly, or not at all; the
largest and smallest `subtree_end` of the key block decide. Row q sees row k iff
`k <= q < subtree_end[k]`.

Unusual: everything is made on the device from few torch operations, and no size depends on the
forest but on T alone, so that a plan waits for nothing and a new forest recompiles nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

HEADER = 3  # numbers before a schedule's list of blocks


def visibility(subtree_end: Tensor, block_m: int, block_n: int) -> Tensor:
    """(query blocks, key blocks) int8: 0 fully seen, 1 partly, 2 not at all.

    A last query block that reaches past T sees nothing fully, nor is a last key block fully seen:
    rows past T exist only where there is a mask.
    """
    ends = torch.nn.functional.pad(subtree_end, (0, -len(subtree_end) % block_n)).view(-1, block_n)
    first_key = torch.arange(len(ends), device=ends.device) * block_n
    first = torch.arange(-(-len(subtree_end) // block_m), device=ends.device)[:, None] * block_m
    last = first + block_m - 1
    seen = (first_key <= last) & (ends.amax(1) > first)
    fully = (first_key + block_n - 1 <= first) & (ends.amin(1) > last)
    return 2 - seen.to(torch.int8) - fully.to(torch.int8)


def listed(seen: Tensor) -> Tensor:
    """(R, C) of `visibility` -> (R, 3 + C + 1) int32 [row, fully, seen, its columns..., spare].

    `seen` counts fully and partly seen columns; those fully seen come first. The spare entry lets a
    kernel load the next column ahead of time without asking whether there is one.
    """
    row = torch.arange(len(seen), device=seen.device)[:, None]
    counts = torch.stack([(seen == 0).sum(1), (seen < 2).sum(1)], dim=1)
    columns = seen.argsort(dim=1, stable=True)
    return torch.cat([row, counts, columns, row * 0], dim=1).to(torch.int32)


def query_schedule(subtree_end: Tensor, block_m: int, block_n: int) -> Tensor:
    """(query blocks, 3 + key blocks + 1) int32: `listed`, the heaviest first.

    Programs start in this order, so that the last to run are short.
    """
    rows = listed(visibility(subtree_end, block_m, block_n))
    return rows[rows[:, 2].argsort(descending=True, stable=True)]


def key_schedule(
    subtree_end: Tensor, block_m: int, block_n: int, *, programs: int | None
) -> tuple[Tensor, Tensor]:
    """Lists of query blocks for each key block, and how programs share them.

    Keys that all branches see have long lists, the others short ones. Lists longer than about
    1 / `programs` of the work are cut into equal parts; None: none is cut.

    Returns (key blocks, 3 + query blocks + 1) int32 as `listed`, and (parts, 4) int32
    [key block, first, end, whole]: a part is `list[first:end]`; `whole` is 1 if it is all of its
    list. There may be empty parts, as the number of parts depends on T alone.
    """
    lists = listed(visibility(subtree_end, block_m, block_n).T)
    return lists, _parts(lists[:, 2], programs or 0) if len(lists) else lists


def _parts(length: Tensor, programs: int) -> Tensor:
    """(key blocks,) lengths of lists -> (key blocks + programs, 4): see `key_schedule`."""
    block = length.argsort(descending=True, stable=True)
    length = length[block]
    if programs:
        limit = (length.sum() + programs - 1) // programs
        count = (length + limit - 1) // limit
    else:
        count = torch.ones_like(length)
    end = count.cumsum(0)  # of each list's parts; at most key blocks + programs in all
    part = torch.arange(len(length) + programs, device=length.device)
    owner = torch.searchsorted(end, part, right=True)
    empty = owner == len(length)
    owner = owner.clamp(max=len(length) - 1)
    number = part - (end - count)[owner]
    size = ((length + count - 1) // count)[owner]
    last = torch.minimum((number + 1) * size, length[owner]).masked_fill(empty, 0)
    whole = count[owner] == 1
    return torch.stack([block[owner], number * size, last, whole], dim=1).to(torch.int32)
