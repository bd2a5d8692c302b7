"""Advantages of the mixed groups and the clipped loss of every token, in one launch.

Legend: M tokens (scores), S sequences. A program owns a block of tokens and computes the advantages
of the few sequences they lie in from the raw rewards; further programs write those of all
sequences. The gradient of the loss in the log-probs leaves with it, so a backward pass only
multiplies.

Unusual: a ratio per sequence (GSPO) needs sums over its tokens first: a second, smaller launch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmpi.kernels.group_advantage import batch_deviation, pool_advantage
from fastmpi.kernels.ordered_sum import add_in_order, ticket_counter
from fastmpi.kernels.policy_objective import clipped_objective, k3

BLOCK_TOKENS = 1024
BLOCK_SAMPLES = 8  # sequences whose advantages are computed at once
BLOCK_OTHERS = 128  # sequences compared with them at once


@triton.jit
def _advantage_of_tokens(
    sequence, valid, rewards, groups, arms, num_samples, eps,
    SCALE: tl.constexpr, BY_ARM: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_OTHERS: tl.constexpr,
):  # fmt: skip
    """(BLOCK_TOKENS,) from rewards. Tokens of one sequence lie together as a rule, so the sequences
    between a block's first and last are few."""
    first = tl.min(tl.where(valid, sequence, num_samples), 0)
    last = tl.max(tl.where(valid, sequence, -1), 0)
    advantage = tl.zeros([BLOCK_TOKENS], tl.float32)
    spread = batch_deviation(rewards, num_samples, SCALE, BLOCK_OTHERS)
    for start in range(first, last + 1, BLOCK_SAMPLES):
        sample = start + tl.arange(0, BLOCK_SAMPLES)
        own, _mean, _std, _flat = pool_advantage(
            rewards, groups, arms, sample, sample <= last, num_samples, spread, eps,
            SCALE, BY_ARM, BLOCK_SAMPLES, BLOCK_OTHERS,
        )  # fmt: skip
        place = sequence - start
        here = (place >= 0) & (place < BLOCK_SAMPLES)
        advantage = tl.where(here, tl.gather(own, tl.where(here, place, 0), 0), advantage)
    return advantage


@triton.jit
def _write_advantages(
    block, advantages_out, rewards, groups, arms, num_samples, eps,
    SCALE: tl.constexpr, BY_ARM: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_OTHERS: tl.constexpr,
):  # fmt: skip
    sample = block * BLOCK_SAMPLES + tl.arange(0, BLOCK_SAMPLES)
    valid = sample < num_samples
    spread = batch_deviation(rewards, num_samples, SCALE, BLOCK_OTHERS)
    own, _mean, _std, _flat = pool_advantage(
        rewards, groups, arms, sample, valid, num_samples, spread, eps,
        SCALE, BY_ARM, BLOCK_SAMPLES, BLOCK_OTHERS,
    )  # fmt: skip
    tl.store(advantages_out + sample, own, mask=valid)


# The last block's mask forbids 16-byte accesses, whatever the alignment. A compiler that does not
# know the alignment gives neighbouring tokens to neighbouring threads.
TOKEN_COLUMNS = [
    "logprob", "sequences", "weights", "old_logprob", "ref_logprob",
    "kl_out", "low_out", "high_out", "ratio_out", "slope_out", "partials",
]  # fmt: skip


@triton.jit(
    do_not_specialize=["num_tokens", "num_samples", "token_programs"],
    # counters lie 4 bytes apart, and a launch that a graph captures must compile nothing
    do_not_specialize_on_alignment=[*TOKEN_COLUMNS, "tickets"],
)
def _policy_loss(
    logprob, sequences, weights, old_logprob, ref_logprob,
    advantages, rewards, groups, arms, sequence_log_ratio, sequence_share,
    loss_out, kl_out, low_out, high_out, ratio_out, advantages_out, slope_out, partials, tickets,
    num_tokens, num_samples, token_programs, eps, clip_low, clip_high, delta, beta,
    SCALE: tl.constexpr, BY_ARM: tl.constexpr, FROM_REWARDS: tl.constexpr, HAS_OLD: tl.constexpr,
    HAS_REF: tl.constexpr, BY_SEQUENCE: tl.constexpr, BLOCK_TOKENS: tl.constexpr,
    BLOCK_SAMPLES: tl.constexpr, BLOCK_OTHERS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < token_programs:
        token = program * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        valid = token < num_tokens
        sequence = tl.load(sequences + token, mask=valid, other=0).to(tl.int32)
        new = tl.load(logprob + token, mask=valid, other=0.0).to(tl.float32)
        weight = tl.load(weights + token, mask=valid, other=0.0).to(tl.float32)
        old = new
        if HAS_OLD:
            old = tl.load(old_logprob + token, mask=valid, other=0.0).to(tl.float32)
        gap = tl.zeros([BLOCK_TOKENS], tl.float32)
        if HAS_REF:
            gap = tl.load(ref_logprob + token, mask=valid, other=0.0).to(tl.float32) - new
        if FROM_REWARDS:
            advantage = _advantage_of_tokens(
                sequence, valid, rewards, groups, arms, num_samples, eps,
                SCALE, BY_ARM, BLOCK_TOKENS, BLOCK_SAMPLES, BLOCK_OTHERS,
            )  # fmt: skip
        else:
            advantage = tl.load(advantages + sequence, mask=valid, other=0.0).to(tl.float32)

        log_ratio = new - old
        share = weight  # of the loss's slope in the ratio that the token's log-prob has
        if BY_SEQUENCE:
            log_ratio = tl.load(sequence_log_ratio + sequence, mask=valid, other=0.0)
            share = tl.load(sequence_share + sequence, mask=valid & (weight != 0), other=0.0)
        ratio = tl.exp(log_ratio)
        objective, slope = clipped_objective(ratio, advantage, clip_low, clip_high, delta)
        token_loss = 0.0 - objective
        slope = 0.0 - share * slope
        kl = gap
        if HAS_REF:
            kl = k3(gap)
            token_loss += beta * kl
            slope -= weight * beta * (kl + gap)

        tl.store(kl_out + token, kl, mask=valid)
        tl.store(low_out + token, (ratio < clip_low) & (advantage < 0), mask=valid)
        tl.store(high_out + token, (ratio > clip_high) & (advantage > 0), mask=valid)
        tl.store(ratio_out + token, ratio, mask=valid)
        tl.store(slope_out + token, slope, mask=valid)
        total = tl.sum(tl.where(valid, weight * token_loss, 0.0), 0)
        add_in_order(total, partials, tickets, loss_out, token_programs, BLOCK_TOKENS)
    elif FROM_REWARDS:
        _write_advantages(
            program - token_programs, advantages_out, rewards, groups, arms, num_samples, eps,
            SCALE, BY_ARM, BLOCK_SAMPLES, BLOCK_OTHERS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_tokens", "num_samples"])
def _sequence_sums(
    logprob, old_logprob, sequences, weights, log_ratio_out, share_out, num_tokens, num_samples,
    HAS_OLD: tl.constexpr, BLOCK_SAMPLES: tl.constexpr, BLOCK_OTHERS: tl.constexpr,
):  # fmt: skip
    """Of each sequence: the mean log-ratio of its tokens with weight, and the weight of each."""
    sample = tl.program_id(0) * BLOCK_SAMPLES + tl.arange(0, BLOCK_SAMPLES)
    total = tl.zeros([BLOCK_SAMPLES, BLOCK_OTHERS], tl.float32)
    total_weight = tl.zeros([BLOCK_SAMPLES, BLOCK_OTHERS], tl.float32)
    count = tl.zeros([BLOCK_SAMPLES, BLOCK_OTHERS], tl.float32)
    for start in range(0, num_tokens, BLOCK_OTHERS):
        token = start + tl.arange(0, BLOCK_OTHERS)
        inside = token < num_tokens
        sequence = tl.load(sequences + token, mask=inside, other=-1)
        weight = tl.load(weights + token, mask=inside, other=0.0).to(tl.float32)
        member = (sequence[None, :] == sample[:, None]) & (weight != 0)[None, :]
        count += tl.where(member, 1.0, 0.0)
        total_weight += tl.where(member, weight[None, :], 0.0)
        if HAS_OLD:
            old = tl.load(old_logprob + token, mask=inside, other=0.0).to(tl.float32)
            change = tl.load(logprob + token, mask=inside, other=0.0).to(tl.float32) - old
            total += tl.where(member, change[None, :], 0.0)
    size = tl.maximum(tl.sum(count, 1), 1.0)
    valid = sample < num_samples
    tl.store(log_ratio_out + sample, tl.sum(total, 1) / size, mask=valid)
    tl.store(share_out + sample, tl.sum(total_weight, 1) / size, mask=valid)


def policy_loss(
    logprob: Tensor,  # (M,)
    sequences: Tensor,  # (M,) int32 or int64 in [0, S)
    weights: Tensor,  # (M,)
    advantages: Tensor | None,  # (S,), or None: of rewards, groups and arms
    rewards: Tensor | None,  # (S,)
    groups: Tensor | None,  # (S,)
    arms: Tensor | None,  # (S,) None pools both arms
    old_logprob: Tensor | None,  # (M,)
    ref_logprob: Tensor | None,  # (M,)
    *,
    scale: str,
    eps: float,
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
    beta: float,
    by_sequence: bool,
) -> tuple[Tensor, ...]:
    """The fields of `PolicyLoss`, and the gradient of the loss in `logprob`, (M,).

    Columns may be of any float dtype; sums and results are float32. Advantages that were given come
    back empty.
    """
    columns = [
        x if x is None else x.contiguous()
        for x in (logprob, sequences, weights, old_logprob, ref_logprob,
                  advantages, rewards, groups, arms)
    ]  # fmt: skip
    num_tokens = len(logprob)
    num_samples = len(rewards if advantages is None else advantages)
    token_programs = max(1, triton.cdiv(num_tokens, BLOCK_TOKENS))
    sample_programs = triton.cdiv(num_samples, BLOCK_SAMPLES) if advantages is None else 0
    loss = logprob.new_empty((), dtype=torch.float32)
    partials = logprob.new_empty(token_programs, dtype=torch.float32)
    made = logprob.new_empty(num_samples if advantages is None else 0, dtype=torch.float32)
    kl, ratio, slope = (torch.empty_like(columns[0], dtype=torch.float32) for _ in range(3))
    low, high = (torch.empty_like(columns[0], dtype=torch.bool) for _ in range(2))
    _policy_loss[(token_programs + sample_programs,)](
        *columns, *(_sequence_means(*columns[:4], num_samples) if by_sequence else (None, None)),
        loss, kl, low, high, ratio, made, slope, partials, ticket_counter(logprob.device),
        num_tokens, num_samples, token_programs, eps, 1 - epsilon, 1 + epsilon_high,
        math.inf if delta is None else delta, beta,
        SCALE=scale, BY_ARM=arms is not None, FROM_REWARDS=advantages is None,
        HAS_OLD=old_logprob is not None, HAS_REF=ref_logprob is not None, BY_SEQUENCE=by_sequence,
        BLOCK_TOKENS=BLOCK_TOKENS, BLOCK_SAMPLES=BLOCK_SAMPLES, BLOCK_OTHERS=BLOCK_OTHERS,
        num_warps=8,
    )  # fmt: skip
    return loss, kl, low, high, ratio, made, slope


def _sequence_means(
    logprob: Tensor,
    sequences: Tensor,
    weights: Tensor,
    old_logprob: Tensor | None,
    num_samples: int,
) -> tuple[Tensor, Tensor]:
    """(S,) the mean log-ratio and the mean weight of each sequence's tokens with weight."""
    log_ratio, share = (logprob.new_empty(num_samples, dtype=torch.float32) for _ in range(2))
    if num_samples:
        _sequence_sums[(triton.cdiv(num_samples, BLOCK_SAMPLES),)](
            logprob, old_logprob, sequences, weights, log_ratio, share, len(logprob), num_samples,
            HAS_OLD=old_logprob is not None,
            BLOCK_SAMPLES=BLOCK_SAMPLES, BLOCK_OTHERS=BLOCK_OTHERS,
        )  # fmt: skip
    return log_ratio, share
