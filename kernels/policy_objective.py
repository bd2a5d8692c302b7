"""The clipped objective of a token and its slope, and k3, for the kernels that need them.

Plain functions of blocks of tokens; the formulas are those of `reference/policy_loss.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def k3(gap):
    """exp(gap) - gap - 1, never negative, to full precision around 0 (there is no expm1 here)."""
    series = 1.0 + gap / 9.0
    series = 1.0 + gap / 8.0 * series
    series = 1.0 + gap / 7.0 * series
    series = 1.0 + gap / 6.0 * series
    series = 1.0 + gap / 5.0 * series
    series = 1.0 + gap / 4.0 * series
    series = 1.0 + gap / 3.0 * series
    small = gap * gap / 2.0 * series
    return tl.where(tl.abs(gap) < 0.5, small, tl.exp(gap) - gap - 1.0)


@triton.jit
def clipped_objective(ratio, advantage, low, high, delta):
    """min(min(ratio, delta) A, clip(ratio, low, high) A), and its slope in log ratio.

    Where both sides are equal, each has half of the slope, as with autograd's minimum.
    """
    left = tl.minimum(ratio, delta) * advantage
    right = tl.minimum(tl.maximum(ratio, low), high) * advantage
    slope = ratio * advantage
    left_slope = tl.where(ratio <= delta, slope, 0.0)
    right_slope = tl.where((ratio >= low) & (ratio <= high), slope, 0.0)
    even = 0.5 * (left_slope + right_slope)
    slope = tl.where(left < right, left_slope, tl.where(right < left, right_slope, even))
    return tl.minimum(left, right), slope
