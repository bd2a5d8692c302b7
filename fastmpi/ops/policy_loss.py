"""The op ``policy_loss``: advantages and the loss of known log-probs, one launch on CUDA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmpi.ops.backend import choose_backend
from fastmpi.ops.group_advantage import check_pools, group_advantage
from fastmpi.ops.tensor_checks import check_device, check_shape, check_values
from fastmpi.reference import policy_loss as reference
from fastmpi.reference.policy_loss import PolicyLoss
from fastmpi.reference.token_logprob import score_dtype

__all__ = ["PolicyLoss", "policy_loss"]

LEVELS = ("token", "sequence")


def policy_loss(
    logprob: Tensor,  # (M,)
    sequences: Tensor,  # (M,) int64 in [0, S)
    *,
    weights: Tensor,  # (M,)
    advantages: Tensor | None = None,  # (S,)
    rewards: Tensor | None = None,  # (S,)
    groups: Tensor | None = None,  # (S,)
    arms: Tensor | None = None,  # (S,)
    scale: str = "group",
    pool: str = "group",
    eps: float = 1e-4,
    old_logprob: Tensor | None = None,  # (M,)
    ref_logprob: Tensor | None = None,  # (M,)
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    importance_sampling_level: str = "token",
    backend: str | None = None,
    validate: bool = True,
) -> PolicyLoss:
    """The loss of `policy_head` on log-probs that are known, differentiable in them.

    Arguments, names and formulas are those of `policy_head`. Results are float32, float64 for
    float64 ``logprob``. ``backend`` "triton", the default on CUDA, is one launch from rewards to
    loss and gradient (two with ratios per sequence), and the same bits in every run. Raises
    ``ValueError`` for shapes, ranges and numbers that cannot be; ``validate=False`` does not look
    at the tensors' values, so that a CUDA graph can capture the op.
    """
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    check_clipping(epsilon, epsilon_high, delta)
    check_level(importance_sampling_level, beta, ref_logprob)
    check_advantages(advantages, rewards, groups, arms, scale, pool, eps)
    check_shape("logprob", logprob, (None,))
    check_columns(logprob, sequences, weights, old_logprob, ref_logprob)
    check_device(logprob.device, advantages=advantages, rewards=rewards)
    logprob = logprob.to(score_dtype(logprob.dtype))
    clip: dict[str, Any] = {
        "epsilon": epsilon, "epsilon_high": epsilon_high, "delta": delta, "beta": beta,
    }  # fmt: skip
    if choose_backend(backend, logprob) == "triton":
        arms = arms if pool == "arm" else None
        loss, kl, low, high, ratio, made, _ = _policy_loss(
            logprob, sequences, weights, advantages, rewards, groups, arms,
            old_logprob, ref_logprob, scale, eps, **clip,
            by_sequence=importance_sampling_level == "sequence", validate=validate,
        )  # fmt: skip
        given = made if advantages is None else advantages.detach().to(made.dtype)
        return PolicyLoss(loss, kl, low, high, ratio, given)
    if validate:
        _check_values(sequences, weights, advantages, rewards, old_logprob, ref_logprob)
    if advantages is None:
        assert rewards is not None and groups is not None
        pools: dict[str, Any] = {"scale": scale, "pool": pool, "eps": eps, "validate": False}
        advantages = group_advantage(rewards, groups, arms, **pools, backend=backend).advantages
    return reference.policy_loss(
        logprob, sequences, weights, advantages.detach(), old_logprob=old_logprob,
        ref_logprob=ref_logprob, importance_sampling_level=importance_sampling_level, **clip,
    )  # fmt: skip


def check_columns(
    scores: Tensor, sequences: Tensor, weights: Tensor, old: Tensor | None, ref: Tensor | None
) -> None:
    """Raise ``ValueError`` unless each column has a value for every one of ``scores`` (M,)."""
    columns = {
        "sequences": sequences, "weights": weights, "old_logprob": old, "ref_logprob": ref,
    }  # fmt: skip
    for name, column in columns.items():
        if column is not None:
            check_shape(name, column, (len(scores),))
    check_device(scores.device, **columns)


def check_clipping(epsilon: float, epsilon_high: float, delta: float | None) -> None:
    """Raise ``ValueError`` unless the bounds of the ratio are in order."""
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must lie in [0, 1], got {epsilon}")
    if not epsilon_high >= 0:
        raise ValueError(f"epsilon_high must not be negative, got {epsilon_high}")
    if delta is not None and not delta > 1 + epsilon_high:
        raise ValueError(f"delta must be above 1 + epsilon_high = {1 + epsilon_high}, got {delta}")


def check_level(level: str, beta: float, ref_logprob: Tensor | None) -> None:
    """Raise ``ValueError`` for an unknown level of ratios, and for a KL without its reference."""
    if not beta >= 0:
        raise ValueError(f"beta must not be negative, got {beta}")
    if level not in LEVELS:
        raise ValueError(f"importance_sampling_level must be one of {LEVELS}, got {level!r}")
    if beta != 0 and ref_logprob is None:
        raise ValueError(f"beta = {beta} needs ref_logprob")


def check_advantages(
    advantages: Tensor | None, rewards: Tensor | None, groups: Tensor | None, arms: Tensor | None,
    scale: str, pool: str, eps: float,
) -> None:  # fmt: skip
    """Raise ``ValueError`` unless advantages are given, or what makes them."""
    if (advantages is None) == (rewards is None):
        raise ValueError("give either advantages or rewards with groups")
    if advantages is not None:
        check_shape("advantages", advantages, (None,))
        return
    if groups is None:
        raise ValueError("rewards need groups")
    assert rewards is not None
    check_pools(rewards, groups, arms, scale, pool, eps)


def _check_values(
    sequences: Tensor, weights: Tensor, advantages: Tensor | None, rewards: Tensor | None,
    old_logprob: Tensor | None, ref_logprob: Tensor | None,
) -> None:  # fmt: skip
    of_sequences = advantages if rewards is None else rewards
    assert of_sequences is not None
    check_values(
        {"sequences": (sequences, len(of_sequences))},
        {
            "weights": weights, "advantages": advantages, "rewards": rewards,
            "old_logprob": old_logprob, "ref_logprob": ref_logprob,
        },
    )  # fmt: skip


@torch.library.custom_op("fastmpi::policy_loss", mutates_args=())
def _policy_loss(
    logprob: Tensor,
    sequences: Tensor,
    weights: Tensor,
    advantages: Tensor | None,
    rewards: Tensor | None,
    groups: Tensor | None,
    arms: Tensor | None,
    old_logprob: Tensor | None,
    ref_logprob: Tensor | None,
    scale: str,
    eps: float,
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
    beta: float,
    by_sequence: bool,
    validate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `PolicyLoss` (advantages empty if given), and the gradient in `logprob`."""
    from fastmpi.kernels.policy_loss import policy_loss as launch

    if validate:  # in here, where torch.compile does not look
        _check_values(sequences, weights, advantages, rewards, old_logprob, ref_logprob)
    with torch.cuda.device_of(logprob):  # kernels are launched on the current device
        return launch(
            logprob, sequences, weights, advantages, rewards, groups, arms, old_logprob,
            ref_logprob, scale=scale, eps=eps, epsilon=epsilon, epsilon_high=epsilon_high,
            delta=delta, beta=beta, by_sequence=by_sequence,
        )  # fmt: skip


@_policy_loss.register_fake
def _(
    logprob: Tensor,
    sequences: Tensor,
    weights: Tensor,
    advantages: Tensor | None,
    rewards: Tensor | None,
    *_options: Any,
) -> tuple[Tensor, ...]:
    kl, ratio, slope = (torch.empty_like(logprob) for _ in range(3))
    low, high = (torch.empty_like(logprob, dtype=torch.bool) for _ in range(2))
    made = logprob.new_empty(0 if rewards is None else len(rewards))
    return logprob.new_empty(()), kl, low, high, ratio, made, slope


def _save_slope(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[-1])


def _scale_slope(ctx: Any, loss_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    (slope,) = ctx.saved_tensors
    return (slope * loss_gradient, *[None] * 16)


_policy_loss.register_autograd(_scale_slope, setup_context=_save_slope)
