"""What the loss needs of a sampled window besides rewards: advantages, and the log-probs of all its
responses after (image, question) alone, under the weights of now and those of the reference.

Unusual: nothing here is a gradient. Each process scores its share of the window, and every process
then holds the log-probs of all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmpi.ops.group_advantage import group_advantage
from fastmpi.ops.token_logprob import token_logprob
from fastmpi.stages.importance import importance_weights
from fastmpi.stages.shares import OwnShare, all_columns, own_share

if TYPE_CHECKING:
    from fastmpi.config import PolicyRolloutConfig
    from fastmpi.data.batch import ForestBatch
    from fastmpi.stages.objectives import HeadOptions
    from fastmpi.stages.rl import PolicyRolloutTrainer
    from fastmpi.stages.window import Window


def with_advantages(args: PolicyRolloutConfig, window: Window) -> Window:
    """Advantages over the pooled groups, of both arms together."""
    groups = torch.arange(len(window)) // args.group_size
    pooled = group_advantage(window.rewards, groups, scale=args.scale_rewards)
    return replace(window, advantages=pooled.advantages)


def with_logprobs(trainer: PolicyRolloutTrainer, window: Window) -> Window:
    """Old and reference log-probs, policy-free, where the loss needs them."""
    old = reference = None
    if trainer.steps_of_window > 1 or trainer.args.corrects_sampling:
        with trainer.whole_model() as model:
            old = logprobs(trainer, window, model)
    if trainer.args.beta:
        with trainer.whole_model(trainer.start_weights) as model:
            off = model.adapter_disabled() if trainer.args.use_peft else nullcontext()
            with off:
                reference = logprobs(trainer, window, trainer.reference or model)
    return replace(window, old_logprob=old, ref_logprob=reference)


def logprobs(trainer: PolicyRolloutTrainer, window: Window, model: Callable[..., Any]) -> Tensor:
    """(M,) log-probs of all response tokens after (image, question), at the sampling temperature;
    float32, float64 of a float64 model. Each process makes its share."""
    own = own_share(trainer, window)
    return all_columns(trainer, window, own, own_logprobs(trainer, own, model))


def own_logprobs(trainer: PolicyRolloutTrainer, own: OwnShare, model: Callable[..., Any]) -> Tensor:
    """(m,) of the responses of `own` alone."""
    first_column = own.part.first_column.to(trainer.accelerator.device)
    dtype = torch.float64 if trainer.model.dtype == torch.float64 else torch.float32
    found = torch.empty(len(own.part.ids), dtype=dtype)

    def score_batch(
        batch: ForestBatch, hidden: Tensor, head: Tensor, options: HeadOptions
    ) -> tuple[Tensor, Tensor]:
        scores = batch.sample_scores()
        logprob, _ = token_logprob(
            hidden,
            head,
            scores.rows,
            scores.targets,
            temperature=trainer.args.temperature,
            **options,
        )
        sample = batch.sample_ids[scores.samples]
        return first_column[sample] + scores.index, logprob

    with torch.no_grad():
        for batch in own.batches or trainer.microbatches(own.part.samples()):
            column, logprob = trainer.forward(batch, score_batch, model)
            found[column.cpu()] = logprob.cpu()
    return found


def importance(args: PolicyRolloutConfig, part: Window) -> Tensor | None:
    """(M,) weights of the correction toward training's own probabilities, if there is one."""
    if not args.corrects_sampling:
        return None
    assert part.old_logprob is not None
    return importance_weights(
        part.old_logprob,
        part.sampled_logprob,
        part.lengths,
        part.policy_aware,
        mode=args.vllm_importance_sampling_mode,
        clip_min=args.vllm_importance_sampling_clip_min,
        clip_max=args.vllm_importance_sampling_clip_max,
    )
