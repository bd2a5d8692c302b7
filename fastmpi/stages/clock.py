"""Times micro-batches one by one, for the model of what they cost.

Unusual: on CUDA the device is waited for before and after each, so a clock belongs into a few
steps and not into a whole run. The encoding of pictures by a frozen tower is timed by itself and
taken out of the micro-batch in which it happens to fall.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fastmpi.models.cost import CostModel, Work, fit, operations
from fastmpi.stages.profiling import now

if TYPE_CHECKING:
    from fastmpi.data.batch import ForestBatch
    from fastmpi.models.forest_model import ForestModel
    from fastmpi.stages.features import FeatureCache


@dataclass(frozen=True)
class Timed:
    """A micro-batch of optimiser step `step`. encoded: patches that a frozen vision tower had
    encoded by its end, since the run began."""

    step: int
    work: Work
    seconds: float
    encoded: int


class MicrobatchClock:
    """`timed`: every micro-batch that was run within `microbatch`. Pictures are counted by
    `features`."""

    def __init__(self, model: ForestModel, features: FeatureCache, device: torch.device) -> None:
        self.model, self.features, self.device = model, features, device
        self.timed: list[Timed] = []
        features.times_itself = True

    @contextmanager
    def microbatch(self, batch: ForestBatch, step: int) -> Iterator[None]:
        """Around the forward and backward passes of `batch`."""
        work = Work.of(batch, trains_vision=self.model.trains_vision)
        encoding, began = self.features.seconds, now(self.device)
        yield
        took = now(self.device) - began - (self.features.seconds - encoding)
        self.timed.append(Timed(step, work, took, self.features.patches))

    def cost_model(self, timed: Sequence[Timed]) -> CostModel:
        """Fitted to these micro-batches."""
        known = None
        if not self.model.trains_vision:
            known = self.features.seconds / max(1, self.features.patches)
        works, seconds = [one.work for one in timed], [one.seconds for one in timed]
        return fit(works, seconds, operations(self.model), patch=known)
