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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastmpi.config import PolicyRolloutConfig
from fastmpi.data.batch import ForestBatch, outline
from fastmpi.data.prompts import render
from fastmpi.models.forest_model import ForestModel
from fastmpi.ops.group_advantage import group_advantage
from fastmpi.ops.loss_weights import loss_weights
from fastmpi.ops.token_logprob import token_logprob
from fastmpi.rewards import RewardFunction, check_rewards
from fastmpi.rollout.engine import Engine, Response
from fastmpi.rollout.groups import ARMS
from fastmpi.rollout.native import NativeEngine
from fastmpi.stages.importance import importance_weights
from fastmpi.stages.loop import Evaluate, Trainer
from fastmpi.stages.objectives import HeadOptions, PolicyLoss
from fastmpi.stages.profiling import region
from fastmpi.stages.rollout_metrics import rollout_metrics
from fastmpi.stages.rows import Rows, check_length, policy_of
from fastmpi.stages.sampler import WindowSampler
from fastmpi.stages.shares import (
    OwnShare,
    all_columns,
    joined_over_processes,
    lazy_prompts,
    own_share,
)
from fastmpi.stages.step import StepInput, outline_bytes
from fastmpi.stages.vllm_rollouts import VLLMRollouts
from fastmpi.stages.window import Window

if TYPE_CHECKING:
    from fastmpi.data.processor import Processor
    from fastmpi.data.samples import Prompt
    from fastmpi.policies import Policy


# Arguments of reward functions, which a column of that name would replace.
_OF_REWARDS = frozenset(
    ("prompts", "completions", "completion_ids", "arm", "trainer_state", "log_extra", "log_metric")
)


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
        self.reference: ForestModel | None = None
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
        self.sampler = self._make_sampler()
        if self.sampler.batches_per_epoch == 0:
            raise ValueError(
                f"the data set has {len(self.rows)} rows, fewer than the "
                f"{self.sampler.rows_per_batch} groups of a window; lower "
                "per_device_train_batch_size or steps_per_generation"
            )
        # Tokens that the policy of each row adds to its prompt: sampled with, never trained on.
        self.policy_tokens = np.zeros(len(self.rows))
        self._added: dict[str, int] = {}
        for index, row in enumerate(self.rows):
            if taken := _OF_REWARDS.intersection(row):
                name = min(taken)
                raise ValueError(
                    f"row {row['id']!r}: {name!r} is what rewards are given, not a column"
                )
            length = self._check_prompt(row, index)
            if self.args.policy_generations:
                self.policy_tokens[index] = self._policy_tokens(row, length)

        for row in self.eval_rows or []:
            self._check_prompt(row)

    def _check_prompt(self, row: dict[str, Any], index: int | None = None) -> int:
        """Tokens of the policy-free prompt, which must leave room for the response."""
        prompt = render(row, self.processor, folder=self.image_folder)
        if index is not None and self.accelerator.num_processes > 1:
            self.outlines.get(index, lambda: outline(prompt), outline_bytes)
        length = len(prompt.ids)
        longest = length + self.args.max_completion_length
        budget = self.args.max_tokens_per_microbatch
        check_length(row, longest, budget, "prompt with max_completion_length")
        return length

    def _policy_tokens(self, row: dict[str, Any], length: int) -> int:
        """Tokens that the row's policy adds; the same for all its rows."""
        if row.get("policy_id") is None:
            raise ValueError(f"row {row['id']!r} has no 'policy_id'")
        policy, name = policy_of(row, self.policies), row["policy_id"]
        if name not in self._added:
            aware = render(row, self.processor, policy, folder=self.image_folder)
            self._added[name] = len(aware.ids) - length
        return self._added[name]

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

    def choose_trained(self) -> None:
        if self.args.beta and not self.args.use_peft:
            backend = self.model.attention_backend or "auto"
            frozen = copy.deepcopy(self.model.model).requires_grad_(False)
            self.reference = ForestModel(frozen, self.processor, attention_backend=backend).eval()
        super().choose_trained()

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
        table = (lambda: self.completions(part)) if self.args.log_completions else None
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
            importance=self.importance(part),
            device=self.accelerator.device,
        )

    def importance(self, part: Window) -> Tensor | None:
        """(M,) weights of the correction toward training's own probabilities, if there is one."""
        if not self.args.corrects_sampling:
            return None
        assert part.old_logprob is not None
        return importance_weights(
            part.old_logprob,
            part.sampled_logprob,
            part.lengths,
            part.policy_aware,
            mode=self.args.vllm_importance_sampling_mode,
            clip_min=self.args.vllm_importance_sampling_clip_min,
            clip_max=self.args.vllm_importance_sampling_clip_max,
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
        began = time.perf_counter()
        waited = self.sampler.ahead.waited_s
        with region("rollout"), self._sampling() as engine:
            sampled, kept, batches = self.sampler.fill(engine, self.state)
        metrics |= {**self.log_window(sampled), **self.sampler.custom_metrics}
        metrics["perf/gen_s"] = time.perf_counter() - began
        metrics["perf/data_wait_s"] = self.sampler.ahead.waited_s - waited
        if self.args.use_vllm:
            metrics["perf/sync_s"] = self.vllm.sync_s
        if self.args.dynamic_sampling:
            metrics["sampling/batches"] = float(batches)
        if not self._all_full(kept, batches):
            return None
        began = time.perf_counter()
        with region("scoring"):
            window = self.with_logprobs(self.with_advantages(kept))
        metrics["perf/logp_s"] = time.perf_counter() - began
        if self.args.corrects_sampling:
            metrics |= self.importance_metrics(window)
        return window

    def _all_full(self, kept: Window, batches: int) -> bool:
        """Whether the window is full; else says in `state` why the run ends."""
        wanted = self.sampler.rows_per_batch
        found = len(kept) // self.args.group_size
        if found < wanted:
            low, high = self.args.dynamic_sampling_range
            self.state.stopped = (
                f"dynamic sampling found {found} of {wanted} groups with a mean {self.accuracy} in "
                f"({low}, {high}) among {batches} batches of rows (max_resample_batches); the rest "
                "is solved, or out of reach"
            )
        return found >= wanted

    def with_advantages(self, window: Window) -> Window:
        """Advantages over the pooled groups, of both arms together."""
        groups = torch.arange(len(window)) // self.args.group_size
        pooled = group_advantage(window.rewards, groups, scale=self.args.scale_rewards)
        return replace(window, advantages=pooled.advantages)

    def with_logprobs(self, window: Window) -> Window:
        """Old and reference log-probs, policy-free, where the loss needs them."""
        old = reference = None
        if self.steps_of_window > 1 or self.args.corrects_sampling:
            old = self.logprobs(window, self.model)
        if self.args.beta:
            off = self.model.adapter_disabled() if self.args.use_peft else nullcontext()
            with off:
                reference = self.logprobs(window, self.reference or self.model)
        return replace(window, old_logprob=old, ref_logprob=reference)

    def logprobs(self, window: Window, model: Callable[..., Any]) -> Tensor:
        """(M,) log-probs of all response tokens after (image, question), at the sampling
        temperature; float32, float64 of a float64 model. Each process makes its share."""
        own = own_share(self, window)
        return all_columns(self, window, own, self._own_logprobs(own, model))

    def _own_logprobs(self, own: OwnShare, model: Callable[..., Any]) -> Tensor:
        """(m,) of the responses of `own` alone."""
        first_column = own.part.first_column.to(self.accelerator.device)
        dtype = torch.float64 if self.model.dtype == torch.float64 else torch.float32
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
                temperature=self.args.temperature,
                **options,
            )
            sample = batch.sample_ids[scores.samples]
            return first_column[sample] + scores.index, logprob

        with torch.no_grad():
            for batch in own.batches or self.microbatches(own.part.samples()):
                column, logprob = self.forward(batch, score_batch, model)
                found[column.cpu()] = logprob.cpu()
        return found

    @contextmanager
    def _sampling(self) -> Iterator[Engine]:
        """The engine, with the model's weights of now."""
        if self.engine is None and self.args.use_vllm:
            with self.vllm.awake() as engine:
                yield engine
        else:
            yield self.engine or _TrainedModel(self)

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

    def log_window(self, window: Window) -> dict[str, float]:
        """Metrics of everything sampled for a window, on all processes."""
        saved = self.policy_tokens[window.rows.numpy()]
        return rollout_metrics(window, self.args.group_size, self.accuracy, saved)

    def importance_metrics(self, window: Window) -> dict[str, float]:
        """Of the importance weights of policy-free tokens, on all processes."""
        weights = self.importance(window)
        assert weights is not None
        free = weights[~torch.repeat_interleave(window.policy_aware, window.lengths)]
        sums = self.reduce({"sum": float(free.sum()), "count": float(len(free))})
        name = "sampling/importance_sampling_ratio"
        return {
            f"{name}/min": float(self.gather(free.min()[None]).min()),
            f"{name}/mean": sums["sum"] / sums["count"],
            f"{name}/max": float(self.gather(free.max()[None]).max()),
        }

    def eval_metrics(self, rows: Rows) -> dict[str, float]:
        """Rewards of one policy-free response to each row, sampled as in training."""
        with self._sampling() as engine:
            window = self.sampler.one_each(engine, list(rows), self.state)
        parts = {f"rewards/{n}/mean": float(v.nanmean()) for n, v in window.parts.items()}
        lengths = {"completions/mean_length": float(window.lengths.double().mean())}
        return {"reward": float(window.rewards.mean()), **parts, **lengths}

    def completions(self, part: Window) -> list[dict[str, Any]]:
        """The table of a step's responses."""
        rows = [self.rows[i] for i in part.rows.tolist()]
        return [
            {
                "step": self.state.global_step,
                "id": str(row["id"]),
                "policy_id": row.get("policy_id"),
                "arm": ARMS[int(part.policy_aware[i])],
                "prompt": row["prompt"],
                "completion": self.processor.decode(part.response(i)),
                **{name: float(values[i]) for name, values in part.parts.items()},
                "reward": float(part.rewards[i]),
                "advantage": float(part.advantages[i]),
                **{name: values[i] for name, values in part.extra.items()},
            }
            for i, row in enumerate(rows)
        ]

    def close(self) -> None:
        self.sampler.close()
        self.vllm.close()

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = {"batches_drawn": torch.tensor(self.sampler.batches_drawn)}
        if self.window is None or self.steps_done == self.steps_of_window:
            return {"steps_done": None}, tensors
        return {"steps_done": self.steps_done}, {**tensors, **self.window.tensors()}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.sampler.batches_drawn = int(tensors.pop("batches_drawn"))
        self.window = None
        if values["steps_done"] is not None:
            self.steps_done = int(values["steps_done"])
            rows = tensors["rows"].tolist()
            self.window = Window.from_tensors(tensors, lazy_prompts(rows, self.prompt))


class _TrainedModel(NativeEngine):
    """The engine by default: the model itself, with the precision and the features of training."""

    def __init__(self, trainer: PolicyRolloutTrainer) -> None:
        super().__init__(trainer.model, features=trainer.features.of)
        self._precision = trainer.precision

    def generate(self, *args: Any, **kwargs: Any) -> list[list[Response]]:
        with self._precision():
            return super().generate(*args, **kwargs)


if __name__ == "__main__":
    from fastmpi.cli import main

    raise SystemExit(main(["rl", *sys.argv[1:]]))
