"""The benches of forest, positions and bins, on little loads: all arms give the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmpi.benchmarks import bench_bins, bench_forest, bench_positions
from fastmpi.benchmarks.harness import judge

CPU = torch.device("cpu")


def errors(case):
    exact = case.exact()
    return {name: judge(case, arm()(), exact) for name, arm in case.arms.items()}


def test_every_arm_of_the_forest_is_exact(monkeypatch):
    monkeypatch.setattr(bench_forest, "PROMPTS", 3)
    monkeypatch.setattr(bench_forest, "RESPONSES", 4)
    monkeypatch.setattr(bench_forest, "RESPONSE", 7)
    plain, placed = bench_forest.cases(CPU, small=True)
    for case, arms in (
        (plain, ["fastmpi", "numpy", "fastmpi threads", "python_trie"]),
        (placed, ["fastmpi", "numpy"]),
    ):
        found = errors(case)
        assert list(found) == arms
        assert all(not any(arm["errors"].values()) for arm in found.values())
    assert "positions" in found["numpy"]["errors"]


@pytest.mark.parametrize(
    "arm", ["fastmpi", "fastmpi new", "fastmpi threads", "numpy", "get_rope_index"]
)
def test_every_arm_of_the_positions_is_exact(monkeypatch, arm):
    monkeypatch.setattr(bench_positions, "ROWS", 3)
    [case] = bench_positions.cases(CPU, small=True)
    run = case.arms[arm]()
    for _ in range(2):  # into memory that is used again
        assert judge(case, run(), case.exact())["error"] == 0


def test_no_arm_of_the_bins_is_more_even(monkeypatch):
    monkeypatch.setattr(bench_bins, "ITEMS", 200)
    monkeypatch.setattr(bench_bins, "BINS", 8)
    found = {name: arm["error"] for name, arm in errors(bench_bins.cases(CPU, True)[0]).items()}
    assert list(found) == ["fastmpi", "karmarkar", "karmarkar lists", "numpy"]
    assert found["fastmpi"] <= min(found.values()) < 1e-3
    costs = np.array([5, 5, 4, 3, 3])
    assert np.bincount(bench_bins.greedy(costs, 2), costs).tolist() == [9, 11]
    assert sorted(np.bincount(bench_bins.karmarkar(costs, 2), costs)) == [9, 11]
