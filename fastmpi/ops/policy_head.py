"""The op ``policy_head``: argument checks and advantages, then one pass over the LM head.

On CUDA the kernels run: log-probs, loss and gradient at once, a product of matrices less than in
two passes. Ratios of whole sequences (GSPO) need every log-prob before the first gradient: those
take two passes, `token_logprob` and the loss on top. Elsewhere the reference runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastmpi.ops.backend import choose_backend
from fastmpi.ops.group_advantage import group_advantage
from fastmpi.ops.head_arguments import (
    check_head_arguments,
    column,
    fake_gradient,
    gradient_buffers,
    keep_gradients,
    needed_gradients,
    scale_gradients,
    waiting_gradients,
)
from fastmpi.ops.policy_loss import (
    check_advantages,
    check_clipping,
    check_columns,
    check_level,
    policy_loss,
)
from fastmpi.ops.tensor_checks import check_device, check_values
from fastmpi.ops.token_logprob import token_logprob
from fastmpi.reference import policy_head as reference
from fastmpi.reference.policy_head import PolicyHeadOutput

__all__ = ["PolicyHeadOutput", "policy_head"]


def _check_values(
    hidden: Tensor, head: Tensor, rows: Tensor, targets: Tensor, sequences: Tensor,
    weights: Tensor, advantages: Tensor, old: Tensor | None, ref: Tensor | None,
) -> None:  # fmt: skip
    check_values(
        {
            "rows": (rows, len(hidden)),
            "targets": (targets, len(head)),
            "sequences": (sequences, len(advantages)),
        },
        {"weights": weights, "advantages": advantages, "old_logprob": old, "ref_logprob": ref},
    )


def _advantages(
    advantages: Tensor | None, rewards: Tensor | None, groups: Tensor | None, arms: Tensor | None,
    scale: str, pool: str, eps: float,
) -> Tensor:  # fmt: skip
    check_advantages(advantages, rewards, groups, arms, scale, pool, eps)
    if advantages is not None:
        return advantages.detach()
    assert rewards is not None and groups is not None
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
    chunk_rows: int | None = None,
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> PolicyHeadOutput:
    """``loss = (weights * l).sum()`` with, per token,
    ``l = -min(min(ratio, delta) * A, ratio.clip(1 - epsilon, 1 + epsilon_high) * A) + beta * k3``,
    ``ratio = exp(logprob - old_logprob)``, ``A = advantages[sequences]``.

    The log-probs are those of `token_logprob`, under its options. Give ``advantages``, or
    ``rewards`` and ``groups`` (and ``arms``) of whole groups, from which `group_advantage` makes
    them under ``scale``, ``pool``, ``eps``. ``old_logprob`` None means that this is the first step
    on these responses: the ratio is 1 with the gradient of ``logprob``.
    ``importance_sampling_level="sequence"`` is GSPO: one ratio per sequence from the mean over its
    tokens of non-zero weight, so a sequence must lie in one call. ``epsilon_high`` None means
    ``epsilon``; ``delta`` is the upper bound of two-sided clipping. ``beta`` needs ``ref_logprob``.
    Names and formulas are TRL's (GRPO arXiv 2402.03300, DAPO 2503.14476). Returns the loss, which
    alone is differentiable, in ``hidden`` and ``head``, and detached measures in nats (see
    `PolicyHeadOutput`); float64 for float64 ``hidden``, else float32. Raises ``ValueError`` for
    shapes, ranges and numbers that cannot be.
    """
    epsilon_high = epsilon if epsilon_high is None else epsilon_high
    check_head_arguments(hidden, head, rows, targets, temperature, softcap, chunk_rows, dtype)
    check_clipping(epsilon, epsilon_high, delta)
    check_level(importance_sampling_level, beta, ref_logprob)
    check_columns(rows, sequences, weights, old_logprob, ref_logprob)
    advantages = _advantages(advantages, rewards, groups, arms, scale, pool, eps)
    clip: dict[str, Any] = {
        "epsilon": epsilon, "epsilon_high": epsilon_high, "delta": delta, "beta": beta,
    }  # fmt: skip
    product: dict[str, Any] = {
        "temperature": temperature, "softcap": softcap, "chunk_rows": chunk_rows, "dtype": dtype,
    }  # fmt: skip
    check_device(hidden.device, advantages=advantages)
    chosen = choose_backend(backend, hidden)
    if chosen == "triton" and importance_sampling_level == "token":
        found = _policy_head(
            hidden, head, rows, targets, sequences, weights.detach(), advantages, old_logprob,
            ref_logprob, **clip, **product, **needed_gradients(hidden, head),
        )  # fmt: skip
        everything = (*found[:7], advantages.to(torch.float32))
        return PolicyHeadOutput(*everything)
    _check_values(
        hidden, head, rows, targets, sequences, weights, advantages, old_logprob, ref_logprob
    )
    columns: dict[str, Any] = {
        "weights": weights.detach(), "advantages": advantages, "old_logprob": old_logprob,
        "ref_logprob": ref_logprob, "importance_sampling_level": importance_sampling_level,
    }  # fmt: skip
    if chosen == "reference":
        return reference.policy_head(
            hidden, head, rows, targets, sequences, **columns, **clip, **product
        )
    logprob, entropy = token_logprob(hidden, head, rows, targets, backend=chosen, **product)
    loss, *measures = policy_loss(
        logprob, sequences, **columns, **clip, backend=chosen, validate=False
    )
    return PolicyHeadOutput(loss, logprob.detach(), entropy.detach(), *measures)


@torch.library.custom_op("fastmpi::policy_head", mutates_args=())
def _policy_head(
    hidden: Tensor,
    head: Tensor,
    rows: Tensor,
    targets: Tensor,
    sequences: Tensor,
    weights: Tensor,
    advantages: Tensor,
    old_logprob: Tensor | None,
    ref_logprob: Tensor | None,
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
    beta: float,
    temperature: float,
    softcap: float | None,
    chunk_rows: int | None,
    dtype: torch.dtype | None,
    need_hidden: bool,
    need_head: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from fastmpi.kernels.policy_head import policy_scores

    _check_values(
        hidden, head, rows, targets, sequences, weights, advantages, old_logprob, ref_logprob
    )
    buffers = gradient_buffers(hidden, head, need_hidden, need_head)
    found = policy_scores(
        hidden, head, rows, targets, sequences.contiguous(), column(weights), column(advantages),
        None if old_logprob is None else column(old_logprob),
        None if ref_logprob is None else column(ref_logprob),
        epsilon=epsilon, epsilon_high=epsilon_high, delta=delta, beta=beta,
        temperature=temperature, softcap=softcap, chunk_rows=chunk_rows,
        dtype=dtype or hidden.dtype, **buffers,
    )  # fmt: skip
    loss = found.loss.sum(dtype=torch.float64).float()
    measures = (
        found.logprob, found.entropy, found.kl, found.clipped_low, found.clipped_high, found.ratio,
    )  # fmt: skip
    return loss, *measures, *waiting_gradients(hidden, head, **buffers)


@_policy_head.register_fake
def _(hidden: Tensor, head: Tensor, rows: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    need_hidden, need_head = rest[-2:]
    logprob, entropy, kl, ratio = (
        hidden.new_empty(len(rows), dtype=torch.float32) for _ in range(4)
    )
    low, high = (hidden.new_empty(len(rows), dtype=torch.bool) for _ in range(2))
    loss = hidden.new_empty((), dtype=torch.float32)
    gradients = fake_gradient(need_hidden, hidden), fake_gradient(need_head, head)
    return loss, logprob, entropy, kl, low, high, ratio, *gradients


_policy_head.register_autograd(scale_gradients, setup_context=keep_gradients)
