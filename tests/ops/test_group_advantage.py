"""`group_advantage` on hand-computed groups, against TRL's formula, and on its degenerate pools."""

from __future__ import annotations

import math

import pytest
import torch

from fastmpi.ops.group_advantage import group_advantage

# Group 7 holds both arms, interleaved with group 2: rewards 1 0 0 (policy-free 0) and 1 1 0
# (policy-aware 1).
REWARDS = torch.tensor([1.0, 0.5, 0.0, 0.0, 0.5, 1.0, 1.0, 0.0], dtype=torch.float64)
GROUPS = torch.tensor([7, 2, 7, 7, 2, 7, 7, 7])
ARMS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])


def test_pooled_group():
    result = group_advantage(REWARDS, GROUPS, ARMS)
    std = math.sqrt(6 * 0.25 / 5)  # six rewards of 0 or 1 around a mean of 1/2, unbiased
    high = 0.5 / (std + 1e-4)
    assert result.advantages.tolist() == pytest.approx(
        [high, 0, -high, -high, 0, high, high, -high]
    )
    assert result.mean.tolist() == [0.5] * 8
    assert result.std.tolist() == pytest.approx([std, 0, std, std, 0, std, std, std])
    assert result.zero_variance.tolist() == [False, True, False, False, True, False, False, False]
    assert result.kept.all()


def test_one_baseline_per_arm():
    result = group_advantage(REWARDS, GROUPS, ARMS, pool="arm", scale="none")
    third = 1 / 3  # the arms of group 7 have means 1/3 and 2/3; those of group 2 one sample each
    wanted = [2 * third, 0, -third, -third, 0, third, third, -2 * third]
    assert result.advantages.tolist() == pytest.approx(wanted)
    means = [third, 0.5, third, third, 0.5, 2 * third, 2 * third, 2 * third]
    assert result.mean.tolist() == pytest.approx(means)
    assert result.zero_variance.tolist() == [False, True, False, False, True, False, False, False]


def test_batch_scale_divides_by_the_deviation_of_all_rewards():
    result = group_advantage(REWARDS, GROUPS, scale="batch")
    assert result.advantages[0].item() == pytest.approx(0.5 / (REWARDS.std().item() + 1e-4))


def test_equals_trl_on_equal_groups():
    rewards = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    wanted = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    result = group_advantage(rewards.flatten(), torch.arange(6).repeat_interleave(8))
    torch.testing.assert_close(result.advantages, wanted.flatten())


def test_equal_rewards_give_exactly_zero():
    rewards = torch.full((12,), 0.7)
    assert rewards.sum() / 12 != rewards[0]  # the mean rounds
    result = group_advantage(rewards, torch.zeros(12, dtype=torch.int64))
    assert result.advantages.tolist() == [0.0] * 12 and result.zero_variance.all()


def test_two_passes_do_not_cancel():
    rewards = torch.tensor([10000.0, 10001.0, 10002.0])  # E[x^2] - E[x]^2 would lose everything
    assert group_advantage(rewards, torch.zeros(3, dtype=torch.int64)).std.tolist() == [1.0] * 3


def test_equal_rewards_without_eps():
    result = group_advantage(torch.ones(4), torch.tensor([0, 0, 1, 2]), eps=0.0)
    assert result.advantages.tolist() == [0.0] * 4


def test_dapo_keeps_groups_by_the_accuracy_of_both_arms():
    groups = torch.tensor([4, 9, 4, 9, 5, 5, 6])
    arms = torch.tensor([0, 0, 1, 1, 0, 1, 0])
    accuracy = torch.tensor([0.0, 1.0, 1.0, 1.0, math.nan, 0.5, math.nan])
    options = {"accuracy": accuracy, "pool": "arm"}
    kept = group_advantage(torch.rand(7), groups, arms, **options).kept
    assert kept.tolist() == [True, False, True, False, True, True, False]
    kept = group_advantage(torch.rand(7), groups, arms, **options, keep_between=(0.5, 2.0)).kept
    assert kept.tolist() == [False, True, False, True, False, False, False]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_one_sample_and_no_samples(scale):
    one = group_advantage(torch.tensor([3.0]), torch.tensor([5]), scale=scale)
    assert one.advantages.tolist() == [0.0] and one.std.tolist() == [0.0]
    none = group_advantage(torch.zeros(0), torch.zeros(0, dtype=torch.int64), scale=scale)
    assert none.advantages.shape == none.mean.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"rewards": torch.tensor([0.0, float("nan")])},
            r"rewards\[1\] is nan, not a finite number",
        ),
        ({"groups": torch.tensor([1])}, r"groups must have shape \(2\)"),
        ({"groups": torch.zeros(2)}, "groups must hold integer ids"),
        ({"arms": torch.zeros(2, dtype=int, device="meta")}, "arms must be on cpu, got meta"),
        ({"eps": -1.0}, "eps must not be negative"),
        ({"arms": torch.tensor([1])}, r"arms must have shape \(2\)"),
        ({"accuracy": torch.zeros(3)}, r"accuracy must have shape \(2\)"),
        ({"keep_between": (0.9, 0.1)}, "keep_between must ascend"),
        ({"scale": "std"}, "scale must be one of"),
        ({"pool": "arms"}, "pool must be one of"),
        ({"pool": "arm"}, 'pool="arm" needs arms'),
    ],
)
def test_wrong_arguments(arguments, message):
    good = {"rewards": torch.tensor([0.0, 1.0]), "groups": torch.tensor([0, 0])}
    with pytest.raises(ValueError, match=message):
        group_advantage(**{**good, **arguments})
