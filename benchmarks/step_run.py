"""A run of an arm is one step of a training loop; what the first step learned is its output."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastmpi.benchmarks.harness import Outputs
from fastmpi.benchmarks.step_loop import Laps, Loop, Stepper

MAX_GRAD_NORM = 1.0
PARTS = ("rollout", "scoring", "update")


class StepRun:
    """One step of `loop` a call. learned: filled by the first step, whose outputs it becomes; the
    others have none. parts: milliseconds of the last step's parts, by name; what is in no other
    part is `update`, and a step that is nothing else has no parts."""

    def __init__(self, loop: Loop, laps: Laps, learned: Outputs) -> None:
        self._step, self._laps, self._learned = Stepper(loop), laps, learned
        self.parts: dict[str, dict[str, float]] = {}

    def __call__(self) -> Outputs:
        self._laps.reset()
        with self._laps.part("update"):
            self._step()
        found = self._laps.ms
        self.parts = {name: found[name] for name in PARTS if name in found and len(found) > 1}
        learned = dict(self._learned)
        self._learned.clear()
        return learned


def watch_first_step(trainer: Any, learned: Outputs) -> None:
    """Puts the loss and the clipped gradient of the first step of a trainer of ours into
    `learned`."""
    take = trainer.optimizer_step

    def optimizer_step(step: Any) -> dict[str, float]:
        del trainer.optimizer_step

        def at_the_optimizer(*_: Any) -> None:
            learned["gradient"] = flat_copy(trainer.parameters.values())

        hook = trainer.optimizer.register_step_pre_hook(at_the_optimizer)
        metrics: dict[str, float] = take(step)
        hook.remove()
        learned["loss"] = torch.tensor(metrics["loss"])
        return metrics

    trainer.optimizer_step = optimizer_step


def flat_copy(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The gradients of `parameters`, one after the other."""
    return torch.cat([p.grad.flatten() for p in parameters])


def clipped(gradient: Tensor) -> Tensor:
    """`gradient` at the largest norm allowed, as torch's `clip_grad_norm_` cuts it."""
    return gradient * min(1.0, MAX_GRAD_NORM / (float(gradient.norm()) + 1e-6))
