"""Shares and their intervals, against known values."""

from __future__ import annotations

import pytest

from fastmpi.evaluation.metrics import share, split, wilson_interval


@pytest.mark.parametrize(
    "correct, n, low, high",
    [
        (8, 10, 0.4902, 0.9433),  # Brown, Cai and DasGupta (2001), and R's prop.test
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_wilson_interval(correct, n, low, high):
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_interval_of_nothing_and_of_nonsense():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 correct of 2"):
        wilson_interval(3, 2)


def test_split_by_policy():
    items = [{"policy_id": p, "correct": c} for p, c in (("b", True), ("a", False), ("b", False))]
    shares = split(items, lambda item: item["policy_id"])
    assert list(shares) == ["a", "b"]
    assert (shares["a"].accuracy, shares["b"].accuracy, shares["b"].n) == (0.0, 0.5, 2)
    assert share([]).n == 0
