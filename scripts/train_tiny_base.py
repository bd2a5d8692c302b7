"""Train the tiny base of `fastmpi/assets/tiny_base` from nothing, on one CPU core.

    OMP_NUM_THREADS=1 python scripts/train_tiny_base.py --output fastmpi/assets/tiny_base

Batches are of one kind each (see tiny_base_tasks.py and tiny_base_gta.py). Reading policies comes
first, then pictures, then routes of tools, then all with larger policies. Every cycle has scenes
and optimisers of its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from tiny_base_card import write_card
from tiny_base_gta import GTATasks
from tiny_base_model import accuracy, call_accuracy, collate, losses, new_base
from tiny_base_schedule import CYCLES, ROWS, Schedule
from tiny_base_tasks import Tasks
from torch import Tensor

from fastmpi.data.processor import Processor

MAX_GRAD_NORM = 1.0
CYCLE_SEED = 1000  # from one cycle to the next
FINAL_ROWS = 1000


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--start", type=Path, help="a model after some cycles, to go on from")
    parser.add_argument("--first-cycle", type=int, default=0, help="cycles that it has had")
    parser.add_argument("--scenes", type=int, default=6000, help="training pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--probe-every", type=int, default=200, help="steps between probes")
    return parser.parse_args()


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
    """All cycles; returns what the model card says."""
    model, processor = new_base(args.seed)
    if args.start is not None:
        model = type(model).from_pretrained(args.start)
    probes = Tasks(processor, pictures, 1000, seed=args.seed + 10_000)
    seconds = 0.0
    for number in range(args.first_cycle, len(CYCLES)):
        seconds += Cycle(args, number, model, processor, pictures).run(probes)
    return _measure(args, model, pictures, processor) | {"cpu_seconds": round(seconds)}


class Cycle:
    """One run of the learning rate from its peak to nothing."""

    def __init__(
        self,
        args: argparse.Namespace,
        number: int,
        model: torch.nn.Module,
        processor: Processor,
        pictures: Path,
    ) -> None:
        self.args, self.model, self.processor = args, model, processor
        settings, seed = CYCLES[number], args.seed + CYCLE_SEED * number
        self.tasks = Tasks(processor, pictures, args.scenes, seed=seed)
        self.tools = GTATasks(self.tasks)
        self.schedule = Schedule(settings, seed)
        self.steppers = optimisers(model, settings.learning_rate)
        self.scalers = [
            torch.optim.lr_scheduler.LambdaLR(stepper, self.schedule.scale)
            for stepper in self.steppers
        ]

    def run(self, probes: Tasks) -> float:
        """Trains; returns the CPU-seconds without those of the probes."""
        start, spent_on_probes = time.process_time(), 0.0
        for step in range(self.schedule.settings.steps):
            self.step()
            if (step + 1) % self.args.probe_every == 0:
                began = time.process_time()
                found = {**self.schedule.running, **_probe(self.model, probes)}
                spent_on_probes += time.process_time() - began
                seconds = time.process_time() - start - spent_on_probes
                print(
                    step + 1,
                    self.schedule.number + 1,
                    f"{seconds:.0f}s",
                    _rounded(found),
                    flush=True,
                )
                self.model.save_pretrained(self.args.output)
                self.processor.save_pretrained(self.args.output)
        return time.process_time() - start - spent_on_probes

    def step(self) -> None:
        kind, rows = self.schedule.draw(self.tasks, self.tools)
        batch = collate(rows, self.processor)
        targets, logprob, correct = losses(self.model, batch, bf16=True)
        weights = batch.weights[batch.weights > 0]
        loss = -(weights * logprob).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        for stepper, scaler in zip(self.steppers, self.scalers, strict=True):
            stepper.step()
            scaler.step()
            stepper.zero_grad()
        yes_no = torch.tensor([self.tasks.ids[" yes"], self.tasks.ids[" no"]])
        self.schedule.observe(_accuracies(kind, correct, torch.isin(targets, yes_no), weights > 1))


def _accuracies(kind: str, correct: Tensor, is_answer: Tensor, is_leaf: Tensor) -> dict[str, float]:
    """Shares of right tokens; of a description's answers and a path's end on their own."""
    apart = {"describe": ("yes/no", is_answer), "trace": ("leaf", is_leaf)}
    apart |= {"routes": ("version", is_leaf), "recite": ("version", is_leaf)}
    name, chosen = apart.get(kind, (kind, torch.ones_like(correct)))
    rest = {kind: correct[~chosen].float().mean().item()} if kind in apart else {}
    return rest | {name: correct[chosen].float().mean().item()}


def _probe(model: torch.nn.Module, probes: Tasks) -> dict[str, float]:
    trees = {
        "T": accuracy(model, probes, 96, 2),
        "M": accuracy(model, probes, 96, 2, pictured=True),
    }
    calls = call_accuracy(model, GTATasks(probes), 96)
    return {**trees, "tool": calls["tool"], "call": calls["call"]}


def _measure(
    args: argparse.Namespace, model: torch.nn.Module, pictures: Path, processor: Processor
) -> dict:
    """Final accuracies on unseen policies and on scenes that no probe has used."""
    tasks = Tasks(processor, pictures, 1000, seed=args.seed + 20_000)
    free = accuracy(model, tasks, FINAL_ROWS // 2, 2, with_policy=False)
    tools = GTATasks(tasks)
    calls = call_accuracy(model, tools, FINAL_ROWS)
    calls_free = call_accuracy(model, tools, FINAL_ROWS // 2, with_policy=False)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "accuracy_n2": accuracy(model, tasks, FINAL_ROWS, 2),
        "accuracy_n3": accuracy(model, tasks, FINAL_ROWS, 3),
        "accuracy_m2": accuracy(model, tasks, FINAL_ROWS, 2, pictured=True),
        "accuracy_policy_free": free,
        **{f"calls_{name}": value for name, value in calls.items()},
        **{f"calls_free_{name}": value for name, value in calls_free.items()},
        "rows": FINAL_ROWS,
        "rows_policy_free": FINAL_ROWS // 2,
        "batch_size": ROWS["follow"],
        "batch_size_calls": ROWS["calls"],
        "steps": sum(cycle.steps for cycle in CYCLES),
        "learning_rate": CYCLES[0].learning_rate,
        "seed": args.seed,
        "scenes": len(CYCLES) * args.scenes,
    }


def _rounded(values: dict[str, float]) -> str:
    return json.dumps({name: round(value, 3) for name, value in values.items()})


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        facts = train(args, Path(folder))
    print(json.dumps(facts))
    write_card(args.output, facts)


if __name__ == "__main__":
    main()
