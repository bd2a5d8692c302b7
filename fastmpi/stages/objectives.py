"""What a micro-batch adds to the loss of its optimiser step.

Unusual: an objective belongs to one optimiser step and knows its normalisers beforehand, so the
micro-batches' losses add up to the step's, however the step was cut. It also sums up what the logs
show; the sums of all processes together make the step's metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TypedDict

import torch
from torch import Tensor

from fastmpi.ops.policy_head import PolicyHeadOutput, policy_head
from fastmpi.ops.token_logprob import token_loss

if TYPE_CHECKING:
    from fastmpi.config import PolicyRolloutConfig
    from fastmpi.data.batch import ForestBatch


class HeadOptions(TypedDict):
    """How the head is applied; the ops take these arguments by name.

    softcap: the model's own, on its logits. dtype: of the product's operands, None for those of
    the hidden states.
    """

    softcap: float | None
    dtype: torch.dtype | None


class Sums(dict[str, Tensor]):
    """What the logs show, added up on the device: reading a number there would wait for it."""

    def add(self, name: str, values: Tensor) -> None:
        """Adds all of `values`, of any shape, in float64."""
        total = values.detach().sum(dtype=torch.float64)
        self[name] = self[name] + total if name in self else total

    def plain(self) -> dict[str, float]:
        """The sums so far, read at once."""
        return (
            dict(zip(self, torch.stack(list(self.values())).tolist(), strict=True)) if self else {}
        )


class Objective(Protocol):
    """Called once for each micro-batch, then asked for the step's metrics.

    names: of the sums, which are empty on a process without a micro-batch.
    """

    names: tuple[str, ...]
    sums: Sums

    def __call__(
        self, batch: ForestBatch, hidden: Tensor, head: Tensor, options: HeadOptions
    ) -> Tensor:
        """The micro-batch's share of the loss, a scalar. hidden (T, H), head (V, H)."""

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The step's metrics from `sums` added over all processes."""


class NextTokenLoss:
    """Mean over the step's weighted tokens of -log p(token | the tokens before it).

    total_weight: sum of the weights of all samples of the step, on all processes.
    """

    names: tuple[str, ...] = ("loss", "entropy")

    def __init__(self, total_weight: float) -> None:
        self.total_weight = max(total_weight, 1.0)
        self.sums = Sums()

    def __call__(
        self, batch: ForestBatch, hidden: Tensor, head: Tensor, options: HeadOptions
    ) -> Tensor:
        scores = batch.scores()
        weights = scores.weights.double() / self.total_weight
        out = token_loss(hidden, head, scores.rows, scores.targets, weights, **options)
        self.sums.add("loss", out.loss)
        self.sums.add("entropy", weights * out.entropy)
        return out.loss

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
    importance: (M,) what each token's share of the loss is multiplied by; None: by nothing.
    largest_gap: the largest difference so far between a policy-free token's sampled log-prob and
        training's first.
    """

    names: tuple[str, ...] = (
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
        importance: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.args = args
        self.first_column = first_column.to(device)
        self.advantages, self.token_weights = advantages.to(device), token_weights.to(device)
        self.sampled_logprob = sampled_logprob.to(device)
        self.policy_aware = policy_aware.to(device)
        self.old_logprob = None if old_logprob is None else old_logprob.to(device)
        self.ref_logprob = None if ref_logprob is None else ref_logprob.to(device)
        self.importance = None if importance is None else importance.to(device)
        self.largest_gap = torch.zeros((), dtype=torch.float64, device=device)
        self.sums = Sums()

    def __call__(
        self, batch: ForestBatch, hidden: Tensor, head: Tensor, options: HeadOptions
    ) -> Tensor:
        scores = batch.sample_scores()
        sample = batch.sample_ids[scores.samples]  # (M of the batch,)
        column = self.first_column[sample] + scores.index
        old = None if self.old_logprob is None else self.old_logprob[column]
        ref = None if self.ref_logprob is None else self.ref_logprob[column]
        weights = self.token_weights[sample]
        if self.importance is not None:
            weights = weights * self.importance[column]
        out = policy_head(
            hidden,
            head,
            scores.rows,
            scores.targets,
            sample,
            weights=weights,
            advantages=self.advantages,
            old_logprob=old,
            ref_logprob=ref,
            epsilon=self.args.epsilon,
            epsilon_high=self.args.epsilon_high,
            delta=self.args.delta,
            beta=self.args.beta,
            importance_sampling_level=self.args.importance_sampling_level,
            temperature=self.args.temperature,
            **options,
        )
        self._add_sums(
            out, sample, self.sampled_logprob[column] - (out.logprob if old is None else old)
        )
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

    def _add_sums(self, out: PolicyHeadOutput, sample: Tensor, gap: Tensor) -> None:
        """sample: (M,) of each token. gap: (M,) sampled log-prob less the policy-free one."""
        counted = self.token_weights[sample] != 0
        aware = self.policy_aware[sample]
        columns = (
            out.loss,
            counted,
            out.entropy * counted,
            out.kl * counted,
            out.clipped_low & counted,
            out.clipped_high & counted,
            aware,
            gap * aware,
            ~aware,
            gap.abs() * ~aware,
        )
        for name, values in zip(self.names, columns, strict=True):
            self.sums.add(name, values)
        if len(gap):
            self.largest_gap = self.largest_gap.maximum((gap.abs() * ~aware).max().double())
