"""The op ``group_advantage``: argument checks, then the reference on every device."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmpi.ops.tensor_checks import check_finite, check_shape
from fastmpi.reference import group_advantage as reference
from fastmpi.reference.group_advantage import GroupAdvantage
from fastmpi.reference.token_logprob import score_dtype

__all__ = ["GroupAdvantage", "group_advantage"]

SCALES = ("group", "batch", "none")
POOLS = ("group", "arm")


def group_advantage(
    rewards: Tensor,  # (S,) any float dtype
    groups: Tensor,  # (S,) integer ids, any values, any order
    arms: Tensor | None = None,  # (S,) integer ids
    *,
    scale: str = "group",
    pool: str = "group",
    eps: float = 1e-4,
    accuracy: Tensor | None = None,  # (S,)
    keep_between: tuple[float, float] = (0.01, 0.99),
) -> GroupAdvantage:
    """``(rewards - mean) / (std + eps)`` over each sample's group.

    ``scale``: divide by the pool's own deviation ("group"), by that of all S rewards ("batch"), or
    not at all ("none", Dr.GRPO). ``pool``: one baseline for both arms of a group ("group", arXiv
    2510.09474 Eq. 3), or one per arm ("arm", which needs ``arms``). Deviations are unbiased, as in
    TRL. A pool of equal rewards gets advantages of exactly 0.

    ``kept`` is DAPO's filter: the mean of ``accuracy`` over the whole group, both arms together,
    lies strictly inside ``keep_between``. An accuracy of NaN does not apply and is left out. All
    are kept without ``accuracy``.

    Results are float32, float64 for float64 rewards. Raises ``ValueError`` for NaN or infinite
    rewards and unequal lengths.
    """
    check_shape("rewards", rewards, (None,))
    for name, column in {"groups": groups, "arms": arms, "accuracy": accuracy}.items():
        if column is not None:
            check_shape(name, column, (len(rewards),))
    check_finite("rewards", rewards)
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {SCALES}, got {scale!r}")
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {POOLS}, got {pool!r}")
    if pool == "arm" and arms is None:
        raise ValueError('pool="arm" needs arms')
    rewards = rewards.detach().to(score_dtype(rewards.dtype))
    return reference.group_advantage(
        rewards, groups.to(torch.int64), arms, scale=scale, pool=pool, eps=eps,
        accuracy=accuracy, keep_between=keep_between,
    )  # fmt: skip
