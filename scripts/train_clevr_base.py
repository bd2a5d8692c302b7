"""Train a small Qwen2.5-VL that reads CLEVR's pictures, from nothing, on one CPU core.

    OMP_NUM_THREADS=1 python scripts/train_clevr_base.py --clevr-dir CLEVR --output runs/clevr_base

First the vision tower learns what stands in each cell of a picture (clevr_base_tower.py), then the
language model learns to read policies and what the tower sees (clevr_base_language.py). Scenes are
the first 1,400 of split train; `recipes/demo_clevr.yaml` takes the others, and val for its test.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clevr_base_card import write_card
from clevr_base_language import accuracy, see, test_rows, train_language
from clevr_base_model import new_base
from clevr_base_pictures import Picture, draw_picture, draw_scenes, read_picture
from clevr_base_rows import TASK_WORDS
from clevr_base_steps import Stepper
from clevr_base_tower import (
    CellHead,
    attend_apart,
    attend_together,
    cell_loss,
    draw_batch,
    draw_whole,
    encode,
)
from torch import nn

from fastmpi.data.processor import Processor
from fastmpi.data.scenes import CLEVR_ATTRIBUTES
from fastmpi.policies.clevr_world import load_part

FINAL_ROWS = 400


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    folder = os.environ.get("FASTMPI_CLEVR_DIR")
    parser.add_argument(
        "--clevr-dir", default=folder, required=folder is None, help="folder of CLEVR's layout"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--train", default="train[:1400]", help="scenes to train on")
    parser.add_argument("--test", default="val[:100]", help="scenes to watch progress on")
    parser.add_argument("--final-test", default="val", help="scenes of the final accuracies")
    parser.add_argument("--drawn", type=int, default=2500, help="scenes to draw for the tower")
    parser.add_argument("--window-steps", type=int, default=3200, help="tower: steps of windows")
    parser.add_argument("--whole-steps", type=int, default=350, help="tower: of whole pictures")
    parser.add_argument("--tower-rate", type=float, default=3e-3, help="tower: learning rate")
    parser.add_argument("--steps", type=int, default=1300, help="language: optimiser steps")
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="language")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--probe-every", type=int, default=200, help="steps between probes")
    return parser.parse_args()


def train_tower(
    args: argparse.Namespace,
    visual: nn.Module,
    real: Sequence[Picture],
    drawn: Sequence[Picture],
    report: Callable[[str, dict], None],
) -> dict[str, float]:
    """Both parts of the tower's training; shares of right values at the end.

    The head that reads the cells is thrown away.
    """
    rng = np.random.default_rng(args.seed + 1)
    test = [read_picture(scene) for scene in load_part(args.clevr_dir, args.test)]
    head = CellHead()
    steps = args.window_steps + args.whole_steps
    stepper = Stepper([visual, head], args.tower_rate, steps)
    attend_together(visual)
    for step in range(steps):
        if step < args.window_steps:
            batch = draw_batch(rng, real, drawn, step / args.window_steps)
        else:
            batch = draw_whole(rng, real)
        loss, _ = cell_loss(head, encode(visual, batch), batch)
        stepper.step(loss)
        if (step + 1) % args.probe_every == 0 or step + 1 == steps:
            shares = values_right(visual, head, test)
            report(f"tower {step + 1}", {"loss": loss.item(), **shares})
    attend_apart(visual)
    return shares


@torch.no_grad()
def values_right(
    visual: nn.Module, head: CellHead, pictures: Sequence[Picture]
) -> dict[str, float]:
    """The test loss, and for each attribute the share of right values, in whole pictures."""
    parts = [pictures[start : start + 20] for start in range(0, len(pictures), 20)]
    loss, shares = cell_loss(head, torch.cat([encode(visual, part) for part in parts]), pictures)
    return {"test loss": loss.item(), **dict(zip(CLEVR_ATTRIBUTES, shares, strict=True))}


def measure(args: argparse.Namespace, model: nn.Module, processor: Processor) -> dict[str, Any]:
    """What the model card says: accuracies on unseen trees and on scenes of the test split."""
    rows = test_rows(args.clevr_dir, args.final_test, processor, args.seed + 20_000)
    found = {f"accuracy_n{n}": accuracy(model, rows, FINAL_ROWS, n) for n in (1, 2)}
    free = accuracy(model, rows, FINAL_ROWS, 2, with_policy=False)
    names = ("train", "test", "final_test", "drawn", "seed", "window_steps", "whole_steps", "steps")
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        **found,
        "accuracy_policy_free": free,
        "rows": FINAL_ROWS,
        **{name: getattr(args, name) for name in names},
    }


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    start = time.process_time()

    def report(what: str, values: dict) -> None:
        rounded = json.dumps({name: round(value, 3) for name, value in values.items()})
        print(f"{what} {time.process_time() - start:.0f}s {rounded}", flush=True)

    scenes = load_part(args.clevr_dir, args.train)
    drawn_scenes = draw_scenes(np.random.default_rng(args.seed), args.drawn)
    real = [read_picture(scene) for scene in scenes]
    drawn = [draw_picture(scene) for scene in drawn_scenes]
    model, processor = new_base(args.seed, TASK_WORDS)
    shares = train_tower(args, model.model.visual, real, drawn, report)
    attend_together(model.model.visual)
    seen = see(model.model.visual, real + drawn, scenes + drawn_scenes, args.seed + 5)
    attend_apart(model.model.visual)
    train_language(args, model, processor, seen, report)
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    facts = shares | {"cpu_seconds": round(time.process_time() - start)}
    facts |= measure(args, model, processor)
    write_card(args.output, facts)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
