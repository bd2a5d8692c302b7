"""The policy-gradient loss on top of the head, in plain torch: log-probs, then `policy_loss`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmpi.reference.policy_loss import policy_loss
from fastmpi.reference.token_logprob import token_logprob


class PolicyHeadOutput(NamedTuple):
    """The loss, with gradient, and per-token measures, detached."""

    loss: Tensor  # scalar: sum of weights * (clipped objective + beta * kl)
    logprob: Tensor  # (M,)
    entropy: Tensor  # (M,)
    kl: Tensor  # (M,) k3 estimate of KL(model || reference); 0 without ref_logprob
    clipped_low: Tensor  # (M,) bool: ratio below 1 - epsilon, negative advantage: no gradient
    clipped_high: Tensor  # (M,) bool: ratio above 1 + epsilon_high, positive one: no gradient
    ratio: Tensor  # (M,)
    advantages: Tensor  # (S,)


def policy_head(
    hidden: Tensor,  # (T, H)
    head: Tensor,  # (V, H)
    rows: Tensor,  # (M,)
    targets: Tensor,  # (M,)
    sequences: Tensor,  # (M,)
    *,
    weights: Tensor,  # (M,)
    advantages: Tensor,  # (S,)
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    dtype: torch.dtype | None = None,
    **loss_options: Any,
) -> PolicyHeadOutput:
    """Log-probs of the scores, and `policy_loss` of them under its own options."""
    logprob, entropy = token_logprob(
        hidden, head, rows, targets, temperature=temperature, softcap=softcap,
        chunk_rows=chunk_rows, dtype=dtype,
    )  # fmt: skip
    loss, *measures = policy_loss(logprob, sequences, weights, advantages, **loss_options)
    return PolicyHeadOutput(loss, logprob.detach(), entropy.detach(), *measures)
