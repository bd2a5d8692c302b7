"""Shares, means, medians, ratios and their intervals, against known values."""

from __future__ import annotations

import numpy as np
import pytest

from fastmpi.evaluation import metrics
from fastmpi.evaluation.metrics import NOTHING, Figure, share, split, wilson_interval


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
    figure = share([True] * correct + [False] * (n - correct))
    assert figure.interval == wilson_interval(correct, n)
    assert (figure.value, figure.n) == (correct / n, n)


def test_interval_of_nothing_and_of_nonsense():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert share([]) == metrics.mean([]) == metrics.median([]) == metrics.saved([], []) == NOTHING
    with pytest.raises(ValueError, match="3 correct of 2"):
        wilson_interval(3, 2)


def test_split_by_policy():
    items = [{"policy_id": p, "n": n} for n, p in enumerate(("b", "a", "b", None))]
    groups = split(items, lambda item: item["policy_id"])
    assert {name: [item["n"] for item in group] for name, group in groups.items()} == {
        "a": [1], "b": [0, 2]
    }  # fmt: skip
    assert list(groups) == ["a", "b"]


def test_bootstrap_of_a_mean_is_that_of_theory():
    values = np.random.default_rng(1).normal(5, 2, 400)
    figure = metrics.mean(values)
    reach = metrics.Z_95 * values.std() / np.sqrt(len(values))
    assert figure.value == pytest.approx(values.mean())
    assert figure.low == pytest.approx(values.mean() - reach, abs=0.03)
    assert figure.high == pytest.approx(values.mean() + reach, abs=0.03)
    assert figure == metrics.mean(values)  # always the same resamples


def test_scores_that_are_all_the_same_are_not_certain():
    assert metrics.mean_score([0.0] * 10).interval == wilson_interval(0, 10)
    assert metrics.mean_score([1.0] * 10).interval == wilson_interval(10, 10)
    half = metrics.mean_score([0.5] * 10)
    assert half.value == 0.5 and half.interval == wilson_interval(5, 10)
    assert metrics.mean_score([0.5, 0.6]) == metrics.mean([0.5, 0.6])
    assert metrics.mean_score([]) == NOTHING


def test_differences_that_are_all_the_same_are_not_certain():
    unseen = wilson_interval(0, 4)[1]
    assert metrics.difference([1.0] * 4, [1.0] * 4) == Figure(0.0, -unseen, unseen, 4)
    ahead = metrics.difference([1.0] * 4, [0.0] * 4)
    assert (ahead.value, ahead.high) == (1.0, pytest.approx(1.0)) and -0.1 < ahead.low < 0.1
    assert metrics.difference([1.0] * 100, [0.0] * 100).low > 0.9
    assert metrics.difference([], []) == NOTHING


def test_median_of_times_ignores_the_tail():
    figure = metrics.median([1.0] * 50 + [1.1] * 40 + [900.0] * 5)
    assert (figure.value, figure.high, figure.n) == (1.0, 1.1, 95)


def test_pairs_take_out_what_both_have_in_common():
    hard = np.random.default_rng(2).normal(0, 10, 300)
    noise = np.random.default_rng(3).normal(0, 0.1, (2, 300))
    figure = metrics.difference(hard + 0.5 + noise[0], hard + noise[1])
    assert 0.45 < figure.low < figure.value < figure.high < 0.55
    shuffled = metrics.difference(hard + 0.5 + noise[0], (hard + noise[1])[::-1])
    assert shuffled.high - shuffled.low > 2


def test_ratio_and_share_saved():
    assert metrics.ratio([1.0, 3.0], [2.0, 6.0]) == Figure(0.5, 0.5, 0.5, 2)
    saved = metrics.saved([10.0, 12.0], [100.0, 120.0])
    assert saved.value == pytest.approx(0.9) and saved.low == pytest.approx(saved.high)
    slow_once = metrics.saved([1.0, 1.0, 99.0], [10.0, 10.0, 10.0], np.median)
    assert slow_once.value == pytest.approx(0.9)
    uneven = metrics.saved([10.0, 50.0, 20.0], [100.0, 100.0, 100.0])
    assert uneven.low < uneven.value < uneven.high
    with pytest.raises(ValueError, match="a ratio to zero"):
        metrics.ratio([1.0], [0.0])
    sparse = metrics.ratio([1.0, 0.0, 0.0], [1.0, 0.0, 0.0])  # many resamples have nothing below
    assert sparse == Figure(1.0, 1.0, 1.0, 3)
    assert metrics.ratio([1.0, 1.0, 1.0], [1.0, 0.0, 0.0]).high == 3  # and not infinite


def test_ratios_of_scores_without_spread_are_not_certain():
    unseen = wilson_interval(0, 10)[1]
    equal = metrics.ratio_of_scores([1.0] * 10, [1.0] * 10)
    assert equal == Figure(1.0, pytest.approx(1 - unseen), pytest.approx(1 / (1 - unseen)), 10)
    none = metrics.ratio_of_scores([0.0] * 10, [1.0, 0.0] * 5)
    assert none == Figure(0.0, 0.0, pytest.approx(unseen / (1 - unseen) * 2), 10)
    assert metrics.ratio_of_scores([1.0] * 1000, [1.0] * 1000).low > 0.99
    mixed = [1.0, 0.0, 1.0, 1.0]
    assert metrics.ratio_of_scores(mixed, [1.0] * 4) == metrics.ratio(mixed, [1.0] * 4)
    assert metrics.ratio_of_scores([], []) == NOTHING


def test_many_items_are_drawn_in_parts(monkeypatch):
    values = np.random.default_rng(1).normal(5, 2, 50)
    monkeypatch.setattr(metrics, "_MAX_DRAWN", 60 * 50)
    assert sum(metrics._chunks(50)) == metrics.RESAMPLES
    in_parts = metrics.mean(values)
    monkeypatch.undo()
    assert in_parts.low == pytest.approx(metrics.mean(values).low, abs=0.05)


def test_items_are_paired_by_id():
    ours = [{"id": i, "overall": value} for i, value in enumerate((0.5, None, 1.0, 0.0))]
    theirs = [{"id": i, "overall": 1.0} for i in (2, 1, 0)]
    assert metrics.paired(ours, theirs, lambda item: item["overall"]) == ([0.5, 1.0], [1.0, 1.0])


def test_figure_as_plain_values():
    figure = Figure(0.5, 0.25, 0.75, 8)
    assert Figure.from_dict(figure.to_dict()) == figure
    assert str(figure) == "0.500 (95 % 0.250 to 0.750, n 8)"
    with pytest.raises(ValueError, match="no figure: {'value': 1}"):
        Figure.from_dict({"value": 1})
