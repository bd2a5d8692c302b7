"""Frozen curves of a few steps per stage: what should change nothing must not move them.

FASTMPI_UPDATE_GOLDEN=1 writes them anew, for changes that mean to.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fastmpi.tracking import read_metrics

FOLDER = Path(__file__).parent / "golden"
RUNS = {
    "cpt": ("cpt", {}, ("loss", "grad_norm")),
    "sft": ("sft", {"lora_r": 4}, ("loss", "grad_norm")),
    "sft_direct": ("sft", {"reasoning": False, "use_peft": False}, ("loss", "grad_norm")),
    "rl": ("rl", {"beta": 0.1, "num_iterations": 2}, ("reward", "grad_norm", "kl", "loss")),
    "rl_dr_grpo": (
        "rl",
        {"loss_type": "dr_grpo", "scale_rewards": "none", "steps_per_generation": 4},
        ("reward", "grad_norm", "loss"),
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_curves(name: str, world) -> None:
    stage, settings, shown = RUNS[name]
    trainer = world.trainer(stage, max_steps=5, **settings)
    trainer.train()
    found = [
        {key: line[key] for key in shown if key in line}
        for line in read_metrics(trainer.args.output_dir)
    ]
    path = FOLDER / f"{name}.json"
    if os.environ.get("FASTMPI_UPDATE_GOLDEN"):
        rounded = [{key: float(f"{x:.6g}") for key, x in line.items()} for line in found]
        path.write_text(json.dumps(rounded, indent=1) + "\n")
    golden = json.loads(path.read_text())
    assert len(found) == len(golden)
    for line, expected in zip(found, golden, strict=True):
        assert line == pytest.approx(expected, rel=1e-3, abs=1e-5)
