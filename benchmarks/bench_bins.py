"""`ops.bins`: 8,192 costs to 64 bins, as evenly as each arm finds; the error is the unevenness.

`karmarkar` is largest differencing as trainers that balance their ranks write it, with an object
for every bin and every partition; `karmarkar lists` is the same on plain lists, our reference.
`numpy` sorts, and puts each cost into the bin with least in it: the greedy way, with a heap.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial, total_ordering
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
import torch
from numpy.typing import NDArray

from fastmpi.benchmarks.harness import Case, Outputs, Run
from fastmpi.ops.bins import balanced_bins
from fastmpi.reference import bins as reference

ITEMS, BINS = 8192, 64

Costs = NDArray[np.int64]


def cases(device: torch.device, small: bool) -> list[Case]:
    """The same on any device, since the CPU does it."""
    costs = cache(draw)
    arms: dict[str, Callable[[], Run]] = {
        "fastmpi": lambda: partial(_loads, balanced_bins, costs()),
        "karmarkar": lambda: partial(_loads, karmarkar, costs()),
        "karmarkar lists": lambda: partial(_loads, reference.balanced_bins, costs()),
        "numpy": lambda: partial(_loads, greedy, costs()),
    }
    return [Case(name=f"{ITEMS} items to {BINS}", arms=arms, exact=lambda: _even(costs()))]


def draw() -> Costs:
    """Lengths of responses: most near a thousand tokens, few very long."""
    return np.random.default_rng(0).lognormal(7, 0.7, ITEMS).astype(np.int64)


def _loads(bins_of: Callable[[Costs, int], NDArray[np.int32]], costs: Costs) -> Outputs:
    loads = np.bincount(bins_of(costs, BINS), weights=costs, minlength=BINS)
    return {"loads": torch.from_numpy(loads)}


def _even(costs: Costs) -> Outputs:
    return {"loads": torch.full((BINS,), costs.sum() / BINS, dtype=torch.float64)}


@total_ordering
class Bin:
    """Items, and the sum of their costs."""

    def __init__(self) -> None:
        self.sum = 0
        self.items: list[tuple[int, int]] = []

    def add(self, item: int, cost: int) -> None:
        self.items.append((item, cost))
        self.sum += cost

    def merge(self, other: Bin) -> None:
        for item, cost in other.items:
            self.add(item, cost)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bin) and self.items == other.items

    def __lt__(self, other: Bin) -> bool:
        if self.sum != other.sum:
            return self.sum < other.sum
        return self.items < other.items


@total_ordering
class Partition:
    """Bins, the largest first; the most uneven partition is the smallest."""

    def __init__(self, item: int, cost: int, num_bins: int) -> None:
        self.bins = [Bin() for _ in range(num_bins)]
        self.bins[0].add(item, cost)

    def merge(self, other: Partition) -> None:
        for mine, theirs in zip(self.bins, reversed(other.bins), strict=True):
            mine.merge(theirs)
        self.bins.sort(reverse=True)

    @property
    def spread(self) -> int:
        return self.bins[0].sum - self.bins[-1].sum

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Partition) and self.bins == other.bins

    def __lt__(self, other: Partition) -> bool:
        if self.spread != other.spread:
            return self.spread > other.spread
        return self.bins[0] > other.bins[0]


def karmarkar(costs: Costs, num_bins: int) -> NDArray[np.int32]:
    """The bin of each cost, by largest differencing."""
    partitions = [Partition(item, cost, num_bins) for item, cost in enumerate(costs.tolist())]
    heapify(partitions)
    while len(partitions) > 1:
        first = heappop(partitions)
        first.merge(heappop(partitions))
        heappush(partitions, first)
    bin_of = np.empty(len(costs), np.int32)
    for number, bin_ in enumerate(partitions[0].bins):
        bin_of[[item for item, _ in bin_.items]] = number
    return bin_of


def greedy(costs: Costs, num_bins: int) -> NDArray[np.int32]:
    """The bin of each cost, the largest first."""
    loads = [(0, bin_) for bin_ in range(num_bins)]
    bin_of = [0] * len(costs)
    order = np.argsort(-costs, kind="stable")
    for item, cost in zip(order.tolist(), costs[order].tolist(), strict=True):
        load, bin_ = loads[0]
        bin_of[item] = bin_
        heapreplace(loads, (load + cost, bin_))
    return np.array(bin_of, np.int32)
