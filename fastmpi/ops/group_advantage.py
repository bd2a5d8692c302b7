"""The op ``group_advantage``: argument checks, then one launch on CUDA, the reference elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmpi.ops.backend import choose_backend
from fastmpi.ops.tensor_checks import check_device, check_finite, check_shape
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
    backend: str | None = None,
    validate: bool = True,
) -> GroupAdvantage:
    """``(rewards - mean) / (std + eps)`` over each sample's group.

    ``scale``: divide by the pool's own deviation ("group"), by that of all S rewards ("batch"), or
    not at all ("none", Dr.GRPO). ``pool``: one baseline for both arms of a group ("group", arXiv
    2510.09474 Eq. 3), or one per arm ("arm", which needs ``arms``). Deviations are unbiased, as in
    TRL. A pool of equal rewards gets advantages of exactly 0.

    ``kept`` is DAPO's filter: the mean of ``accuracy`` over the whole group, both arms together,
    lies strictly inside ``keep_between``. On accuracy alone, since a total that includes the format
    reward would let a group of well-formed wrong answers pass. An accuracy of NaN does not apply
    and is left out. All are kept without ``accuracy``.

    Results are float32, float64 for float64 rewards. ``backend`` "triton" is one launch; it is the
    default on CUDA. Raises ``ValueError`` for NaN or infinite rewards and unequal lengths;
    ``validate=False`` does not look at the rewards, so that a CUDA graph can capture the op.
    """
    check_pools(rewards, groups, arms, scale, pool, eps)
    if accuracy is not None:
        check_shape("accuracy", accuracy, (len(rewards),))
        check_device(rewards.device, accuracy=accuracy)
    low, high = keep_between
    if not low < high:
        raise ValueError(f"keep_between must ascend, got {low} and {high}")
    arms = arms if pool == "arm" else None
    if choose_backend(backend, rewards) == "triton":
        return GroupAdvantage(
            *_group_advantage(rewards, groups, arms, accuracy, scale, eps, low, high, validate)
        )
    if validate:
        check_finite("rewards", rewards)
    rewards = rewards.detach().to(score_dtype(rewards.dtype))
    return reference.group_advantage(
        rewards, groups.to(torch.int64), arms, scale=scale, pool=pool, eps=eps,
        accuracy=accuracy, keep_between=keep_between,
    )  # fmt: skip


def check_pools(
    rewards: Tensor, groups: Tensor, arms: Tensor | None, scale: str, pool: str, eps: float
) -> None:
    """Raise ``ValueError`` unless the arguments describe pools of rewards."""
    check_shape("rewards", rewards, (None,))
    for name, ids in {"groups": groups, "arms": arms}.items():
        if ids is None:
            continue
        check_shape(name, ids, (len(rewards),))
        check_device(rewards.device, **{name: ids})
        if ids.is_floating_point():
            raise ValueError(f"{name} must hold integer ids, got {ids.dtype}")
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {SCALES}, got {scale!r}")
    if pool not in POOLS:
        raise ValueError(f"pool must be one of {POOLS}, got {pool!r}")
    if pool == "arm" and arms is None:
        raise ValueError('pool="arm" needs arms')
    if not eps >= 0:
        raise ValueError(f"eps must not be negative, got {eps}")


@torch.library.custom_op("fastmpi::group_advantage", mutates_args=())
def _group_advantage(
    rewards: Tensor,
    groups: Tensor,
    arms: Tensor | None,
    accuracy: Tensor | None,
    scale: str,
    eps: float,
    low: float,
    high: float,
    validate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from fastmpi.kernels.group_advantage import group_advantage as launch

    if validate:  # in here, where torch.compile does not look
        check_finite("rewards", rewards)
    with torch.cuda.device_of(rewards):  # kernels are launched on the current device
        return launch(rewards, groups, arms, accuracy, scale, eps, (low, high))


@_group_advantage.register_fake
def _(
    rewards: Tensor, groups: Tensor, arms: Tensor | None, accuracy: Tensor | None,
    scale: str, eps: float, low: float, high: float, validate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    advantages, mean, std = (rewards.new_empty(rewards.shape, dtype=torch.float32) for _ in "ams")
    flat, kept = (rewards.new_empty(rewards.shape, dtype=torch.bool) for _ in "zk")
    return advantages, mean, std, flat, kept
