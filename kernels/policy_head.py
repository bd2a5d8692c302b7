"""Log-probs, policy-gradient loss, KL and the gradient of the logits in one pass over the head.

Legend as in `head_chunks` and `head_rows`; S sequences. One program does one distinct row with all
its scores: it reads its logits twice and writes their gradient once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

from fastmpi.kernels.head_chunks import (
    gradient_scale,
    group_scores,
    over_chunks,
    row_options,
)
from fastmpi.kernels.head_rows import row_statistics, shaped, write_row_gradient
from fastmpi.kernels.policy_objective import clipped_objective, k3


class PolicyScores(NamedTuple):
    """What the kernel finds for each score, (M,) each."""

    logprob: Tensor
    entropy: Tensor
    kl: Tensor
    ratio: Tensor
    loss: Tensor
    clipped_low: Tensor
    clipped_high: Tensor


@triton.jit(do_not_specialize=["first_row"])
def _policy_rows(
    logits,  # (N, padded)
    gradient,  # (N, padded) or None: forward only
    gradient_stride,
    vocabulary,
    padded,
    first_row,
    softcap,
    inverse_temperature,
    offsets,  # (U + 1,)
    targets,  # (M,) sorted, as coefficients
    order,  # (M,)
    sequences,  # (M,)
    weights,  # (M,)
    advantages,  # (S,)
    old_logprob,  # (M,) or None: the ratio is 1
    ref_logprob,  # (M,) or None: no KL
    low,
    high,
    delta,
    beta,
    scale,
    logprob,  # (M,) out, as those below
    entropy,
    kl,
    ratio,
    loss,
    clipped_low,
    clipped_high,
    coefficients,  # (M,) scratch
    DEPTH: constexpr,
    LANES: constexpr,
    SCORES: constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * padded
    first = tl.load(offsets + first_row + row)
    end = tl.load(offsets + first_row + row + 1)
    row_sum, row_entropy = row_statistics(
        logits, vocabulary, padded, softcap, inverse_temperature, DEPTH, LANES
    )
    total = 0.0
    for start in range(first, end, SCORES):
        score = start + tl.arange(0, SCORES)
        mask = score < end
        place = tl.load(order + score, mask=mask, other=0)
        weight = tl.load(weights + place, mask=mask, other=0.0)
        advantage = tl.load(advantages + tl.load(sequences + place, mask=mask, other=0))
        logit = tl.load(logits + tl.load(targets + score, mask=mask, other=0))
        value = shaped(logit, softcap, inverse_temperature) - row_sum
        quotient = tl.full(value.shape, 1.0, tl.float32)
        if old_logprob is not None:
            quotient = tl.exp(value - tl.load(old_logprob + place, mask=mask, other=0.0))
        objective, slope = clipped_objective(quotient, advantage, low, high, delta)
        token_loss = -objective
        slope = -slope
        divergence = tl.zeros_like(value)
        if ref_logprob is not None:
            gap = tl.load(ref_logprob + place, mask=mask, other=0.0) - value
            divergence = k3(gap)
            token_loss += beta * divergence
            slope -= beta * (gap + divergence)  # gap + k3 is exp(gap) - 1
        tl.store(logprob + place, value, mask=mask)
        tl.store(entropy + place, tl.zeros_like(value) + row_entropy, mask=mask)
        tl.store(kl + place, divergence, mask=mask)
        tl.store(ratio + place, quotient, mask=mask)
        tl.store(loss + place, weight * token_loss, mask=mask)
        tl.store(clipped_low + place, (quotient < low) & (advantage < 0), mask=mask)
        tl.store(clipped_high + place, (quotient > high) & (advantage > 0), mask=mask)
        if gradient is not None:
            slope *= weight
            if scale is not None:
                slope *= tl.load(scale)
            tl.store(coefficients + score, slope, mask=mask)
            total += tl.sum(tl.where(mask, slope, 0.0))
    if gradient is not None:
        tl.debug_barrier()  # coefficients are read by other threads than wrote them
        write_row_gradient(
            logits, gradient + row * gradient_stride, vocabulary, padded, softcap,
            inverse_temperature, row_sum, row_entropy, total, None, targets, coefficients,
            first, end, DEPTH, LANES,
        )  # fmt: skip


def policy_scores(
    hidden: Tensor,  # (T, H)
    head: Tensor,  # (V, H)
    rows: Tensor,  # (M,)
    targets: Tensor,  # (M,)
    sequences: Tensor,  # (M,) in [0, S)
    weights: Tensor,  # (M,) float32
    advantages: Tensor,  # (S,) float32
    old_logprob: Tensor | None,  # (M,) float32
    ref_logprob: Tensor | None,  # (M,) float32
    *,
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
    beta: float,
    temperature: float,
    softcap: float | None,
    chunk_rows: int | None,
    dtype: torch.dtype,
    dhidden: Tensor | None,  # (T, H) zeros to fill
    dhead: Tensor | None,  # (V, H) float32 zeros to fill
) -> PolicyScores:
    """Everything about each score. Fills the gradients that are given, of the sum of losses."""
    scores = group_scores(rows, targets, len(head))
    found = _empty_scores(hidden, len(rows))
    bound = weights.abs() * (advantages.abs()[sequences] * (1 + epsilon_high) + beta)
    scale = gradient_scale(dtype, bound, scores)
    coefficients = torch.empty_like(found.logprob)
    options = row_options(softcap)

    def launch(logits: Tensor, gradient: Tensor | None, first_row: int) -> None:
        _policy_rows[(len(logits),)](
            logits, gradient, 0 if gradient is None else gradient.stride(0), len(head),
            logits.shape[1], first_row, softcap, 1 / temperature, scores.offsets, scores.targets,
            scores.order, sequences, weights, advantages, old_logprob, ref_logprob, 1 - epsilon,
            1 + epsilon_high, float("inf") if delta is None else delta, beta, scale, found.logprob,
            found.entropy, found.kl, found.ratio, found.loss, found.clipped_low,
            found.clipped_high, coefficients,
            **options,
        )  # fmt: skip

    over_chunks(
        hidden, head, scores, launch, chunk_rows=chunk_rows, dtype=dtype,
        dhidden=dhidden, dhead=dhead, scale=scale,
    )  # fmt: skip
    return found


def _empty_scores(hidden: Tensor, count: int) -> PolicyScores:
    """Seven tensors of their own: the outputs of a custom op share no memory."""
    numbers = [hidden.new_empty(count, dtype=torch.float32) for _ in range(5)]
    flags = [hidden.new_empty(count, dtype=torch.bool) for _ in range(2)]
    return PolicyScores(*numbers, *flags)
