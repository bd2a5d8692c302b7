"""What a micro-batch adds to the loss of its optimiser step.

Unusual: an objective belongs to one optimiser step and knows its normalisers beforehand, so the
micro-batches' losses add up to the step's, however the step was cut. It also sums up what the logs
show; the sums of all processes together make the step's metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from fastmpi.ops.policy_head import policy_head
from fastmpi.ops.token_logprob import token_logprob

if TYPE_CHECKING:
    from fastmpi.config import PolicyRolloutConfig
    from fastmpi.data.batch import ForestBatch


class Objective(Protocol):
    """Called once for each micro-batch, then asked for the step's metrics."""

    sums: dict[str, float]

    def __call__(
        self, batch: ForestBatch, hidden: Tensor, head: Tensor, softcap: float | None
    ) -> Tensor:
        """The micro-batch's share of the loss, a scalar. hidden (T, H), head (V, H)."""

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The step's metrics from `sums` added over all processes."""


class NextTokenLoss:
    """Mean over the step's weighted tokens of -log p(token | the tokens before it).

    total_weight: sum of the weights of all samples of the step, on all processes.
    """

    def __init__(self, total_weight: float) -> None:
        self.total_weight = max(total_weight, 1.0)
        self.sums = {"loss": 0.0, "entropy": 0.0}

    def __call__(
        self, batch: ForestBatch, hidden: Tensor, head: Tensor, softcap: float | None
    ) -> Tensor:
        scores = batch.scores()
        logprob, entropy = token_logprob(hidden, head, scores.rows, scores.targets, softcap=softcap)
        weights = scores.weights.to(logprob.dtype) / self.total_weight
        loss = -(weights * logprob).sum()
        self.sums["loss"] += float(loss.detach())
        self.sums["entropy"] += float((weights * entropy.detach()).sum())
        return loss

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        return dict(sums)


class PolicyLoss:
    """The clipped policy-gradient loss of a step's responses; see `ops/policy_head.py`.

    Legend: S samples of this process in the step, M tokens of their responses, samples in order.
    first_column: (S,) int64; token i of sample s, its prompt included, is column
        first_column[s] + i of the (M,) tensors. advantages: (S,).
    token_weights: (S,) weight of each token of a response in the whole step's loss
        (`ops/loss_weights.py`).
    sampled_logprob: (M,) log-probs under the prompt that each response was sampled with.
    policy_aware: (S,) bool, the arm. old_logprob, ref_logprob: (M,) policy-free, or None.
    """

    def __init__(
        self,
        args: PolicyRolloutConfig,
        *,
        first_column: Tensor,
        advantages: Tensor,
        token_weights: Tensor,
        sampled_logprob: Tensor,
        policy_aware: Tensor,
        old_logprob: Tensor | None = None,
        ref_logprob: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.args = args
        self.first_column = first_column.to(device)
        self.advantages, self.token_weights = advantages.to(device), token_weights.to(device)
        self.sampled_logprob = sampled_logprob.to(device)
        self.policy_aware = policy_aware.to(device)
        self.old_logprob = None if old_logprob is None else old_logprob.to(device)
        self.ref_logprob = None if ref_logprob is None else ref_logprob.to(device)
        self.sums = dict.fromkeys(_POLICY_SUMS, 0.0)

    def __call__(
        self, batch: ForestBatch, hidden: Tensor, head: Tensor, softcap: float | None
    ) -> Tensor:
        scores = batch.sample_scores()
        sample = batch.sample_ids[scores.samples]  # (M of the batch,)
        column = self.first_column[sample] + scores.index
        old = None if self.old_logprob is None else self.old_logprob[column]
        ref = None if self.ref_logprob is None else self.ref_logprob[column]
        out = policy_head(
            hidden,
            head,
            scores.rows,
            scores.targets,
            sample,
            weights=self.token_weights[sample],
            advantages=self.advantages,
            old_logprob=old,
            ref_logprob=ref,
            epsilon=self.args.epsilon,
            epsilon_high=self.args.epsilon_high,
            delta=self.args.delta,
            beta=self.args.beta,
            importance_sampling_level=self.args.importance_sampling_level,
            temperature=self.args.temperature,
            softcap=softcap,
        )
        counted = self.token_weights[sample] != 0
        gap = self.sampled_logprob[column] - (out.logprob if old is None else old)
        aware = self.policy_aware[sample]
        self._add("loss", out.loss.detach())
        self._add("tokens", counted)
        self._add("entropy", out.entropy[counted])
        self._add("kl", out.kl[counted])
        self._add("low", out.clipped_low[counted])
        self._add("high", out.clipped_high[counted])
        self._add("aware_tokens", aware)
        self._add("aware_gap", gap[aware])
        self._add("free_tokens", ~aware)
        self._add("free_gap", gap[~aware].abs())
        return out.loss

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        tokens = max(sums["tokens"], 1.0)
        metrics = {
            "loss": sums["loss"],
            "entropy": sums["entropy"] / tokens,
            "clip_ratio/low_mean": sums["low"] / tokens,
            "clip_ratio/high_mean": sums["high"] / tokens,
            "clip_ratio/region_mean": (sums["low"] + sums["high"]) / tokens,
        }
        if self.ref_logprob is not None:
            metrics["kl"] = sums["kl"] / tokens
        if sums["aware_tokens"]:
            metrics["mpi/policy_gap_logp"] = sums["aware_gap"] / sums["aware_tokens"]
        if sums["free_tokens"]:
            difference = sums["free_gap"] / sums["free_tokens"]
            metrics["sampling/sampling_logp_difference/mean"] = difference
        return metrics

    def _add(self, name: str, values: Tensor) -> None:
        self.sums[name] += float(values.sum(dtype=torch.float64))


_POLICY_SUMS = (
    "loss",
    "tokens",
    "entropy",
    "kl",
    "low",
    "high",
    "aware_tokens",
    "aware_gap",
    "free_tokens",
    "free_gap",
)
