"""Group-relative advantages over a mixed group (GRPO's baseline), in plain torch.

Unusual: a group holds responses sampled from two prompts, without the policy and with it.
PolicyRollout pools both arms into one baseline (arXiv 2510.09474, Eq. 3); ``pool="arm"`` gives each
arm its own. The deviation is computed in two passes, since E[x^2] - E[x]^2 cancels, and a pool of
equal rewards is found by comparing values, so that rounding in the mean never becomes an advantage.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class GroupAdvantage(NamedTuple):
    """Advantages, and the statistics of the pool that each sample lies in."""

    advantages: Tensor  # (S,)
    mean: Tensor  # (S,)
    std: Tensor  # (S,) unbiased; 0 for a pool of one
    zero_variance: Tensor  # (S,) bool: all rewards of the pool are equal
    kept: Tensor  # (S,) bool: DAPO's filter on the mean accuracy of the whole group


def pool_index(groups: Tensor, arms: Tensor | None) -> Tensor:
    """(S,) consecutive numbers of the distinct groups or (group, arm) pairs."""
    keys = groups[:, None] if arms is None else torch.stack([groups, arms.to(groups.dtype)], 1)
    return keys.unique(dim=0, return_inverse=True)[1]


def pool_statistics(rewards: Tensor, pools: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, unbiased standard deviation and zero-variance flag of each sample's pool, (S,) each."""
    count = torch.bincount(pools)
    zeros = rewards.new_zeros(len(count))
    mean = zeros.index_add(0, pools, rewards) / count
    squares = zeros.index_add(0, pools, (rewards - mean[pools]) ** 2)
    std = (squares / (count - 1).clamp(min=1)).sqrt()
    low = zeros.scatter_reduce(0, pools, rewards, "amin", include_self=False)
    high = zeros.scatter_reduce(0, pools, rewards, "amax", include_self=False)
    return mean[pools], std[pools], (low == high)[pools]


def informative(accuracy: Tensor, groups: Tensor, low: float, high: float) -> Tensor:
    """(S,) whether the mean accuracy of each sample's group lies in (low, high).

    An accuracy that is NaN does not apply: it is left out, and a group of such alone is not kept.
    """
    group = pool_index(groups, None)
    applies = ~accuracy.isnan()
    mean = torch.bincount(group, accuracy.nan_to_num()) / torch.bincount(group, applies)
    return ((low < mean) & (mean < high))[group]


def group_advantage(
    rewards: Tensor,  # (S,)
    groups: Tensor,  # (S,)
    arms: Tensor | None = None,  # (S,)
    *,
    scale: str = "group",
    pool: str = "group",
    eps: float = 1e-4,
    accuracy: Tensor | None = None,  # (S,)
    keep_between: tuple[float, float] = (0.01, 0.99),
) -> GroupAdvantage:
    """``(rewards - mean) / (std + eps)`` of each sample's pool; 0 where all are equal."""
    pools = pool_index(groups, arms if pool == "arm" else None)
    mean, std, zero_variance = pool_statistics(rewards, pools)
    advantages = rewards - mean
    if scale == "group":
        advantages = advantages / (std + eps)
    elif scale == "batch" and len(rewards) > 1:
        advantages = advantages / (rewards.std() + eps)
    kept = torch.ones_like(zero_variance)
    if accuracy is not None:
        kept = informative(accuracy, groups, *keep_between)
    return GroupAdvantage(
        advantages.masked_fill(zero_variance, 0.0), mean, std, zero_variance, kept
    )
