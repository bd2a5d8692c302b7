"""Group advantages in one launch.

Legend: S samples (rewards). A program owns a few samples and compares each with all S.

Unusual: groups are ids in any order, so nobody sorts: S * S comparisons of cached values cost less
than the launches of a sort. All sums are of differences from the sample's own reward: a mean far
from zero does not cancel, and a pool of equal rewards has differences of exactly 0.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_SAMPLES = 8  # of a program
BLOCK_OTHERS = 128  # compared with them at once


@triton.jit
def same_pool(
    groups, arms, start, num_samples, group, arm, valid,
    BY_ARM: tl.constexpr, BLOCK_OTHERS: tl.constexpr,
):  # fmt: skip
    """Others (BLOCK_OTHERS,), and (samples, others) whether both are in one pool."""
    other = start + tl.arange(0, BLOCK_OTHERS)
    inside = other < num_samples
    member = group[:, None] == tl.load(groups + other, mask=inside, other=0)[None, :]
    if BY_ARM:
        member = member & (arm[:, None] == tl.load(arms + other, mask=inside, other=0)[None, :])
    return other, member & inside[None, :] & valid[:, None]


@triton.jit
def pool_statistics(
    rewards, groups, arms, sample, valid, num_samples,
    BY_ARM: tl.constexpr, BLOCK_SAMPLES: tl.constexpr, BLOCK_OTHERS: tl.constexpr,
):  # fmt: skip
    """Of each sample (BLOCK_SAMPLES,): its reward less the mean of its pool, the mean, the unbiased
    deviation, and whether all rewards of the pool are equal.

    Sums stay in columns until the end, so that no step of the scan waits for another thread.
    """
    reward = tl.load(rewards + sample, mask=valid, other=0.0).to(tl.float32)
    group = tl.load(groups + sample, mask=valid, other=0)
    arm = group
    if BY_ARM:
        arm = tl.load(arms + sample, mask=valid, other=0)
    total = tl.zeros([BLOCK_SAMPLES, BLOCK_OTHERS], tl.float32)
    count = tl.zeros([BLOCK_SAMPLES, BLOCK_OTHERS], tl.float32)
    differing = tl.zeros([BLOCK_SAMPLES, BLOCK_OTHERS], tl.int32)
    for start in tl.range(0, num_samples, BLOCK_OTHERS, loop_unroll_factor=4):
        other, member = same_pool(
            groups, arms, start, num_samples, group, arm, valid, BY_ARM, BLOCK_OTHERS
        )
        value = tl.load(rewards + other, mask=other < num_samples, other=0.0).to(tl.float32)
        difference = value[None, :] - reward[:, None]
        total += tl.where(member, difference, 0.0)
        count += tl.where(member, 1.0, 0.0)
        differing |= (member & (difference != 0)).to(tl.int32)
    size = tl.maximum(tl.sum(count, 1), 1.0)
    shift = tl.sum(total, 1) / size  # the pool's mean, less the sample's own reward

    squares = tl.zeros([BLOCK_SAMPLES, BLOCK_OTHERS], tl.float32)
    for start in tl.range(0, num_samples, BLOCK_OTHERS, loop_unroll_factor=4):
        other, member = same_pool(
            groups, arms, start, num_samples, group, arm, valid, BY_ARM, BLOCK_OTHERS
        )
        value = tl.load(rewards + other, mask=other < num_samples, other=0.0).to(tl.float32)
        deviation = value[None, :] - reward[:, None] - shift[:, None]
        squares += tl.where(member, deviation * deviation, 0.0)
    std = tl.sqrt(tl.sum(squares, 1) / tl.maximum(size - 1.0, 1.0))
    return 0.0 - shift, reward + shift, std, tl.max(differing, 1) == 0


@triton.jit
def batch_deviation(
    rewards, num_samples, SCALE: tl.constexpr, BLOCK_OTHERS: tl.constexpr
):  # fmt: skip
    """The unbiased deviation of all rewards, from their differences to the first; 0 unless the
    scale is "batch"."""
    if SCALE != "batch":
        return 0.0
    first = tl.load(rewards, mask=num_samples > 0, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK_OTHERS], tl.float32)
    for start in range(0, num_samples, BLOCK_OTHERS):
        other = start + tl.arange(0, BLOCK_OTHERS)
        inside = other < num_samples
        value = tl.load(rewards + other, mask=inside, other=0.0).to(tl.float32)
        total += tl.where(inside, value - first, 0.0)
    size = num_samples.to(tl.float32)
    shift = tl.sum(total, 0) / size
    squares = tl.zeros([BLOCK_OTHERS], tl.float32)
    for start in range(0, num_samples, BLOCK_OTHERS):
        other = start + tl.arange(0, BLOCK_OTHERS)
        inside = other < num_samples
        deviation = tl.load(rewards + other, mask=inside, other=0.0).to(tl.float32) - first - shift
        squares += tl.where(inside, deviation * deviation, 0.0)
    return tl.sqrt(tl.sum(squares, 0) / tl.maximum(size - 1.0, 1.0))


@triton.jit
def pool_advantage(
    rewards, groups, arms, sample, valid, num_samples, spread, eps,
    SCALE: tl.constexpr, BY_ARM: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_OTHERS: tl.constexpr,
):  # fmt: skip
    """Advantage, mean, deviation and zero-variance flag of samples (BLOCK_SAMPLES,); `spread` is
    the batch_deviation."""
    centred, mean, std, zero_variance = pool_statistics(
        rewards, groups, arms, sample, valid, num_samples, BY_ARM, BLOCK_SAMPLES, BLOCK_OTHERS
    )
    if SCALE == "group":
        centred = centred / (std + eps)
    if SCALE == "batch":
        centred = centred / (spread + eps)
    return tl.where(zero_variance, 0.0, centred), mean, std, zero_variance


@triton.jit
def group_accuracy(
    accuracy, groups, sample, valid, num_samples,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_OTHERS: tl.constexpr,
):  # fmt: skip
    """Mean accuracy of each sample's group, both arms; NaN without any that applies."""
    group = tl.load(groups + sample, mask=valid, other=0)
    total = tl.zeros([BLOCK_SAMPLES, BLOCK_OTHERS], tl.float32)
    count = tl.zeros([BLOCK_SAMPLES, BLOCK_OTHERS], tl.float32)
    for start in tl.range(0, num_samples, BLOCK_OTHERS, loop_unroll_factor=4):
        other, member = same_pool(
            groups, groups, start, num_samples, group, group, valid, False, BLOCK_OTHERS
        )
        value = tl.load(accuracy + other, mask=other < num_samples, other=0.0).to(tl.float32)
        applies = member & (value == value)[None, :]
        total += tl.where(applies, value[None, :], 0.0)
        count += tl.where(applies, 1.0, 0.0)
    size = tl.sum(count, 1)
    mean = tl.div_rn(tl.sum(total, 1), tl.maximum(size, 1.0))
    return tl.where(size > 0, mean, float("nan"))


@triton.jit(do_not_specialize=["num_samples"])
def _group_advantage(
    rewards, groups, arms, accuracy,
    advantage_out, mean_out, std_out, zero_variance_out, kept_out,
    num_samples, eps, low, high,
    SCALE: tl.constexpr, BY_ARM: tl.constexpr, FILTER: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_OTHERS: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0) * BLOCK_SAMPLES + tl.arange(0, BLOCK_SAMPLES)
    valid = sample < num_samples
    spread = batch_deviation(rewards, num_samples, SCALE, BLOCK_OTHERS)
    advantage, mean, std, zero_variance = pool_advantage(
        rewards, groups, arms, sample, valid, num_samples, spread, eps,
        SCALE, BY_ARM, BLOCK_SAMPLES, BLOCK_OTHERS,
    )  # fmt: skip
    tl.store(advantage_out + sample, advantage, mask=valid)
    tl.store(mean_out + sample, mean, mask=valid)
    tl.store(std_out + sample, std, mask=valid)
    tl.store(zero_variance_out + sample, zero_variance, mask=valid)
    kept = valid
    if FILTER:
        reached = group_accuracy(
            accuracy, groups, sample, valid, num_samples, BLOCK_SAMPLES, BLOCK_OTHERS
        )
        kept = (low < reached) & (reached < high)
    tl.store(kept_out + sample, kept, mask=valid)


def group_advantage(
    rewards: Tensor,  # (S,) float32, bfloat16 or float16
    groups: Tensor,  # (S,) integers
    arms: Tensor | None,  # (S,) integers; None pools both arms
    accuracy: Tensor | None,  # (S,)
    scale: str,
    eps: float,
    keep_between: tuple[float, float],
) -> tuple[Tensor, ...]:
    """The fields of `GroupAdvantage`, (S,) each."""
    total = len(rewards)
    numbers = [rewards.new_empty(total, dtype=torch.float32) for _ in range(3)]
    flags = [rewards.new_empty(total, dtype=torch.bool) for _ in range(2)]
    if not total:
        return *numbers, *flags
    columns = (x if x is None else x.contiguous() for x in (rewards, groups, arms, accuracy))
    _group_advantage[(triton.cdiv(total, BLOCK_SAMPLES),)](
        *columns, *numbers, *flags, total, eps, *keep_between,
        SCALE=scale, BY_ARM=arms is not None, FILTER=accuracy is not None,
        BLOCK_SAMPLES=BLOCK_SAMPLES, BLOCK_OTHERS=BLOCK_OTHERS,
    )  # fmt: skip
    return *numbers, *flags
