"""The op ``policy_head``: argument checks and advantages, then the reference on every device."""

from __future__ import annotations

from torch import Tensor

from fastmpi.ops.group_advantage import group_advantage
from fastmpi.ops.tensor_checks import check_finite, check_index, check_shape
from fastmpi.ops.token_logprob import check_head_arguments
from fastmpi.reference import policy_head as reference
from fastmpi.reference.policy_head import PolicyHeadOutput

__all__ = ["PolicyHeadOutput", "policy_head"]

LEVELS = ("token", "sequence")


def _check_clipping(epsilon: float, epsilon_high: float, delta: float | None) -> None:
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must lie in [0, 1], got {epsilon}")
    if epsilon_high < 0:
        raise ValueError(f"epsilon_high must not be negative, got {epsilon_high}")
    if delta is not None and delta <= 1 + epsilon_high:
        raise ValueError(f"delta must be above 1 + epsilon_high = {1 + epsilon_high}, got {delta}")


def _check_scores(sequences: Tensor, num_sequences: int, columns: dict[str, Tensor | None]) -> None:
    check_shape("sequences", sequences, (None,))
    check_index("sequences", sequences, num_sequences)
    for name, column in columns.items():
        if column is not None:
            check_shape(name, column, (len(sequences),))
            check_finite(name, column)


def _advantages(
    advantages: Tensor | None, rewards: Tensor | None, groups: Tensor | None, arms: Tensor | None,
    scale: str, pool: str, eps: float,
) -> Tensor:  # fmt: skip
    if (advantages is None) == (rewards is None):
        raise ValueError("give either advantages or rewards with groups")
    if advantages is not None:
        check_shape("advantages", advantages, (None,))
        check_finite("advantages", advantages)
        return advantages.detach()
    if groups is None:
        raise ValueError("rewards need groups")
    return group_advantage(rewards, groups, arms, scale=scale, pool=pool, eps=eps).advantages


def policy_head(
    hidden: Tensor,  # (T, H)
    head: Tensor,  # (V, H)
    rows: Tensor,  # (M,) int64
    targets: Tensor,  # (M,) int64
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
    temperature: float = 1.0,
    softcap: float | None = None,
) -> PolicyHeadOutput:
    """``loss = (weights * l).sum()`` with, per token,
    ``l = -min(min(ratio, delta) * A, ratio.clip(1 - epsilon, 1 + epsilon_high) * A) + beta * k3``,
    ``ratio = exp(logprob - old_logprob)``, ``A = advantages[sequences]``.

    The log-probs are those of `token_logprob`. Give ``advantages``, or ``rewards`` and ``groups``
    (and ``arms``) of whole groups, from which `group_advantage` makes them under ``scale``,
    ``pool``, ``eps``. ``old_logprob`` None means that this is the first step on these responses:
    the ratio is 1 with the gradient of ``logprob``. ``importance_sampling_level="sequence"`` is
    GSPO: one ratio per sequence from the mean over its tokens of non-zero weight, so a sequence
    must lie in one call. ``epsilon_high`` None means ``epsilon``; ``delta`` is the upper bound of
    two-sided clipping. ``beta`` needs ``ref_logprob``. Names and formulas are TRL's (GRPO arXiv
    2402.03300, DAPO 2503.14476). Raises ``ValueError`` for shapes, ranges and numbers that cannot
    be.
    """
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    check_head_arguments(hidden, head, rows, targets, temperature, softcap)
    _check_clipping(epsilon, epsilon_high, delta)
    advantages = _advantages(advantages, rewards, groups, arms, scale, pool, eps)
    check_shape("sequences", sequences, (len(rows),))
    columns = {"weights": weights, "old_logprob": old_logprob, "ref_logprob": ref_logprob}
    _check_scores(sequences, len(advantages), columns)
    if importance_sampling_level not in LEVELS:
        raise ValueError(
            f"importance_sampling_level must be one of {LEVELS}, got {importance_sampling_level!r}"
        )
    if beta != 0 and ref_logprob is None:
        raise ValueError(f"beta = {beta} needs ref_logprob")
    return reference.policy_head(
        hidden, head, rows, targets, sequences, weights=weights, advantages=advantages,
        old_logprob=old_logprob, ref_logprob=ref_logprob, epsilon=epsilon,
        epsilon_high=epsilon_high, delta=delta, beta=beta,
        importance_sampling_level=importance_sampling_level,
        temperature=temperature, softcap=softcap,
    )  # fmt: skip
