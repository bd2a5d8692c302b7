"""`group_advantage` with the loss on log-probs: rewards to advantages to the gradient.

All arms return the same: advantages, the gradient by the log-probs, and what was clipped. Work of
this size is launches: `ms` is what a step waits for, `graph_ms` the kernels alone, replayed from a
CUDA graph with a warm cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from fastmpi.benchmarks.harness import Case, Outputs, Run
from fastmpi.benchmarks.peers import compiled
from fastmpi.ops.policy_loss import policy_loss

EPSILON = 0.2
EPS = 1e-4
GROUP = 16  # 8 policy-free and 8 policy-aware responses


@dataclass(frozen=True)
class Rollouts:
    """G groups of 16 responses of L tokens; S = 16 G, M = S L."""

    logprob: Tensor  # (M,), a leaf that wants its gradient
    old_logprob: Tensor  # (M,)
    sequences: Tensor  # (M,)
    weights: Tensor  # (M,) 1 / M
    rewards: Tensor  # (S,)
    groups: Tensor  # (S,)


def cases(device: torch.device, small: bool) -> list[Case]:
    """64 groups of 16 with 256 tokens each, or a few short ones."""
    return [_case(8, 64, device)] if small else [_case(64, 256, device)]


def _case(num_groups: int, length: int, device: torch.device) -> Case:
    rollouts = cache(partial(make_rollouts, num_groups, length, device))
    arms: dict[str, Callable[[], Run]] = {
        "fastmpi": lambda: _ours(rollouts()),
        "eager": lambda: partial(trainers_loss, rollouts()),
        "compile": lambda: partial(compiled(trainers_loss), rollouts()),
    }
    num_tokens = num_groups * GROUP * length
    return Case(
        name=f"{num_groups} groups x {GROUP}, {length} tokens",
        arms=arms,
        exact=lambda: trainers_loss(_in_double(rollouts())),
        counts={"bytes": 12 * num_tokens},  # log-probs, old ones, gradient
        graphed=frozenset({"fastmpi", "eager"}),
    )


def make_rollouts(num_groups: int, length: int, device: torch.device) -> Rollouts:
    """Random log-probs and rewards; the rewards of every eighth group are all equal."""
    generator = torch.Generator(device).manual_seed(0)
    samples = num_groups * GROUP
    total = samples * length
    logprob, noise = torch.randn(2, total, generator=generator, device=device)
    logprob = -logprob.abs()
    rewards = torch.rand(num_groups, GROUP, generator=generator, device=device)
    rewards[::8] = 0.9
    return Rollouts(
        logprob=logprob.requires_grad_(),
        old_logprob=logprob.detach() + 0.1 * noise,
        sequences=torch.arange(samples, device=device).repeat_interleave(length),
        weights=torch.full((total,), 1 / total, device=device),
        rewards=rewards.flatten(),
        groups=torch.arange(num_groups, device=device).repeat_interleave(GROUP),
    )


def _in_double(rollouts: Rollouts) -> Rollouts:
    floats = {
        name: x.detach().double() for name, x in vars(rollouts).items() if x.is_floating_point()
    }
    floats["logprob"].requires_grad_()
    return Rollouts(**{**vars(rollouts), **floats})


def _ours(rollouts: Rollouts) -> Run:
    def run() -> Outputs:
        out = policy_loss(
            rollouts.logprob, rollouts.sequences, weights=rollouts.weights,
            rewards=rollouts.rewards, groups=rollouts.groups, old_logprob=rollouts.old_logprob,
            eps=EPS, epsilon=EPSILON, validate=False,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(out.loss, rollouts.logprob)
        return {
            "dlogprob": gradient, "advantages": out.advantages, "ratio": out.ratio,
            "clipped_low": out.clipped_low, "clipped_high": out.clipped_high,
        }  # fmt: skip

    return run


def trainers_loss(rollouts: Rollouts) -> Outputs:
    """The same in plain torch, as trainers write it for groups of equal size."""
    grouped = rollouts.rewards.view(-1, GROUP)
    mean = grouped.mean(dim=1).repeat_interleave(GROUP)
    std = grouped.std(dim=1).repeat_interleave(GROUP)
    advantages = (rollouts.rewards - mean) / (std + EPS)
    logprob = rollouts.logprob.view(len(advantages), -1)
    ratio = torch.exp(logprob - rollouts.old_logprob.view_as(logprob))
    clipped = ratio.clamp(1 - EPSILON, 1 + EPSILON)
    advantage = advantages[:, None]
    loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
    (gradient,) = torch.autograd.grad(loss, rollouts.logprob)
    ratio = ratio.detach().flatten()
    advantage = advantage.expand_as(logprob).flatten()
    return {
        "dlogprob": gradient, "advantages": advantages, "ratio": ratio,
        "clipped_low": (ratio < 1 - EPSILON) & (advantage < 0),
        "clipped_high": (ratio > 1 + EPSILON) & (advantage > 0),
    }  # fmt: skip
