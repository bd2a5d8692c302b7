"""The model of a micro-batch's seconds: what it finds again, and what little data it survives."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch

from fastmpi.data.batch import ForestBatch, Outline
from fastmpi.data.images import Image
from fastmpi.data.samples import Sample
from fastmpi.models.cost import CostModel, Work, fit, operations, token_costs
from fastmpi.models.forest_model import ForestModel

UNIT = np.array([1e6, 1e3, 5e5, 1e4])
TRUE = CostModel(overhead=2e-3, row=1e-5, pair=2e-8, score=3e-6, patch=1e-6)


def works(count: int, patches: bool = True) -> list[Work]:
    rng = np.random.default_rng(0)
    rows = rng.integers(100, 4000, count)
    return [
        Work(int(n), int(n * rng.integers(20, n)), int(n * rng.random()), 400 * patches * i)
        for i, n in enumerate(rows)
    ]


def test_what_made_the_seconds_is_found_again():
    some = works(400)
    found = fit(some, [TRUE.seconds(work) for work in some], UNIT)
    for work in some:
        assert found.seconds(work) == pytest.approx(TRUE.seconds(work), rel=0.01)
    assert found.row == pytest.approx(TRUE.row, rel=0.05)
    assert found.pair == pytest.approx(TRUE.pair, rel=0.05)


def test_a_few_that_took_ten_times_as_long_change_little():
    some = works(40)
    seconds = [TRUE.seconds(work) * (10 if i % 10 == 3 else 1) for i, work in enumerate(some)]
    found = fit(some, seconds, UNIT)
    errors = [found.seconds(work) / TRUE.seconds(work) - 1 for work in some]
    assert np.abs(errors).mean() < 0.1 and np.abs(errors).max() < 0.3


def test_one_shape_alone_is_told_by_its_operations():
    """Nothing says which part took how long: all have the same speed."""
    work = Work(1000, 500_000, 200)
    found = fit([work] * 3, [0.5, 0.5, 0.5], UNIT)
    assert found.seconds(work) == pytest.approx(0.5)
    assert found.row / found.pair == pytest.approx(UNIT[0] / UNIT[1], rel=1e-3)
    assert found.seconds(Work(2000, 1_000_000, 400)) == pytest.approx(1.0, rel=0.02)


def test_no_rate_is_negative():
    rng = np.random.default_rng(1)
    some = works(6)
    for _ in range(20):
        found = fit(some, rng.random(6) + 0.01, UNIT)
        assert min(astuple(found)) >= 0


def test_what_a_patch_takes_may_be_known():
    some = works(20, patches=False)
    found = fit(some, [TRUE.seconds(work) for work in some], UNIT, patch=7e-4)
    assert found.patch == 7e-4


def test_the_same_measurements_give_the_same_bits():
    some = works(30)
    seconds = [TRUE.seconds(work) * (1 + 0.1 * (i % 3)) for i, work in enumerate(some)]
    assert fit(some, seconds, UNIT) == fit(some, seconds, UNIT)


def test_work_of_a_batch(tiny_folder):
    model = ForestModel.from_pretrained(tiny_folder("qwen2_5_vl"), probe=False)
    words = model.processor.encode(" red cube then else Case 3 small yes no metal")
    weights = np.array([0, 0, 0, 1, 1], np.float32)
    samples = [Sample(words[[0, 1, 2, last, 4]], (), weights) for last in (3, 5)]
    batch = ForestBatch.from_samples(samples, model.processor)
    # three tokens in common, two of each sample's own; each sees what is above it, and itself
    assert Work.of(batch, trains_vision=False) == Work(7, 6 + 2 * 9, 3)


def test_operations_are_those_of_the_model(tiny_folder):
    model = ForestModel.from_pretrained(tiny_folder("qwen2_5_vl"), probe=False)
    row, pair, score, patch = operations(model)
    assert score == 6 * model.head.numel()
    assert 0 < pair < row and patch > 0


def test_what_a_token_adds():
    picture = Image("key", torch.zeros(0), (1, 4, 2), 2)  # 8 patches, 2 tokens
    seen = Outline(np.array([5, 9, 9, 6], np.int32), (picture,), scored=1)
    alone = Outline(np.array([7, 7], np.int32), (), scored=1)
    cost = CostModel(overhead=50, row=1, pair=0.5, score=2, patch=0.25)
    seconds = np.array([1.5, 2 + 1, 2.5 + 1, 3 + 2, 1.5, 2 + 2])
    found = token_costs(cost, [seen, alone], image_token_id=9)
    assert found.dtype == np.int64
    assert found.tolist() == np.rint(seconds / seconds.mean() * 1000).tolist()
    assert token_costs(CostModel(1, 0, 0, 0, 0), [alone], 9).tolist() == [1, 1]
