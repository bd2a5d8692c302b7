"""What one program does with one row of logits: its statistics, and its gradient in place.

Legend: V vocabulary; a row is V float32 logits as the product made them, before soft-cap and
temperature. `logits` and `gradient` point at the row's first element and may be the same memory.
A tile is (DEPTH, LANES) consecutive logits. LANES is four floats for each thread of the program, so
DEPTH lies within a thread: a tile is reduced over it without a shuffle, in 16-byte accesses.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language import constexpr

MASKED: constexpr = constexpr(-1e30)  # below every logit, and finite: it may be subtracted
LOWEST: constexpr = constexpr(-1e20)  # a maximum over nothing; exp(MASKED - LOWEST) is 0


@triton.jit
def tile_columns(tile, DEPTH: constexpr, LANES: constexpr):
    """(DEPTH, LANES) columns of the tile of this number.

    The compiler may count on four consecutive ones, no more: with eight, for 16-byte stores of
    16-bit gradients, a thread would no longer hold the whole depth of its lanes.
    """
    first = tile * (DEPTH * LANES) + tl.arange(0, DEPTH)[:, None] * LANES
    return tl.max_contiguous(first + tl.arange(0, LANES)[None, :], (1, 4))


@triton.jit
def bent(logit, softcap):
    """tanh(logit / softcap)"""
    return 2.0 / (1.0 + tl.exp(logit * (-2.0 / softcap))) - 1.0


@triton.jit
def shaped(logit, softcap, inverse_temperature):
    """The logit after soft-cap and temperature."""
    if softcap is not None:
        logit = softcap * bent(logit, softcap)
    return logit * inverse_temperature


@triton.jit
def row_statistics(
    logits,
    vocabulary,
    padded,
    softcap,
    inverse_temperature,
    DEPTH: constexpr,
    LANES: constexpr,
):
    """Log of the sum of exponentials of the shaped logits, and the entropy of their softmax.

    Each lane keeps its own maximum m, sum s of exp(z - m) and sum u of exp(z - m) (z - m); lanes
    meet once, at the end. The entropy is log s - u / s: no large numbers are subtracted.
    """
    m = tl.full((LANES,), LOWEST, tl.float32)
    s = tl.zeros((LANES,), tl.float32)
    u = tl.zeros((LANES,), tl.float32)
    for tile in range(tl.cdiv(vocabulary, DEPTH * LANES)):
        column = tile_columns(tile, DEPTH, LANES)
        z = shaped(tl.load(logits + column, mask=column < padded), softcap, inverse_temperature)
        z = tl.where(column < vocabulary, z, MASKED)
        peak = tl.maximum(m, tl.max(z, 0))
        shift = m - peak
        shrink = tl.exp(shift)
        below = z - peak[None, :]
        share = tl.exp(below)
        u = shrink * (u + shift * s) + tl.sum(share * below, 0)
        s = shrink * s + tl.sum(share, 0)
        m = peak
    top = tl.max(m, 0)
    shift = m - top
    shrink = tl.exp(shift)
    u = tl.sum(shrink * (u + shift * s), 0)
    s = tl.sum(shrink * s, 0)
    log_sum = tl.log(s)
    return top + log_sum, log_sum - u / s


@triton.jit
def write_row_gradient(
    logits,
    gradient,
    vocabulary,
    padded,
    softcap,
    inverse_temperature,
    log_sum,  # of the row's exponentials
    entropy,  # of the row
    total,  # sum of the coefficients of the row's scores
    entropy_coefficient,  # d loss / d entropy, or None
    targets,  # (M,) ascending within the row
    coefficients,  # (M,) d loss / d logprob of each score
    first,
    end,  # the row's scores
    DEPTH: constexpr,
    LANES: constexpr,
):
    """d loss / d logit of the row, `padded` values, zeros beyond the vocabulary.

    Tiles go from the last to the first, since the last were read last and may still lie in the
    cache. 16-bit gradients lie in the second half of the row's own bytes, so a tile is written over
    logits that this or an earlier tile has read; the barrier holds back the writes until all
    threads have read. The next target is at hand all the time: a tile without one costs a compare.
    """
    score = end - 1
    target = tl.load(targets + score)
    num_tiles = tl.cdiv(vocabulary, DEPTH * LANES)
    for step in range(num_tiles):
        tile = num_tiles - 1 - step
        column = tile_columns(tile, DEPTH, LANES)
        logit = tl.load(
            logits + column, mask=column < padded, other=0.0, eviction_policy="evict_first"
        )
        logprob = shaped(logit, softcap, inverse_temperature) - log_sum
        probability = tl.exp(logprob)
        slope = -total * probability
        if entropy_coefficient is not None:
            slope -= entropy_coefficient * probability * (logprob + entropy)
        while target >= tile * (DEPTH * LANES):
            slope += tl.where(column == target, tl.load(coefficients + score), 0.0)
            score -= 1
            target = tl.load(targets + score, mask=score >= first, other=-1)
        slope *= inverse_temperature
        if softcap is not None:
            bend = bent(logit, softcap)
            slope *= 1.0 - bend * bend
        slope = tl.where(column < vocabulary, slope, 0.0)
        tl.debug_barrier()
        tl.store(gradient + column, slope.to(gradient.dtype.element_ty), mask=column < padded)
