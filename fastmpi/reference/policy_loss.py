"""The clipped policy-gradient loss, as pure functions on per-token tensors.

Legend: M scores (tokens), S sequences (responses). All logarithms are natural.
Unusual: nothing here averages. Every token carries its final weight (`ops/loss_weights.py`),
computed over the whole optimiser step, so that the sum over micro-batches does not depend on how
the step was cut. Old and reference log-probs come from the policy-free prompt for both arms; the
policy-aware arm is not corrected toward the prompt it was sampled with (arXiv 2510.09474, Eq. 3).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    """The loss, with gradient, and per-token measures, detached."""

    loss: Tensor  # scalar: sum of weights * (clipped objective + beta * kl)
    kl: Tensor  # (M,) k3 estimate of KL(model || reference); 0 without ref_logprob
    clipped_low: Tensor  # (M,) bool: ratio below 1 - epsilon, negative advantage: no gradient
    clipped_high: Tensor  # (M,) bool: ratio above 1 + epsilon_high, positive one: no gradient
    ratio: Tensor  # (M,)
    advantages: Tensor  # (S,)


def sequence_mean(values: Tensor, sequences: Tensor, mask: Tensor, num_sequences: int) -> Tensor:
    """(S,) mean of ``values`` (M,) over the unmasked tokens of each sequence, 0 without any."""
    zeros = values.new_zeros(num_sequences)
    total = zeros.index_add(0, sequences, values * mask)
    return total / zeros.index_add(0, sequences, mask.to(values.dtype)).clamp(min=1)


def k3_kl(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """``exp(ref - logprob) - (ref - logprob) - 1``: the low-variance estimate, never negative."""
    difference = ref_logprob - logprob
    return torch.expm1(difference) - difference


def clipped_objective(
    ratio: Tensor,  # (M,)
    advantage: Tensor,  # (M,)
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
) -> Tensor:
    """``min(min(ratio, delta) * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A)``, (M,)."""
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    if delta is not None:
        ratio = ratio.clamp(max=delta)
    return torch.minimum(ratio * advantage, clipped * advantage)


def importance_ratio(
    logprob: Tensor,  # (M,)
    old_logprob: Tensor,  # (M,)
    sequences: Tensor,  # (M,)
    mask: Tensor,  # (M,) bool
    num_sequences: int,
    level: str,
) -> Tensor:
    """``exp(logprob - old_logprob)`` per token, (M,); GSPO's: of the sequence's mean log-ratio."""
    log_ratio = logprob - old_logprob
    if level == "sequence":
        log_ratio = sequence_mean(log_ratio, sequences, mask, num_sequences)[sequences]
    return log_ratio.exp()


def policy_loss(
    logprob: Tensor,  # (M,)
    sequences: Tensor,  # (M,)
    weights: Tensor,  # (M,)
    advantages: Tensor,  # (S,)
    *,
    old_logprob: Tensor | None = None,  # (M,)
    ref_logprob: Tensor | None = None,  # (M,)
    epsilon: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
    beta: float = 0.0,
    importance_sampling_level: str = "token",
) -> PolicyLoss:
    """The clipped policy-gradient loss of the scores, in the precision of their log-probs."""
    weights, advantages = weights.to(logprob.dtype), advantages.to(logprob.dtype)
    advantage = advantages[sequences]
    old = logprob.detach() if old_logprob is None else old_logprob.to(logprob.dtype)
    ratio = importance_ratio(
        logprob, old, sequences, weights != 0, len(advantages), importance_sampling_level
    )
    token_loss = -clipped_objective(ratio, advantage, epsilon, epsilon_high, delta)
    kl = torch.zeros_like(logprob)
    if ref_logprob is not None:
        kl = k3_kl(logprob, ref_logprob.to(logprob.dtype))
        token_loss = token_loss + beta * kl
    return PolicyLoss(
        loss=(weights * token_loss).sum(),
        kl=kl.detach(),
        clipped_low=(ratio.detach() < 1 - epsilon) & (advantage < 0),
        clipped_high=(ratio.detach() > 1 + epsilon_high) & (advantage > 0),
        ratio=ratio.detach(),
        advantages=advantages,
    )
