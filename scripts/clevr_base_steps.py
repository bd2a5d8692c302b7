"""The optimiser of the CLEVR base's two halves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MAX_GRAD_NORM = 1.0
WARMUP_STEPS = 60
DECAY = 0.6  # share of the steps over which the learning rate falls to nothing


class Stepper:
    """Muon for matrices; AdamW for vectors, filters and embeddings."""

    def __init__(self, modules: Sequence[nn.Module], rate: float, steps: int) -> None:
        self.steps = steps
        embeddings = {
            id(inner.weight)
            for module in modules
            for inner in module.modules()
            if isinstance(inner, nn.Embedding)
        }
        self.parameters = [p for module in modules for p in module.parameters()]
        matrices = [p for p in self.parameters if p.ndim == 2 and id(p) not in embeddings]
        others = [p for p in self.parameters if p.ndim != 2 or id(p) in embeddings]
        self.optimisers = [
            torch.optim.Muon(matrices, lr=rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(o, self._scale) for o in self.optimisers
        ]

    def step(self, loss: Tensor) -> None:
        """One step down `loss`; gradients are cleared after it."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        for optimiser, schedule in zip(self.optimisers, self.schedules, strict=True):
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()

    def _scale(self, step: int) -> float:
        """Of the learning rate: warm-up, a plateau, linear decay to nothing."""
        warm = (step + 1) / WARMUP_STEPS
        return max(min(warm, (self.steps - step) / (DECAY * self.steps), 1.0), 0.0)
