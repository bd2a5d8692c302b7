"""ops/bins.py against reference/bins.py, the budget, and an exact solver."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmpi.ops.bins import plan_microbatches
from fastmpi.ops.forest import build_forest
from fastmpi.reference import bins as reference

# Few distinct tokens: trees of several samples, some of which exceed any budget that is drawn.
SAMPLES = st.lists(st.lists(st.integers(0, 2), max_size=7), max_size=12)
Samples = list[list[int]]


def flatten(samples: Samples) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.array([token for sample in samples for token in sample], np.int64)
    return ids, np.full(len(ids), -1, np.int32), np.cumsum([0, *map(len, samples)])


def merged_tokens(samples: Samples, share: bool = True) -> int:
    return len(build_forest(*flatten(samples), share=share).tokens)


def plan(samples: Samples, max_tokens: int, **options: bool) -> list[list[int]]:
    return [b.tolist() for b in plan_microbatches(*flatten(samples), max_tokens, **options)]


@given(SAMPLES, st.integers(7, 16), st.booleans())
def test_every_sample_once_within_the_budget(samples: Samples, budget: int, share: bool) -> None:
    bins = plan(samples, budget, share=share)
    assert sorted(s for b in bins for s in b) == list(range(len(samples)))
    assert bins == sorted(sorted(b) for b in bins)
    assert all(merged_tokens([samples[s] for s in b], share) <= budget for b in bins)


@given(SAMPLES, st.integers(7, 16), st.booleans())
def test_equals_reference(samples: Samples, budget: int, share: bool) -> None:
    ours = plan_microbatches(*flatten(samples), budget, share=share)
    twin = reference.plan_microbatches(*flatten(samples), budget, share=share)
    assert [b.tolist() for b in ours] == [b.tolist() for b in twin]
    assert all(b.dtype == np.int64 for b in [*ours, *twin])


@given(SAMPLES, st.integers(7, 16))
def test_a_tree_that_fits_is_never_split(samples: Samples, budget: int) -> None:
    bins = plan(samples, budget)
    for root in {sample[0] for sample in samples if sample}:
        tree = [s for s, sample in enumerate(samples) if sample[:1] == [root]]
        if merged_tokens([samples[s] for s in tree]) <= budget:
            assert sum(any(s in tree for s in b) for b in bins) == 1


def test_a_tree_that_exceeds_the_budget_is_split_along_its_subtrees() -> None:
    """Two groups of two responses: each group shares its longer path, so it stays together."""
    groups = [[1, 2, 3, 3, 3, 4], [1, 9, 9, 9, 9, 4], [1, 2, 3, 3, 3, 5], [1, 9, 9, 9, 9, 5]]
    assert plan(groups, 7) == [[0, 2], [1, 3]]
    assert plan(groups, 13) == [[0, 1, 2, 3]]


def test_the_rest_of_a_split_tree_shares_its_bin_with_small_trees() -> None:
    assert plan([[1, 2, 2], [1, 3, 3], [7]], 4) == [[0, 2], [1]]


def test_empty_samples_take_no_room() -> None:
    assert plan([[], [1, 2], []], 2) == [[0, 1, 2]]
    assert plan([[], []], 1) == [[0, 1]]
    assert plan([], 1) == []


@pytest.mark.parametrize("planner", [plan_microbatches, reference.plan_microbatches])
def test_a_sample_longer_than_the_budget_is_named(planner) -> None:
    with pytest.raises(ValueError, match="sample 1 has 5 tokens, more than max_tokens=4"):
        planner(*flatten([[1, 1], [2, 2, 2, 2, 2]]), 4)


def optimal_bins(samples: Samples, budget: int) -> int:
    """The least number of bins over all partitions of at most ten samples."""
    every = (1 << len(samples)) - 1
    fits = {
        subset
        for subset in range(1, every + 1)
        if merged_tokens([s for i, s in enumerate(samples) if subset >> i & 1]) <= budget
    }
    best = {0: 0}
    for subset in range(1, every + 1):
        least, part = len(samples), subset
        while part:
            if part in fits:
                least = min(least, 1 + best[subset ^ part])
            part = (part - 1) & subset
        best[subset] = least
    return best[every]


def random_loads(rng: np.random.Generator, count: int) -> list[Samples]:
    """Groups of responses to a few prompts, some prompts with a common beginning."""
    loads = []
    for _ in range(count):
        samples: Samples = []
        for prompt in range(3):
            head = [0] * int(rng.integers(0, 4)) + [prompt + 1] * int(rng.integers(1, 6))
            for _response in range(int(rng.integers(1, 4))):
                samples.append(head + rng.integers(10, 30, rng.integers(1, 6)).tolist())
        loads.append(samples)
    return loads


def test_close_to_the_exact_optimum() -> None:
    loads = random_loads(np.random.default_rng(0), 60)
    budgets = [max(map(len, load)) + 3 for load in loads]
    ours = sum(len(plan(load, b)) for load, b in zip(loads, budgets, strict=True))
    best = sum(optimal_bins(load, b) for load, b in zip(loads, budgets, strict=True))
    assert ours <= 1.02 * best, (ours, best)
