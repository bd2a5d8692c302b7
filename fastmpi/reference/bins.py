"""Which samples share a micro-batch, and a rank: bins of merged tokens, in plain Python.

A tree is packed whole unless it alone exceeds the budget; then it is split along its subtrees,
and each piece repeats the path above it. Pieces are merged from the leaves up, where they share
most, by best-fit decreasing: deterministic, and close to the optimum.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace

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
    too_long = np.flatnonzero(lengths > max_tokens)
    if len(too_long):
        sample = too_long[0]
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
    total = _tokens_with_path(forest)
    ending = _samples_by_last_row(forest, offsets)
    waiting: dict[int, list[Piece]] = {}  # pieces below a row that overflows; -1: all trees
    for row in reversed(range(len(total))):
        parent, end = int(forest.parent[row]), int(forest.subtree_end[row])
        if total[row] <= max_tokens:
            if parent >= 0 and total[parent] <= max_tokens:
                continue  # inside a subtree that is packed whole
            samples = [s for r in range(row, end) for s in ending.get(r, [])]
            pieces = [Piece(int(total[row]), samples)]
        else:
            pieces = waiting.pop(row)
            if row in ending or forest.subtree_end[row + 1] < end:  # else nothing new to merge
                path = int(total[row]) - (end - row) + 1
                pieces += [Piece(path, [s]) for s in ending.get(row, [])]
                pieces = _best_fit(pieces, path, max_tokens)
        waiting.setdefault(parent, []).extend(pieces)
    return waiting.get(-1, [])


def _tokens_with_path(forest: ForestLayout) -> Int64:
    """Tokens of each row's subtree and of the path above it."""
    depth = np.zeros(len(forest.tokens), np.int64)
    for row, parent in enumerate(forest.parent):
        depth[row] = depth[parent] + 1 if parent >= 0 else 0
    return depth + forest.subtree_end - np.arange(len(depth))


def _samples_by_last_row(forest: ForestLayout, offsets: Int64) -> dict[int, list[int]]:
    ending: dict[int, list[int]] = {}
    for sample in range(len(offsets) - 1):
        if offsets[sample] < offsets[sample + 1]:
            last = int(forest.flat_index[offsets[sample + 1] - 1])
            ending.setdefault(last, []).append(sample)
    return ending


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


@dataclass(frozen=True)
class _Samples:
    """The packed samples of `plan_ranks`, some of which are asked about."""

    ids: Int64
    image_slots: Int32
    offsets: Int64
    share: bool

    def where(self, chosen: Sequence[int]) -> Int64:
        """The tokens of these samples."""
        ranges = [np.arange(self.offsets[s], self.offsets[s + 1]) for s in chosen]
        return np.concatenate([np.zeros(0, np.int64), *ranges])

    def select(self, chosen: Sequence[int]) -> tuple[Int64, Int32, Int64]:
        tokens, lengths = self.where(chosen), np.diff(self.offsets)[list(chosen)]
        return self.ids[tokens], self.image_slots[tokens], np.cumsum([0, *lengths])

    def merged(self, chosen: Sequence[int]) -> int:
        """Their tokens after merging."""
        return len(build_forest(*self.select(chosen), share=self.share).tokens)

    def cost(self, chosen: Sequence[int], costs: Int64 | None) -> int:
        """What their merged tokens cost, each its first copy; as many as they are without costs."""
        if costs is None:
            return self.merged(chosen)
        forest = build_forest(*self.select(chosen), share=self.share)
        _, first = np.unique(forest.flat_index, return_index=True)
        return int(costs[self.where(chosen)[first]].sum())


def _spread(
    units: list[list[int]], num_bins: int, size: Callable[[Sequence[int]], int]
) -> list[list[list[int]]]:
    """Each unit in turn, the largest first, into the bin that is smallest with it."""
    bins: list[list[list[int]]] = [[] for _ in range(num_bins)]
    for unit in sorted(units, key=lambda unit: (-size(unit), min(unit))):
        after = [size([s for other in [*bin_, unit] for s in other]) for bin_ in bins]
        bins[int(np.argmin(after))].append(unit)
    return bins


def plan_ranks(
    ids: Int64,  # (N,)
    image_slots: Int32,  # (N,)
    offsets: Int64,  # (S + 1,)
    groups: Int64,  # (S,) the group of each sample
    num_ranks: int,
    max_tokens: int,
    *,
    share: bool = True,
    costs: Int64 | None = None,  # (N,)
) -> list[list[Int64]]:
    """Indices of the samples of each micro-batch of each rank; groups stay whole.

    Each group in turn, the largest first, goes where the merged tokens are fewest with it: to a
    rank (where their `costs` are least, if there are any), and there into one of as many
    micro-batches as every rank needs. A group that alone exceeds `max_tokens` is cut by
    `plan_microbatches`.
    """
    samples = _Samples(ids, image_slots, offsets, share)
    whole = [np.flatnonzero(groups == group).tolist() for group in dict.fromkeys(groups.tolist())]
    ranks = []
    for on_rank in _spread(whole, num_ranks, lambda group: samples.cost(group, costs)):
        plans = [
            (group, plan_microbatches(*samples.select(group), max_tokens, share=share))
            for group in on_rank
        ]
        ranks.append([[group[i] for i in bin_] for group, plan in plans for bin_ in plan])
    count = int(len(groups) > 0)
    while True:
        cuts = [
            [sum(bin_, []) for bin_ in _spread(units, count, samples.merged)] for units in ranks
        ]
        if all(samples.merged(bin_) <= max_tokens for bins in cuts for bin_ in bins):
            return [[np.sort(np.array(bin_, np.int64)) for bin_ in bins] for bins in cuts]
        count += 1


def balanced_bins(costs: Int64, num_bins: int) -> Int32:
    """The bin of each cost (n,), by Karmarkar and Karp's largest differencing.

    Each cost begins as a partition of its own. The two most uneven ones are laid upon one another,
    the large bins of one on the small bins of the other, until one partition is left.
    """
    empty: list[tuple[int, list[int]]] = [(0, [])]
    uneven = [
        (-int(cost), item, [(int(cost), [item])] + empty * (num_bins - 1))
        for item, cost in enumerate(costs)
    ]
    heapify(uneven)
    while len(uneven) > 1:
        _, item, a = heappop(uneven)
        b = uneven[0][2]
        both = [(x + y, p + q) for (x, p), (y, q) in zip(a, reversed(b), strict=True)]
        both.sort(key=lambda bin_: -bin_[0])
        heapreplace(uneven, (both[-1][0] - both[0][0], item, both))
    bin_of = np.zeros(len(costs), np.int32)
    for _, _, bins in uneven:
        for number, (_, items) in enumerate(bins):
            bin_of[items] = number
    return bin_of
