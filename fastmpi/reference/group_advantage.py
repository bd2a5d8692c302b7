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
    """Advantages, and the statistics of each pool. Pools are ordered by group id, then by arm."""

    advantages: Tensor  # (S,)
    mean: Tensor  # (G,)
    std: Tensor  # (G,) unbiased; 0 for a pool of one
    zero_variance: Tensor  # (G,) bool: all rewards of the pool are equal
    pools: Tensor  # (S,) the pool of each sample


def pool_index(groups: Tensor, arms: Tensor | None) -> Tensor:
    """(S,) consecutive numbers of the distinct groups or (group, arm) pairs."""
    keys = groups[:, None] if arms is None else torch.stack([groups, arms.to(groups.dtype)], 1)
    return keys.unique(dim=0, return_inverse=True)[1]


def pool_statistics(rewards: Tensor, pools: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, unbiased standard deviation and zero-variance flag of each pool, (G,) each."""
    count = torch.bincount(pools)
    zeros = rewards.new_zeros(len(count))
    mean = zeros.index_add(0, pools, rewards) / count
    squares = zeros.index_add(0, pools, (rewards - mean[pools]) ** 2)
    std = (squares / (count - 1).clamp(min=1)).sqrt()
    low = zeros.scatter_reduce(0, pools, rewards, "amin", include_self=False)
    high = zeros.scatter_reduce(0, pools, rewards, "amax", include_self=False)
    return mean, std, low == high


def group_advantage(
    rewards: Tensor,  # (S,)
    groups: Tensor,  # (S,)
    arms: Tensor | None = None,  # (S,)
    *,
    scale: str = "group",
    pool: str = "group",
    eps: float = 1e-4,
) -> GroupAdvantage:
    """``(rewards - mean) / (std + eps)`` of each sample's pool; 0 where all are equal."""
    pools = pool_index(groups, arms if pool == "arm" else None)
    mean, std, zero_variance = pool_statistics(rewards, pools)
    advantages = (rewards - mean[pools]).masked_fill(zero_variance[pools], 0.0)
    if scale == "group":
        advantages = advantages / (std[pools] + eps)
    elif scale == "batch" and len(rewards) > 1:
        advantages = advantages / (rewards.std() + eps)
    return GroupAdvantage(advantages, mean, std, zero_variance, pools)
