"""Train the tiny base of `fastmpi/assets/tiny_base` from nothing, on one CPU core.

    OMP_NUM_THREADS=1 python scripts/train_tiny_base.py --output fastmpi/assets/tiny_base

Batches are of one kind each: describe, trace or follow (see tiny_base_tasks.py). Reading policies
comes first, then pictures, then both with deeper trees; what is learned decides when.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tiny_base_card import write_card
from tiny_base_model import accuracy, collate, losses, new_base
from tiny_base_tasks import Tasks
from torch import Tensor

KINDS = ("describe", "trace", "follow")


@dataclass(frozen=True)
class Phase:
    """What is trained until a running accuracy exceeds `until`."""

    shares: tuple[float, float, float]  # of batches, as in KINDS
    trace_depths: tuple[int, ...]
    follow_depths: tuple[int, ...]
    measure: str = ""
    until: float = 2.0


PHASES = (
    Phase((0.2, 0.8, 0.0), (1, 2), (), "leaf", 0.90),  # read policies
    Phase((0.5, 0.2, 0.3), (2,), (2,), "yes/no", 0.86),  # see objects
    Phase((0.25, 0.2, 0.55), (2, 3), (2, 3)),  # do both
)
BATCH_SIZE = 32
WARMUP_STEPS = 60
MAX_GRAD_NORM = 1.0
FINAL_ROWS = 1000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps")
    parser.add_argument("--decay", type=float, default=0.7, help="share of steps of linear decay")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--scenes", type=int, default=6000, help="training pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--probe-every", type=int, default=100, help="steps between probes")
    return parser.parse_args()


class Schedule:
    """What each step trains on, and how fast."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.rng = np.random.default_rng(args.seed + 1)
        self.running: dict[str, float] = {}
        self.phase = 0

    def scale(self, step: int) -> float:
        """Of the learning rate: warm-up, a plateau, linear decay to nothing."""
        warm = (step + 1) / WARMUP_STEPS
        left = (self.args.steps - step) / (self.args.decay * self.args.steps)
        return min(warm, left, 1.0)

    def draw(self) -> tuple[str, int]:
        """Kind of the next batch, and the depth of its trees."""
        phase = PHASES[self.phase]
        kind = str(self.rng.choice(KINDS, p=phase.shares))
        depths = {"describe": (0,), "trace": phase.trace_depths, "follow": phase.follow_depths}
        return kind, int(self.rng.choice(depths[kind]))

    def observe(self, accuracies: dict[str, float]) -> None:
        for name, value in accuracies.items():
            old = self.running.get(name, 0.0)
            self.running[name] = 0.9 * old + 0.1 * value
        phase = PHASES[self.phase]
        if self.running.get(phase.measure, 0.0) > phase.until:
            self.phase += 1


def optimisers(model: torch.nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices; AdamW for the embedding, the patch filter and vectors."""
    embedding = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.ndim == 2 and p is not embedding]
    others = [p for p in model.parameters() if p.ndim != 2 or p is embedding]
    muon = torch.optim.Muon(
        matrices, lr=learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adamw]


def train(args: argparse.Namespace, pictures: Path) -> dict:
    """The loop; returns what the model card says."""
    model, processor = new_base(args.seed)
    tasks = Tasks(processor, pictures, args.scenes, seed=args.seed)
    probes = Tasks(processor, pictures, 1000, seed=args.seed + 10_000)
    yes_no = torch.tensor([tasks.ids[" yes"], tasks.ids[" no"]])
    schedule = Schedule(args)
    steppers = optimisers(model, args.learning_rate)
    scalers = [torch.optim.lr_scheduler.LambdaLR(o, schedule.scale) for o in steppers]
    start = time.process_time()
    spent_on_probes = 0.0
    for step in range(args.steps):
        kind, depth = schedule.draw()
        batch = collate(tasks.batch(kind, BATCH_SIZE, depth), processor)
        targets, logprob, correct = losses(model, batch, bf16=True)
        weights = batch.weights[batch.weights > 0]
        loss = -(weights * logprob).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        for stepper, scaler in zip(steppers, scalers, strict=True):
            stepper.step()
            scaler.step()
            stepper.zero_grad()
        found = _accuracies(kind, correct, torch.isin(targets, yes_no), weights > 1)
        schedule.observe(found | {f"{kind} loss": loss.item()})
        if (step + 1) % args.probe_every == 0:
            began = time.process_time()
            probe = {
                f"N={n}": accuracy(model, probes, 96, n)
                for n in PHASES[schedule.phase].follow_depths
            }
            spent_on_probes += time.process_time() - began
            seconds = time.process_time() - start - spent_on_probes
            print(step + 1, f"{seconds:.0f}s", _rounded({**schedule.running, **probe}), flush=True)
            model.save_pretrained(args.output)
            processor.save_pretrained(args.output)
    seconds = time.process_time() - start - spent_on_probes
    return _measure(args, model, pictures, processor) | {"cpu_seconds": round(seconds)}


def _accuracies(kind: str, correct: Tensor, is_answer: Tensor, is_leaf: Tensor) -> dict[str, float]:
    """Shares of right tokens; of a description's answers and a trace's leaves on their own."""
    apart = {"describe": ("yes/no", is_answer), "trace": ("leaf", is_leaf)}
    name, chosen = apart.get(kind, (kind, torch.ones_like(correct)))
    rest = {kind: correct[~chosen].float().mean().item()} if kind in apart else {}
    return rest | {name: correct[chosen].float().mean().item()}


def _measure(args: argparse.Namespace, model: torch.nn.Module, pictures: Path, processor) -> dict:
    """Final accuracies on unseen trees and scenes that no probe has used."""
    tasks = Tasks(processor, pictures, 1000, seed=args.seed + 20_000)
    free = accuracy(model, tasks, FINAL_ROWS // 2, 2, with_policy=False)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy_n2": accuracy(model, tasks, FINAL_ROWS, 2),
        "accuracy_n3": accuracy(model, tasks, FINAL_ROWS, 3),
        "accuracy_policy_free": free,
        "rows": FINAL_ROWS,
        "rows_policy_free": FINAL_ROWS // 2,
        "batch_size": BATCH_SIZE,
    } | {name: getattr(args, name) for name in ("steps", "seed", "scenes", "learning_rate")}


def _rounded(values: dict[str, float]) -> str:
    return json.dumps({name: round(value, 3) for name, value in values.items()})


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        facts = train(args, Path(folder))
    write_card(args.output, facts)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
