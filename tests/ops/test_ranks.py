"""plan_ranks and balanced_bins of ops/bins.py against reference/bins.py and exact solvers."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmpi.ops.bins import balanced_bins, plan_ranks
from fastmpi.ops.forest import build_forest
from fastmpi.reference import bins as reference

SAMPLES = st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=7), st.integers(-2, 2)))
Load = list[tuple[list[int], int]]  # samples and their groups
Plan = list[list[list[int]]]


def flatten(samples: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.array([token for sample in samples for token in sample], np.int64)
    return ids, np.full(len(ids), -1, np.int32), np.cumsum([0, *map(len, samples)])


def merged(load: Load, samples: list[int]) -> int:
    return len(build_forest(*flatten([load[s][0] for s in samples])).tokens)


def plan(load: Load, num_ranks: int, budget: int, planner=plan_ranks) -> Plan:
    groups = np.array([group for _, group in load], np.int64)
    ranks = planner(*flatten([tokens for tokens, _ in load]), groups, num_ranks, budget)
    assert all(bin_.dtype == np.int64 for rank in ranks for bin_ in rank)
    return [[bin_.tolist() for bin_ in rank] for rank in ranks]


def largest(load: Load, ranks: Plan) -> int:
    """Merged tokens of the rank that has most of them."""
    return max(merged(load, sum(rank, [])) for rank in ranks)


@settings(deadline=None)
@given(SAMPLES, st.integers(1, 4), st.integers(7, 16))
def test_groups_stay_whole_within_the_budget(load: Load, num_ranks: int, budget: int) -> None:
    for planner in (plan_ranks, reference.plan_ranks):
        ranks = plan(load, num_ranks, budget, planner)
        assert len(ranks) == num_ranks
        assert len({len(rank) for rank in ranks}) == 1
        assert sorted(s for rank in ranks for bin_ in rank for s in bin_) == list(range(len(load)))
        assert all(bin_ == sorted(bin_) for rank in ranks for bin_ in rank)
        assert all(merged(load, bin_) <= budget for rank in ranks for bin_ in rank)
        for group in {group for _, group in load}:
            members = {s for s, (_, other) in enumerate(load) if other == group}
            bins = [(r, b) for r, rank in enumerate(ranks) for b, bin_ in enumerate(rank)
                    if members & set(bin_)]  # fmt: skip
            assert len({r for r, _ in bins}) == 1
            if merged(load, sorted(members)) <= budget:
                assert len(bins) == 1


def random_load(rng: np.random.Generator) -> Load:
    """Groups of responses to a prompt each, of which some begin with the same policy."""
    load: Load = []
    for group in range(int(rng.integers(3, 8))):
        policy = [int(rng.integers(1, 3))] * int(rng.integers(0, 12))
        head = policy + [100 + group] * int(rng.integers(1, 6))
        for _ in range(int(rng.integers(1, 5))):
            load.append((head + rng.integers(10, 30, rng.integers(1, 9)).tolist(), group))
    return load


def best_largest(load: Load, num_ranks: int) -> int:
    """The exact optimum, over all ways to put groups on ranks."""
    groups = sorted({group for _, group in load})
    return min(
        max(
            merged(load, [s for s, (_, g) in enumerate(load) if ranks[groups.index(g)] == rank])
            for rank in range(num_ranks)
        )
        for ranks in product(range(num_ranks), repeat=len(groups) - 1)
        for ranks in [(*ranks, 0)]  # ranks are alike
    )


def test_ranks_are_within_two_per_cent_of_the_best() -> None:
    rng = np.random.default_rng(0)
    loads = [random_load(rng) for _ in range(12)]
    for load in loads:
        best = best_largest(load, 2)
        assert largest(load, plan(load, 2, 1000)) <= 1.02 * best
        assert len(plan(load, 2, best)[0]) == 1, "the budget is just enough"


def test_no_worse_than_the_reference() -> None:
    rng = np.random.default_rng(1)
    ours, twin = [], []
    for _ in range(20):
        load = random_load(rng)
        budget = max(len(tokens) for tokens, _ in load) + int(rng.integers(0, 20))
        for found, planner in ((ours, plan_ranks), (twin, reference.plan_ranks)):
            ranks = plan(load, 3, budget, planner)
            found.append((largest(load, ranks), len(ranks[0])))
    assert all(a[0] <= b[0] for a, b in zip(ours, twin, strict=True))
    assert sum(count for _, count in ours) <= sum(count for _, count in twin)


def test_policies_that_are_shared_are_not_repeated_on_every_rank() -> None:
    policies = [[policy] * 400 for policy in range(4)]
    load = [(policies[i % 4] + [10 + i] * 50, i) for i in range(64)]
    ranks = plan(load, 4, 2000)
    assert largest(load, ranks) == 400 + 16 * 50
    assert [len(rank) for rank in ranks] == [1] * 4


def dearest(load: Load, costs: list[list[int]], ranks: Plan) -> int:
    """The most that a rank's merged tokens cost, one by one."""

    def cost(samples: list[int]) -> int:
        seen = {
            tuple(load[s][0][: i + 1]): costs[s][i] for s in samples for i in range(len(costs[s]))
        }
        return sum(seen.values())

    return max(cost(sum(rank, [])) for rank in ranks)


def test_costs_are_balanced_over_ranks() -> None:
    """A token costs more the further back it sees."""
    rng = np.random.default_rng(2)
    for planner in (plan_ranks, reference.plan_ranks):
        better = 0
        for _ in range(12):
            load = random_load(rng)
            costs = [[10 + i * i for i in range(len(tokens))] for tokens, _ in load]
            flat = np.array(sum(costs, []), np.int64)

            def by_costs(*args, planner=planner, flat=flat):
                return planner(*args, costs=flat)

            by_tokens = dearest(load, costs, plan(load, 3, 1000, planner))
            found = dearest(load, costs, plan(load, 3, 1000, by_costs))
            assert found <= by_tokens or planner is not plan_ranks
            better += found < by_tokens
        assert better >= 4


@given(SAMPLES, st.integers(1, 4))
def test_equal_costs_are_tokens(load: Load, num_ranks: int) -> None:
    flat = np.full(sum(len(tokens) for tokens, _ in load), 7)

    def by_costs(*args):
        return plan_ranks(*args, costs=flat)

    assert plan(load, num_ranks, 9, by_costs) == plan(load, num_ranks, 9)


def test_a_group_that_exceeds_the_budget_is_cut_on_its_rank() -> None:
    load = [([1, 1, 1, 2 + i], 0) for i in range(6)] + [([50 + i] * 4, 1) for i in range(2)]
    ranks = plan(load, 2, 6)
    assert [sorted(sum(rank, [])) for rank in ranks] == [[0, 1, 2, 3, 4, 5], [6, 7]]
    assert [len(rank) for rank in ranks] == [2, 2]


def test_more_ranks_than_groups() -> None:
    assert plan([([1, 2], 5)], 3, 4) == [[[0]], [[]], [[]]]
    assert plan([], 2, 4) == [[], []]
    assert plan([([], 1), ([], 2)], 1, 4) == [[[0, 1]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": [0]}, r"groups must be 1-D, one per sample \(2\)"),
        ({"groups": [0.5, 1.0]}, "groups must hold integers"),
        ({"num_ranks": 0}, "num_ranks must be at least 1"),
        ({"num_ranks": 2**31 - 1}, "num_ranks must be at most 65536"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": 1, "offsets": [0, 0, 2]}, "sample 1 has 2 tokens, more than max_tokens=1"),
        ({"offsets": [0, 5, 2]}, "offsets must start at 0"),
        ({"costs": [1]}, r"costs must be 1-D, one per token \(2\)"),
        ({"costs": [1, -1]}, r"costs\[1\] = -1 is not in"),
        ({"costs": [2**31, 1]}, r"costs\[0\] = 2147483648 is not in"),
    ],
)
def test_bad_arguments(change: dict, message: str) -> None:
    good = {"ids": [1, 2], "image_slots": [-1, -1], "offsets": [0, 1, 2], "groups": [0, 1]}
    with pytest.raises(ValueError, match=message):
        plan_ranks(**{**good, "num_ranks": 2, "max_tokens": 4, **change})


# balanced_bins


def loads(costs: np.ndarray, bins: np.ndarray, num_bins: int) -> np.ndarray:
    total = np.zeros(num_bins, np.int64)
    np.add.at(total, bins, costs)
    return total


def best_bins(costs: list[int], num_bins: int) -> int:
    """Branch and bound: the least possible cost of the costliest bin."""
    costs = sorted(costs, reverse=True)
    best = sum(costs)
    bound = max(-(-best // num_bins), costs[0])

    def place(item: int, bins: list[int]) -> None:
        nonlocal best
        if item == len(costs):
            best = max(bins)
            return
        for load in sorted(set(bins)):  # bins of equal load are alike
            if load + costs[item] < best and best > bound:
                rest = bins.copy()
                rest[bins.index(load)] += costs[item]
                place(item + 1, rest)

    place(0, [0] * num_bins)
    return best


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.integers(1, 4))
def test_few_costs_have_the_best_partition(costs: list[int], num_bins: int) -> None:
    bins = balanced_bins(costs, num_bins)
    assert bins.dtype == np.int32
    assert loads(np.array(costs), bins, num_bins).max() == best_bins(costs, num_bins)


@given(st.lists(st.integers(0, 1000), max_size=40), st.integers(1, 12))
def test_no_less_even_than_largest_differencing(costs: list[int], num_bins: int) -> None:
    array = np.array(costs, np.int64)
    ours = loads(array, balanced_bins(array, num_bins), num_bins)
    twin = loads(array, reference.balanced_bins(array, num_bins), num_bins)
    assert ours.max() <= twin.max()


def test_more_costs_than_are_searched_are_within_two_per_cent() -> None:
    """Twice as many costs as bins and a known best: pairs that fill every bin."""
    rng = np.random.default_rng(0)
    for num_bins in (10, 25):
        first = rng.integers(1, 1000, num_bins)
        costs = rng.permutation(np.concatenate([first, 1000 - first]))
        assert loads(costs, balanced_bins(costs, num_bins), num_bins).max() <= 1020
    costs = rng.lognormal(7, 0.7, 8192).astype(np.int64)
    even = loads(costs, balanced_bins(costs, 64), 64)
    assert even.max() - even.min() <= 1


def test_odd_partitions() -> None:
    assert balanced_bins([], 3).tolist() == []
    assert sorted(balanced_bins([4, 4], 2**31 - 1).tolist()) == [0, 1]
    assert set(balanced_bins(np.zeros(1000, int), 7).tolist()) <= set(range(7))
    million = balanced_bins(np.ones(1_000_000, int), 8)
    assert np.bincount(million).tolist() == [125_000] * 8


@pytest.mark.parametrize(
    ("costs", "num_bins", "message"),
    [
        ([-1], 2, r"costs\[0\] = -1 is negative"),
        ([2**62, 2**62], 2, r"costs\[0\] = .* too large"),
        ([2**61 - 1, 2**61 - 1, 2**61], 2, r"costs\[2\] = .* too large"),
        ([1], 0, "num_bins must be at least 1"),
        ([[1]], 1, "costs must be 1-D"),
        ([0.5], 1, "costs must hold integers"),
    ],
)
def test_bad_costs(costs: list, num_bins: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        balanced_bins(costs, num_bins)
