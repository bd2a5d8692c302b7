"""`kill -9` at random moments of a run of all stages: what is there is whole, and whoever starts it
again ends with the same weights, curves and answers, bit for bit.

One run is killed at every kind of moment of every stage in turn, and started again each time.
Where exactly is drawn at random: FASTMPI_KILL_SEED repeats what a failure has printed.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from fastmpi.checkpoint import checkpoints, read_state
from fastmpi.tracking import read_metrics

sys.path.insert(0, str(Path(__file__).parent))

from killed_run import finish, killed, start  # noqa: E402

STAGES = ("cpt", "sft", "rl")
STEPS = 8
TIMES = ("perf/", "step_time", "cpu_seconds")
COMMON = {
    "max_steps": STEPS,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
# Name -> what begins it, as "event path", how many changes of files later it may end at most, and
# the bytes of a file after which it may end in the middle of writing it. As they come in a stage.
MOMENTS: dict[str, tuple[str, int, int]] = {
    "begin": (r"os.mkdir {0}$", 5, 0),
    "metrics": (r"open {0}/metrics.jsonl$", 0, 100),
    "checkpoint": (r"os.mkdir {0}/.checkpoint-\d+.writing", 27, 800_000),
    # From the third on, an older one is removed.
    "into place": (r"os.rename {0}/.checkpoint-[3-8].writing$", 16, 0),
    "resuming": (r"open {0}/checkpoint-\d+/", 10, 0),
    "model": (r"os.mkdir {0}/.model.writing$", 30, 800_000),
    # The model is there, and nothing says so: not before its config.json has moved.
    "record": (r"os.rename {0}/.model.writing/config.json$", 6, 0),
}
EVAL_MOMENTS: dict[str, tuple[str, int, int]] = {
    "answers": (r"open eval/items/task.partial$", 0, 100),
    "summary": (r"os.mkdir eval/items$", 8, 0),
}


def write_recipe(world: Any, folder: Path, output: Path) -> Path:
    rows = []
    for i, row in enumerate(world.rows):
        row["images"][0].save(folder / f"{i}.png")
        rows.append({**row, "images": [f"{i}.png"]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    world.policies.to_jsonl(folder / "policies.jsonl")
    rows_file = str(folder / "rows.jsonl")
    supervised = {**COMMON, "per_device_train_batch_size": 4, "train_dataset": rows_file}
    recipe = {
        "model": str(world.model),
        "policies": str(folder / "policies.jsonl"),
        "data": {"train": rows_file, "test": rows_file},
        "output_dir": str(output),
        "cpt": {**supervised, "learning_rate": 1e-3},
        "sft": {**supervised, "learning_rate": 1e-2},
        "rl": {
            **COMMON,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 12,
            "num_generations": 3,
            "num_iterations": 2,
            "steps_per_generation": 2,
            "max_completion_length": 6,
            "beta": 0.1,
        },
        "eval": {"suites": ["task"], "max_completion_length": 6, "batch_size": 2},
    }
    path = folder / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


class Killer:
    """Starts a run and kills it at a moment of some kind, and says where it was."""

    def __init__(self, recipe: Path, output: Path, seed: int, step_seconds: float) -> None:
        self.recipe, self.output, self.step_seconds = recipe, output, step_seconds
        self.rng = np.random.default_rng(seed)
        self.kills: list[str] = []

    def at(self, stage: str, kind: str) -> None:
        """At a change of a file, drawn from the moments of this kind, or in the middle of one."""
        begin, most, most_bytes = (MOMENTS if stage in STAGES else EVAL_MOMENTS)[kind]
        moment: dict[str, Any] = {"root": f"{self.output}/", "begin": begin.format(stage)}
        moment["count"] = int(self.rng.integers(kind == "record", most + 1))
        if most_bytes and (not most or self.rng.integers(2)):
            moment |= {"count": 0, "torn": int(self.rng.integers(1, most_bytes))}
        self._killed(f"{stage}: {kind}: {killed(['run', str(self.recipe)], moment)}")

    def within(self, stage: str) -> None:
        """At some time in the first steps of this process: not beside a file, most likely."""
        process = start(["run", str(self.recipe)])
        metrics = self.output / stage / "metrics.jsonl"
        began = len(read_metrics(metrics.parent))
        ends = time.monotonic() + 300
        while len(read_metrics(metrics.parent)) <= began:
            assert process.poll() is None and time.monotonic() < ends
            time.sleep(0.002)
        time.sleep(self.rng.uniform(0, 2 * self.step_seconds))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        self._killed(f"{stage}: within step {len(read_metrics(metrics.parent)) + 1}")

    def _killed(self, where: str) -> None:
        self.kills.append(where)
        print(f"kill {len(self.kills)}: {where}", flush=True)
        assert_whole(self.output)


def assert_whole(output: Path) -> None:
    """Every checkpoint, model, record and line that can be seen is readable to its last byte."""
    names = {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"}
    for stage in STAGES:
        for checkpoint in checkpoints(output / stage):
            read_state(checkpoint)
            assert names <= {path.name for path in checkpoint.iterdir()}, checkpoint
            for path in checkpoint.rglob("*.safetensors"):
                load_file(path)
        if (output / stage / "config.json").exists():
            assert names <= {path.name for path in (output / stage).iterdir()}, stage
            load_file(output / stage / "model.safetensors")
        read_metrics(output / stage)
    for path in [*output.glob("*/*.json"), *output.glob("*.json")]:
        json.loads(path.read_text())


def curves(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if not name.startswith(TIMES)}
        for line in read_metrics(folder)
    ]


def assert_same(found: Path, expected: Path) -> None:
    for stage in STAGES:
        one, other = (load_file(f / stage / "model.safetensors") for f in (found, expected))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), stage
        assert curves(found / stage) == curves(expected / stage), stage
    items, expected_items = (f / "eval" / "items" / "task.jsonl" for f in (found, expected))
    assert items.read_bytes() == expected_items.read_bytes()
    hidden = [path for path in found.rglob("*") if path.name.endswith((".writing", ".partial"))]
    assert not hidden


@pytest.mark.soak
def test_killed_at_random_moments(world, tmp_path: Path) -> None:
    seed = int(os.environ.get("FASTMPI_KILL_SEED", secrets.randbelow(2**31)))
    print(f"\nFASTMPI_KILL_SEED={seed}", flush=True)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    began = time.monotonic()
    finish(["run", str(write_recipe(world, tmp_path, straight))])
    whole_run = time.monotonic() - began
    seconds = [line["step_time"] for stage in STAGES for line in read_metrics(straight / stage)]
    recipe = write_recipe(world, tmp_path, broken)
    killer = Killer(recipe, broken, seed, float(np.median(seconds)))
    for stage in STAGES:
        killer.at(stage, "begin")
        killer.within(stage)
        for kind in list(MOMENTS)[1:]:
            killer.at(stage, kind)
    for kind in EVAL_MOMENTS:
        killer.at("eval", kind)
    finish(["run", str(recipe)])
    assert_same(broken, straight)
    total = time.monotonic() - began
    print(f"{len(killer.kills)} kills in {total:.0f} s; a whole run takes {whole_run:.0f} s")
