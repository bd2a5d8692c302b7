"""Which samples share a micro-batch: trees packed into bins of merged tokens, in plain Python.

A tree is packed whole unless it alone exceeds the budget; then it is split along its subtrees,
and each piece repeats the path above it. Pieces are merged from the leaves up, where they share
most, by best-fit decreasing: deterministic, and close to the optimum.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastmpi.reference.forest import ForestLayout, build_forest

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass
class Piece:
    """Samples that stay together, and the merged tokens they take with the path above them."""

    tokens: int
    samples: list[int]


def plan_microbatches(
    ids: Int64,  # (N,)
    image_slots: Int32,  # (N,)
    offsets: Int64,  # (S + 1,)
    max_tokens: int,
    *,
    share: bool = True,
) -> list[Int64]:
    """Indices of the samples of each micro-batch, every sample once, by their first sample.

    The forest of each micro-batch has at most `max_tokens` rows. A sample longer than that is a
    `ValueError`, since multimodal samples are never truncated.
    """
    lengths = np.diff(offsets)
    for sample in np.flatnonzero(lengths > max_tokens)[:1]:
        raise ValueError(
            f"sample {sample} has {lengths[sample]} tokens, more than max_tokens={max_tokens}"
        )
    forest = build_forest(ids, image_slots, offsets, share=share)
    pieces = _root_pieces(forest, offsets, max_tokens)
    empty = [Piece(0, [s]) for s in range(len(lengths)) if lengths[s] == 0]
    bins = _best_fit(pieces + empty, path=0, max_tokens=max_tokens)
    plan = [np.sort(np.asarray(b.samples, np.int64)) for b in bins]
    return sorted(plan, key=lambda samples: int(samples[0]))


def _root_pieces(forest: ForestLayout, offsets: Int64, max_tokens: int) -> list[Piece]:
    """Pieces of at most `max_tokens`: the trees that fit, and the splits of those that do not."""
    depth = np.zeros(len(forest.tokens), np.int64)  # tokens above a row
    for row, parent in enumerate(forest.parent):
        depth[row] = depth[parent] + 1 if parent >= 0 else 0
    total = depth + forest.subtree_end - np.arange(len(depth))  # of the path and the subtree
    last_rows = [int(forest.flat_index[end - 1]) for end in offsets[1:]] if len(depth) else []
    ending: dict[int, list[int]] = {}
    for sample, row in enumerate(last_rows):
        if offsets[sample] < offsets[sample + 1]:
            ending.setdefault(row, []).append(sample)

    waiting: dict[int, list[Piece]] = {}  # pieces below a row that alone exceeds the budget
    for row in reversed(range(len(depth))):
        parent = int(forest.parent[row])
        fits = total[row] <= max_tokens
        if fits and parent >= 0 and total[parent] <= max_tokens:
            continue  # inside a subtree that is packed whole
        if fits:
            rows = range(row, int(forest.subtree_end[row]))
            pieces = [Piece(int(total[row]), [s for r in rows for s in ending.get(r, [])])]
        else:
            path = int(depth[row]) + 1
            pieces = waiting.pop(row) + [Piece(path, [s]) for s in ending.get(row, [])]
            pieces = _best_fit(pieces, path, max_tokens)
        waiting.setdefault(parent, []).extend(pieces)
    return waiting.get(-1, [])


def _best_fit(pieces: list[Piece], path: int, max_tokens: int) -> list[Piece]:
    """Best-fit decreasing: merge pieces that share `path` tokens into as few as it finds."""
    bins: list[Piece] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for piece in sorted(pieces, key=lambda p: (-p.tokens, min(p.samples))):
        need = piece.tokens - path
        k = bisect_left(room, (need, 0))
        if k == len(room):
            bins.append(Piece(piece.tokens, list(piece.samples)))
            insort(room, (max_tokens - piece.tokens, len(bins) - 1))
        else:
            free, index = room.pop(k)
            bins[index].tokens += need
            bins[index].samples += piece.samples
            insort(room, (free - need, index))
    return bins
