"""Log-probs and entropies of scores, their backward pass, and the loss with its gradient at once.

Legend as in `head_chunks` and `head_rows`. One program does one distinct row with all its scores.
"""

from __future__ import annotations

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


@triton.jit(do_not_specialize=["first_row"])
def _score_rows(
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
    weights,  # (M,) of the loss; read only for the gradient
    scale,
    logprob,  # (M,) out
    entropy,  # (M,) out
    log_sum,  # (M,) out, of the score's row
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
        logit = tl.load(logits + tl.load(targets + score, mask=mask, other=0))
        value = shaped(logit, softcap, inverse_temperature) - row_sum
        tl.store(logprob + place, value, mask=mask)
        tl.store(entropy + place, tl.zeros_like(value) + row_entropy, mask=mask)
        tl.store(log_sum + place, tl.zeros_like(value) + row_sum, mask=mask)
        if gradient is not None:
            slope = -tl.load(weights + place, mask=mask, other=0.0)
            if scale is not None:
                slope *= tl.load(scale)
            tl.store(coefficients + score, slope, mask=mask)
            total += tl.sum(slope)
    if gradient is not None:
        tl.debug_barrier()  # coefficients are read by other threads than wrote them
        write_row_gradient(
            logits, gradient + row * gradient_stride, vocabulary, padded, softcap,
            inverse_temperature, row_sum, row_entropy, total, None, targets, coefficients,
            first, end, DEPTH, LANES,
        )  # fmt: skip


@triton.jit(do_not_specialize=["first_row"])
def _gradient_rows(
    logits,  # (N, padded)
    gradient,  # (N, padded)
    gradient_stride,
    vocabulary,
    padded,
    first_row,
    softcap,
    inverse_temperature,
    offsets,  # (U + 1,)
    targets,  # (M,) sorted, as coefficients
    order,  # (M,)
    grad_logprob,  # (M,)
    grad_entropy,  # (M,) or None
    scale,
    entropy,  # (M,)
    log_sum,  # (M,)
    coefficients,  # (M,) scratch
    DEPTH: constexpr,
    LANES: constexpr,
    SCORES: constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(offsets + first_row + row)
    end = tl.load(offsets + first_row + row + 1)
    total = 0.0
    entropy_total = 0.0 if grad_entropy is not None else None
    for start in range(first, end, SCORES):
        score = start + tl.arange(0, SCORES)
        mask = score < end
        place = tl.load(order + score, mask=mask, other=0)
        slope = tl.load(grad_logprob + place, mask=mask, other=0.0)
        if scale is not None:
            slope *= tl.load(scale)
        tl.store(coefficients + score, slope, mask=mask)
        total += tl.sum(slope)
        if grad_entropy is not None:
            entropy_slope = tl.load(grad_entropy + place, mask=mask, other=0.0)
            if scale is not None:
                entropy_slope *= tl.load(scale)
            entropy_total += tl.sum(entropy_slope)
    tl.debug_barrier()  # coefficients are read by other threads than wrote them
    place = tl.load(order + first)
    write_row_gradient(
        logits + row * padded, gradient + row * gradient_stride, vocabulary, padded, softcap,
        inverse_temperature, tl.load(log_sum + place), tl.load(entropy + place), total,
        entropy_total, targets, coefficients, first, end, DEPTH, LANES,
    )  # fmt: skip


def token_scores(
    hidden: Tensor,  # (T, H)
    head: Tensor,  # (V, H)
    rows: Tensor,  # (M,)
    targets: Tensor,  # (M,)
    weights: Tensor | None = None,  # (M,) float32
    *,
    temperature: float,
    softcap: float | None,
    chunk_rows: int | None,
    dtype: torch.dtype,
    dhidden: Tensor | None = None,  # (T, H) zeros to fill
    dhead: Tensor | None = None,  # (V, H) float32 zeros to fill
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies and the logarithms of their rows' sums, (M,) float32 each.

    Also fills the gradients that are given, of ``-(weights * logprob).sum()``.
    """
    scores = group_scores(rows, targets, len(head))
    logprob, entropy, log_sum, coefficients = (
        hidden.new_empty(len(rows), dtype=torch.float32) for _ in range(4)
    )
    scale = None if weights is None else gradient_scale(dtype, weights.abs(), scores)
    options = row_options(softcap)

    def launch(logits: Tensor, gradient: Tensor | None, first_row: int) -> None:
        _score_rows[(len(logits),)](
            logits, gradient, 0 if gradient is None else gradient.stride(0), len(head),
            logits.shape[1], first_row, softcap, 1 / temperature, scores.offsets, scores.targets,
            scores.order, weights, scale, logprob, entropy, log_sum, coefficients,
            **options,
        )  # fmt: skip

    over_chunks(
        hidden, head, scores, launch, chunk_rows=chunk_rows, dtype=dtype,
        dhidden=dhidden, dhead=dhead, scale=scale,
    )  # fmt: skip
    return logprob, entropy, log_sum


def token_gradients(
    hidden: Tensor,  # (T, H)
    head: Tensor,  # (V, H)
    rows: Tensor,  # (M,)
    targets: Tensor,  # (M,)
    grad_logprob: Tensor,  # (M,) float32
    grad_entropy: Tensor | None,  # (M,) float32
    entropy: Tensor,  # (M,) as `token_scores` found them
    log_sum: Tensor,  # (M,)
    *,
    temperature: float,
    softcap: float | None,
    chunk_rows: int | None,
    dtype: torch.dtype,
    dhidden: Tensor | None,  # (T, H) zeros to fill
    dhead: Tensor | None,  # (V, H) float32 zeros to fill
) -> None:
    """Fills the gradients that are given, from those of log-probs and entropies.

    The logits are made again."""
    scores = group_scores(rows, targets, len(head))
    bound = grad_logprob.abs() if grad_entropy is None else grad_logprob.abs() + grad_entropy.abs()
    scale = gradient_scale(dtype, bound, scores)
    coefficients = torch.empty_like(grad_logprob)
    options = row_options(softcap)

    def launch(logits: Tensor, gradient: Tensor | None, first_row: int) -> None:
        assert gradient is not None
        _gradient_rows[(len(logits),)](
            logits, gradient, gradient.stride(0), len(head), logits.shape[1], first_row, softcap,
            1 / temperature, scores.offsets, scores.targets, scores.order, grad_logprob,
            grad_entropy, scale, entropy, log_sum, coefficients,
            **options,
        )  # fmt: skip

    over_chunks(
        hidden, head, scores, launch, chunk_rows=chunk_rows, dtype=dtype,
        dhidden=dhidden, dhead=dhead, scale=scale,
    )  # fmt: skip
