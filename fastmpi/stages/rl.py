"""Stage 3, reinforcement learning with PolicyRollout (arXiv 2510.09474, Eq. 3).

    1. A group is num_generations responses to (image, question) and num_policy_generations to
       (policy, image, question), sampled from the same model.
    2. All are scored and pooled: one mean, one deviation, one advantage each.
    3. Old, new and reference log-probs of all of them are those after (image, question) alone. What
       was found with the policy in sight is learned as if it had been said without.

The policy-aware half is not importance-corrected toward the prompt it was sampled with; its gap
is the metric `mpi/policy_gap_logp`. What is left out: an old-log-prob pass where the window is one
step long (the first forward is the old one; not with importance weights, which need them before),
and a frozen reference where beta is 0. Under LoRA
the reference is the model with its adapter off.

    fastmpi rl --config rl.yaml
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastmpi.config import PolicyRolloutConfig
from fastmpi.data.batch import outline
from fastmpi.data.prompts import render
from fastmpi.models.forest_model import ForestModel
from fastmpi.ops.loss_weights import loss_weights
from fastmpi.rewards import RewardFunction, check_rewards
from fastmpi.stages.loop import Evaluate, Trainer
from fastmpi.stages.objectives import PolicyLoss
from fastmpi.stages.profiling import region
from fastmpi.stages.rollout_metrics import (
    completions_table,
    importance_metrics,
)
from fastmpi.stages.rollout_rows import check_rows
from fastmpi.stages.rollouts import Rollouts
from fastmpi.stages.rows import Rows
from fastmpi.stages.sampler import WindowSampler
from fastmpi.stages.scoring import importance, with_advantages, with_logprobs
from fastmpi.stages.sharding import Weights
from fastmpi.stages.shares import joined_over_processes, lazy_prompts, own_share
from fastmpi.stages.step import StepInput, outline_bytes
from fastmpi.stages.vllm_rollouts import VLLMRollouts
from fastmpi.stages.window import Window

if TYPE_CHECKING:
    from fastmpi.data.processor import Processor
    from fastmpi.data.samples import Prompt
    from fastmpi.policies import Policy
    from fastmpi.rollout.engine import Engine


class PolicyRolloutTrainer(Trainer):
    """Stage 3. Rows need prompt and what the reward functions take (answer), and policy_id if any
    response of a group is policy-aware.

    reward_funcs: one or more, see `rewards.py`. engine: samples the responses; by default vLLM if
    the config says so, else the model itself, in this process.
    """

    stage = "rl"
    config_class = PolicyRolloutConfig
    args: PolicyRolloutConfig

    def __init__(
        self,
        model: str | Path | ForestModel,
        args: PolicyRolloutConfig | None = None,
        train_dataset: Sequence[Mapping[str, Any]] | None = None,
        eval_dataset: Sequence[Mapping[str, Any]] | None = None,
        *,
        reward_funcs: RewardFunction | Sequence[RewardFunction],
        policies: Mapping[str, Policy] | None = None,
        processing_class: Processor | None = None,
        image_folder: str | Path | None = None,
        evaluate: Evaluate | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.reward_funcs = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
        self.engine = engine
        self.vllm = VLLMRollouts(self)
        self.rollouts = Rollouts(self)
        self.reference: ForestModel | None = None
        self.start_weights: Weights | None = None  # the same of shards
        self.window: Window | None = None
        self.steps_done = 0  # of the window
        super().__init__(
            model,
            args,
            train_dataset,
            eval_dataset,
            policies=policies,
            processing_class=processing_class,
            image_folder=image_folder,
            evaluate=evaluate,
        )

    # ---- before the first step --------------------------------------------------------------

    def check(self) -> None:
        names = check_rewards(self.reward_funcs, self.args.reward_weights)
        self.accuracy = self.args.accuracy_reward or names[0]
        if self.accuracy not in names:
            raise ValueError(
                f"accuracy_reward {self.accuracy!r} is no reward function: {', '.join(names)}"
            )
        if self.args.use_vllm and self.engine is None:
            self.vllm.check()
        if self.args.async_generate and self.engine is not None:
            raise ValueError(
                "async_generate samples with a copy of the model or with a vLLM server; the engine "
                "given here may read weights that the update is changing"
            )
        if self.args.async_generate and self.is_sharded and not self.args.use_vllm:
            raise ValueError(
                "async_generate under fsdp needs a vLLM server (use_vllm): the gathered weights of "
                "rollouts would stay beside the gradients and activations of the update"
            )
        self.sampler = self._make_sampler()
        if self.sampler.batches_per_epoch == 0:
            raise ValueError(
                f"the data set has {len(self.rows)} rows, fewer than the "
                f"{self.sampler.rows_per_batch} groups of a window; lower "
                "per_device_train_batch_size or steps_per_generation"
            )
        self.policy_tokens = check_rows(self)

    def _make_sampler(self) -> WindowSampler:
        return WindowSampler(
            self.args,
            self.rows,
            self.processor,
            self.policies,
            self.reward_funcs,
            accuracy=self.accuracy,
            image_folder=self.image_folder,
            rank=self.accelerator.process_index,
            size=self.accelerator.num_processes,
            of_all=self.of_all,
        )

    @property
    def steps_per_epoch(self) -> int:
        return self.sampler.batches_per_epoch * self.steps_of_window

    @property
    def steps_of_window(self) -> int:
        """Optimiser steps that a window lasts."""
        return self.args.steps_per_window * self.args.num_iterations

    def choose_trained(self, device: torch.device | None = None) -> None:
        if self.keeps_start and not self.is_sharded:
            backend = self.model.attention_backend or "auto"
            frozen = copy.deepcopy(self.model.model).requires_grad_(False)
            self.reference = ForestModel(frozen, self.processor, attention_backend=backend).eval()
        super().choose_trained(device)

    @property
    def keeps_start(self) -> bool:
        """For the KL term; under LoRA they are there once the adapter is off."""
        return self.args.beta > 0 and not self.args.use_peft

    def shard(self) -> None:
        super().shard()
        if self.keeps_start:
            assert self.shards is not None
            self.start_weights = self.shards.copies()

    # ---- one step ---------------------------------------------------------------------------

    def next_step(self) -> StepInput | None:
        metrics: dict[str, float] = {}
        if self.window is None or self.steps_done == self.steps_of_window:
            self.window = self.next_window(metrics)
            self.steps_done = 0
            if self.window is None:
                return None
        size = self.args.samples_per_step * self.accelerator.num_processes
        first = self.steps_done % self.args.steps_per_window * size
        self.steps_done += 1
        part = self.window.part(first, first + size)
        table = (lambda: completions_table(self, part)) if self.args.log_completions else None
        own = own_share(self, part)
        return StepInput(own.part.samples(), self.objective(own.part), metrics, table, own.batches)

    def objective(self, part: Window) -> PolicyLoss:
        """The loss of one step's responses, normalised over all of the step."""
        lengths = part.lengths
        if self.args.mask_truncated_completions:
            lengths = lengths * part.finished
        totals = self.reduce({"tokens": float(lengths.sum()), "sequences": float(len(part))})
        weights = loss_weights(
            lengths,
            self.args.loss_type,
            max_completion_length=self.args.max_completion_length,
            num_sequences=int(totals["sequences"]),
            total_tokens=int(totals["tokens"]),
        )
        return PolicyLoss(
            self.args,
            first_column=part.first_column,
            advantages=part.advantages,
            token_weights=weights,
            sampled_logprob=part.sampled_logprob,
            policy_aware=part.policy_aware,
            old_logprob=part.old_logprob,
            ref_logprob=part.ref_logprob,
            importance=importance(self.args, part),
            device=self.accelerator.device,
        )

    def optimizer_step(self, step: StepInput) -> dict[str, float]:
        metrics = super().optimizer_step(step)
        assert isinstance(step.objective, PolicyLoss)
        largest = float(self.gather(step.objective.largest_gap[None]).max())
        if "sampling/sampling_logp_difference/mean" in metrics and math.isfinite(largest):
            metrics["sampling/sampling_logp_difference/max"] = largest
        return metrics

    # ---- a window of responses --------------------------------------------------------------

    def next_window(self, metrics: dict[str, float]) -> Window | None:
        """Samples and scores until the window is full; None where dynamic sampling cannot fill it.
        Adds what there is to log to `metrics`."""
        kept = self.rollouts.next(metrics)
        if kept is None:
            return None
        began = time.perf_counter()
        with region("scoring"):
            window = with_logprobs(self, with_advantages(self.args, kept))
        metrics["perf/logp_s"] = time.perf_counter() - began
        if self.args.corrects_sampling:
            metrics |= importance_metrics(self, window)
        return window

    def of_all(self, window: Window) -> Window:
        """The responses of all processes, in the order of their ranks, from each one's own."""
        return joined_over_processes(self, window, self.prompt)

    def prompt(self, row: int) -> Prompt:
        """The policy-free prompt of a row of the data set."""
        return render(self.rows[row], self.processor, folder=self.image_folder)

    def outline(self, row: int) -> Prompt:
        """The same without its pixels, kept."""
        return self.outlines.get(row, lambda: outline(self.prompt(row)), outline_bytes)

    # ---- logs and checkpoints ---------------------------------------------------------------

    def settle(self) -> None:
        self.rollouts.settle()

    def eval_metrics(self, rows: Rows) -> dict[str, float]:
        """Rewards of one policy-free response to each row, sampled as in training."""
        with self.rollouts.engine() as engine:
            window = self.sampler.one_each(engine, list(rows), self.state)
        parts = {f"rewards/{n}/mean": float(v.nanmean()) for n, v in window.parts.items()}
        lengths = {"completions/mean_length": float(window.lengths.double().mean())}
        return {"reward": float(window.rewards.mean()), **parts, **lengths}

    def close(self) -> None:
        self.rollouts.close()
        self.sampler.close()
        self.vllm.close()

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        ahead, tensors = self.rollouts.state_dict()
        tensors["batches_drawn"] = torch.tensor(self.sampler.batches_drawn)
        if self.window is None or self.steps_done == self.steps_of_window:
            return {"steps_done": None, "ahead": ahead}, tensors
        values = {"steps_done": self.steps_done, "ahead": ahead}
        return values, {**tensors, **self.window.tensors()}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.sampler.batches_drawn = int(tensors.pop("batches_drawn"))
        self.rollouts.load_state_dict(values.get("ahead"), tensors)
        self.window = None
        if values["steps_done"] is not None:
            self.steps_done = int(values["steps_done"])
            rows = tensors["rows"].tolist()
            self.window = Window.from_tensors(tensors, lazy_prompts(rows, self.prompt))


if __name__ == "__main__":
    from fastmpi.cli import main

    raise SystemExit(main(["rl", *sys.argv[1:]]))
