"""What stages 1 and 2 share: epochs of shuffled rows, one sample a row, next-token loss.

A stage that is supervised says only what sample a row becomes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastmpi.data.batch import outline
from fastmpi.data.cache import BoundedCache
from fastmpi.data.prefetch import Prefetcher
from fastmpi.data.samples import Sample
from fastmpi.stages.loop import Trainer
from fastmpi.stages.objectives import NextTokenLoss
from fastmpi.stages.rows import Row, Rows, shuffled
from fastmpi.stages.step import StepInput, outline_bytes

if TYPE_CHECKING:
    from fastmpi.data.batch import ForestBatch, Outline

MAX_SAMPLE_BYTES = 2**30


@dataclass(frozen=True)
class PreparedStep:
    """What one process trains on in one step."""

    samples: list[Sample]
    batches: list[ForestBatch]


class SupervisedTrainer(Trainer):
    """Rows to samples to steps. The last step of an epoch takes the rows that are left."""

    @abstractmethod
    def sample(self, row: Row) -> Sample:
        """The token ids, pictures and loss weights of a row; the row's `id` is in every error."""

    def check(self) -> None:
        self._samples: BoundedCache[Sample] = BoundedCache(MAX_SAMPLE_BYTES)
        for index in range(len(self.rows)):
            self.check_fits(self.rows[index], len(self._sample(index).ids))
            if self.accelerator.num_processes > 1:
                self._outline(index)
        for row in self.eval_rows or []:
            self.check_fits(row, len(self.sample(row).ids))

    def eval_metrics(self, rows: Rows) -> dict[str, float]:
        """The loss over all tokens of all rows, as in training."""
        samples = [self.sample(row) for row in rows]
        loss = NextTokenLoss(sum(float(sample.weights.sum()) for sample in samples))
        with torch.no_grad(), self.whole_model() as model:
            for batch in self.microbatches(samples):
                self.forward(batch, loss, model)
        return loss.metrics(loss.sums.plain())

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimiser step, on all processes."""
        return self.args.samples_per_step * self.accelerator.num_processes

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.rows) / self.rows_per_step)

    def next_step(self) -> StepInput:
        before = self._ahead.waited_s
        ready = self._ahead.take(self.state.global_step)
        waited = {"perf/data_wait_s": self._ahead.waited_s - before}
        weight = sum(float(sample.weights.sum()) for sample in ready.samples)
        total = self.reduce({"weight": weight})["weight"]
        return StepInput(ready.samples, NextTokenLoss(total), waited, batches=ready.batches)

    @cached_property
    def _ahead(self) -> Prefetcher[PreparedStep]:
        return Prefetcher(
            self.prepare,
            stop=self.total_steps,
            depth=self.args.dataloader_prefetch_factor,
            size=lambda ready: sum(_num_bytes(sample) for sample in ready.samples),
        )

    def prepare(self, step: int) -> PreparedStep:
        """This process's share of optimiser step `step`, which follows from its number alone."""
        rows = self.rows_of_step(step)
        if self.accelerator.num_processes == 1:
            samples = [self._sample(int(i)) for i in rows]
            return PreparedStep(samples, self.microbatches(samples))
        outlines = [self._outline(int(i)) for i in rows]
        plan = self.own_cuts(outlines, np.arange(len(rows)), step)
        cuts = [[self._sample(int(rows[i])) for i in cut] for cut in plan]
        return PreparedStep([sample for cut in cuts for sample in cut], self.as_batches(cuts))

    def close(self) -> None:
        self._ahead.close()

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Nothing: a step follows from its number."""
        return {}, {}

    def load_state_dict(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        assert not values and not tensors

    def rows_of_step(self, step: int) -> np.ndarray:
        """Indices of the rows that optimiser step `step` (0, 1, ...) trains on."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = shuffled(len(self.rows), self.args.seed, epoch)
        return order[place * self.rows_per_step : (place + 1) * self.rows_per_step]

    def _outline(self, index: int) -> Outline:
        return self.outlines.get(index, lambda: outline(self._sample(index)), outline_bytes)

    def _sample(self, index: int) -> Sample:
        return self._samples.get(index, lambda: self.sample(self.rows[index]), _num_bytes)


def _num_bytes(sample: Sample) -> int:
    pixels = sum(image.num_bytes for image in sample.images)
    return sample.ids.nbytes + sample.weights.nbytes + pixels
