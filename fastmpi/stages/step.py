"""One optimiser step, however it is cut.

Unusual: the loss normaliser belongs to the whole step and is known before its first micro-batch, so
the gradients of micro-batches, accumulation steps and processes simply add up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastmpi.config import TrainingConfig
from fastmpi.data.batch import ForestBatch, Outline, microbatches, plan_shares
from fastmpi.data.cache import BoundedCache
from fastmpi.data.samples import Prompt, Sample
from fastmpi.models.cost import token_costs
from fastmpi.stages.features import FeatureCache
from fastmpi.stages.objectives import HeadOptions, Objective
from fastmpi.stages.optimizer import learning_rate
from fastmpi.stages.processes import Processes
from fastmpi.stages.profiling import region
from fastmpi.stages.sharding import Shards, Weights, clip_grad_norm, is_sharded

if TYPE_CHECKING:
    from fastmpi.data.processor import Processor
    from fastmpi.models.forest_model import ForestModel
    from fastmpi.stages.balancing import MeasuredBalance
    from fastmpi.stages.clock import MicrobatchClock
    from fastmpi.stages.fitting import StepMemory


MAX_OUTLINE_BYTES = 2**30


@dataclass
class StepInput:
    """What one optimiser step trains on: this process's samples, the step's objective, and the
    metrics that came up while it was made. batches: the samples as micro-batches, if made."""

    samples: list[Sample]
    objective: Objective
    metrics: dict[str, float] = field(default_factory=dict)
    completions: Callable[[], list[dict[str, Any]]] | None = None  # the table, if wanted
    batches: list[ForestBatch] | None = None


@dataclass
class TrainState:
    """How far a run is. Times and tokens are those of training alone: no evaluation, no saving."""

    global_step: int = 0
    num_tokens: int = 0  # of all processes, before merging
    cpu_seconds: float = 0.0  # of this process
    train_seconds: float = 0.0
    stopped: str | None = None  # why the run ended early
    skipped_steps: int = 0  # whose loss or gradient was not finite
    skipped_in_row: int = 0  # of these, those since the last step that was taken


class OptimizerStep(Processes):
    """Takes steps with the model and optimiser that a Trainer, which inherits this, has set up."""

    args: TrainingConfig
    model: ForestModel
    processor: Processor
    parameters: dict[str, torch.nn.Parameter]  # those that train
    optimizer: torch.optim.Optimizer
    features: FeatureCache
    shards: Shards | None = None  # where each process holds a part of the parameters
    memory: StepMemory | None = None  # where a setting asks what fits
    balance: MeasuredBalance | None = None  # over processes, where it is not by tokens
    clock: MicrobatchClock | None = None  # where micro-batches are timed
    outlines: BoundedCache[Outline]  # of rows, where several processes plan who takes which
    state: TrainState
    total_steps: int

    @contextmanager
    def whole_model(self, weights: Weights | None = None) -> Iterator[ForestModel]:
        """What runs without gradient: the model, with the weights of now, or of shards those of
        `weights` (`Shards.copies`). All processes enter together."""
        if self.shards is None:
            yield self.model
        else:
            with self.shards.gathered(weights) as model:
                yield model

    def optimizer_step(self, step: StepInput) -> dict[str, float]:
        """Gradients of all micro-batches, clipping, AdamW. The metrics are of all processes.

        A step whose loss or gradient is not finite changes no weight: it is counted in `state`,
        and what is not finite is left out of the metrics.
        """
        began = time.perf_counter()
        rate = learning_rate(self.args, self.state.global_step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        counts = self.accumulate_gradients(step)
        grad_norm = self._clip(self.args.max_grad_norm or math.inf)
        found = dict.fromkeys(step.objective.names, 0.0) | step.objective.sums.plain()
        sums = self.reduce({**found, **counts})
        self.state.num_tokens += int(sums["perf/tokens"])
        tokens, merged = sums.pop("perf/tokens"), sums.pop("perf/merged_tokens")
        metrics = {**step.objective.metrics(sums), "grad_norm": grad_norm}
        self._take(math.isfinite(metrics["loss"]) and math.isfinite(grad_norm))
        return {
            **{name: value for name, value in metrics.items() if math.isfinite(value)},
            "learning_rate": rate,
            "perf/tokens": tokens,
            "perf/merged_tokens": merged,
            "perf/prefix_ratio": tokens / merged,
            "perf/train_s": time.perf_counter() - began,
        }

    def _clip(self, max_norm: float) -> float:
        if self.shards is not None:
            return clip_grad_norm(self.parameters.values(), max_norm)
        return float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), max_norm))

    def _take(self, finite: bool) -> None:
        """AdamW, unless that would spoil the weights. All processes decide alike: loss and norm
        are those of all of them."""
        if finite:
            with region("optimizer"):
                self.optimizer.step()
            self.state.skipped_in_row = 0
        else:
            self.state.skipped_steps += 1
            self.state.skipped_in_row += 1
        self.optimizer.zero_grad(set_to_none=True)

    def accumulate_gradients(self, step: StepInput) -> dict[str, float]:
        """Adds the whole step's gradient to the parameters; how many tokens this process ran."""
        batches = self.microbatches(step.samples) if step.batches is None else step.batches
        idle = 0 if self.shards is None else self._most(len(batches)) - len(batches)
        for batch in batches:
            with self._timed(batch):
                with region("forward"):
                    loss = self.forward(batch, step.objective)
                # Not accelerator.backward: it divides by whatever accumulation the environment has.
                with region("backward"):
                    loss.backward()
        for _ in range(idle):
            self._idle_pass()
        self._add_gradients_of_all()
        return {
            "perf/tokens": float(sum(batch.num_unshared_tokens for batch in batches)),
            "perf/merged_tokens": float(sum(batch.num_tokens for batch in batches)),
        }

    def _timed(self, batch: ForestBatch) -> AbstractContextManager[None]:
        if self.clock is None:
            return nullcontext()
        return self.clock.microbatch(batch, self.state.global_step)

    def _most(self, count: int) -> int:
        """The largest `count` of all processes."""
        return int(self.gather(torch.tensor([count])).max())

    def _idle_pass(self) -> None:
        """A pass that adds nothing. Processes gather each layer together, so all make as many
        passes as the busiest one."""
        end = self.processor.eos_token_ids[0]
        nothing = Sample(np.array([end, end]), (), np.zeros(2, np.float32))

        def zero(batch: ForestBatch, hidden: Tensor, head: Tensor, options: HeadOptions) -> Tensor:
            return hidden[:0].sum() + head[:0].sum()

        self.forward(ForestBatch.from_samples([nothing], self.processor), zero).backward()

    def _add_gradients_of_all(self) -> None:
        """The processes' gradients are shares of the step's, as those of micro-batches are.

        Done once a step and not during the backward passes: processes may then run unequally many
        of them, and not every pass needs to reach every parameter; one that none reaches has a
        gradient of zero, on any number of processes. Those of shards are added up already.
        """
        from torch.distributed import all_reduce

        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.accelerator.num_processes == 1:
            return
        grads = [p.grad for p in self.parameters.values() if not is_sharded(p)]
        waiting = [all_reduce(grad, async_op=True) for grad in grads]
        for reduced in waiting:
            reduced.wait()

    def microbatches(self, samples: Sequence[Sample]) -> list[ForestBatch]:
        """The samples as forests of at most max_tokens_per_microbatch tokens; "auto": as many as
        fit into memory."""
        if not samples:
            return []
        budget, share = self.args.max_tokens_per_microbatch, self.args.share_prefix
        if budget == "auto":
            assert self.memory is not None
            return self.memory.cut(samples, self.processor, share=share)
        return microbatches(samples, self.processor, budget, share=share)

    def own_cuts(
        self, outlines: Sequence[Outline], groups: np.ndarray, step: int
    ) -> list[np.ndarray]:
        """This process's micro-batches, as indices into all samples of `step`, of which every
        process plans the same: merged tokens, or seconds, are as equal as can be, a group stays on
        one process, and samples that begin alike come together. Some may be empty, so that all have
        as many."""
        cost, costs = None if self.balance is None else self.balance.of_step(step), None
        if cost is not None:
            costs = token_costs(cost, outlines, self.processor.image_token_id)
        budget = self.args.max_tokens_per_microbatch
        if budget == "auto":
            assert self.memory is not None
            budget = self.memory.longest
        plan = plan_shares(
            outlines,
            groups,
            self.accelerator.num_processes,
            self.processor,
            budget,
            share=self.args.share_prefix,
            costs=costs,
        )
        return plan[self.accelerator.process_index]

    def as_batches(self, cuts: Sequence[Sequence[Sample]]) -> list[ForestBatch]:
        """The micro-batches that have samples; `sample_ids` number the samples of all of them."""
        ends = np.cumsum([0, *map(len, cuts)])
        return [
            ForestBatch.from_samples(
                cut,
                self.processor,
                share=self.args.share_prefix,
                sample_ids=np.arange(end - len(cut), end),
            )
            for cut, end in zip(cuts, ends[1:], strict=True)
            if cut
        ]

    def forward(
        self, batch: ForestBatch, score: Callable[..., Any], model: Callable[..., Any] | None = None
    ) -> Any:
        """`score(batch, hidden, head, options)` of one micro-batch, on the device. model: the one
        that is trained, or another."""
        features = self.features.of(batch.images)
        batch = batch.to(self.accelerator.device)
        device_type = self.accelerator.device.type
        dtype = torch.bfloat16 if self.args.bf16 else None
        options = HeadOptions(softcap=self.model.softcap, dtype=dtype)

        def head(hidden: Tensor, weight: Tensor) -> Any:
            with torch.autocast(device_type, enabled=False):
                return score(batch, hidden, weight, options)

        with self.precision():
            return (model or self.model)(batch, head, features)

    def precision(self) -> torch.autocast:
        """Mixed precision, if asked for."""
        device_type = self.accelerator.device.type
        return torch.autocast(device_type, torch.bfloat16, enabled=self.args.bf16)


def outline_bytes(outline: Prompt) -> int:
    """Size of an outline (`data.batch.outline`), about."""
    return outline.ids.nbytes + 256 * len(outline.images)
