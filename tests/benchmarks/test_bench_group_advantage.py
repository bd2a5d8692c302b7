"""The bench of group advantages: both arms make the same, but where all rewards are equal."""

from __future__ import annotations

import torch

from fastmpi.benchmarks import bench_group_advantage as bench
from fastmpi.benchmarks.harness import judge

CPU = torch.device("cpu")


def test_ours_is_exact_and_the_trainers_form_but_for_equal_rewards():
    (case,) = bench.cases(CPU, small=True)
    exact = case.exact()
    ours = case.arms["fastmpi"]()()
    assert ours.keys() == exact.keys()
    errors = judge(case, ours, exact)["errors"]
    assert errors["clipped_low"] == errors["clipped_high"] == 0
    assert max(errors.values()) < 1e-6
    theirs = case.arms["eager"]()()
    differ = bench.make_rollouts(8, 64, CPU).rewards.view(8, bench.GROUP).std(1) > 0
    assert 0 < differ.sum() < 8
    for name in ("dlogprob", "advantages"):
        pair = (outputs[name].view(8, -1)[differ] for outputs in (ours, theirs))
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-9)


def test_full_size_is_64_groups_of_16():
    (case,) = bench.cases(CPU, small=False)
    assert case.name == "64 groups x 16, 256 tokens" and case.graphed == {"fastmpi", "eager"}
