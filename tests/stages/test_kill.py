"""`kill -9` at random moments of a run of all stages: what is there is whole, and whoever starts it
again ends with the same weights, bit for bit.

FASTMPI_KILLS says how many kills; FASTMPI_KILL_SEED where they fall.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
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

KILLS = int(os.environ.get("FASTMPI_KILLS", "20"))
SEED = int(os.environ.get("FASTMPI_KILL_SEED", "0"))
COMMON = {
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
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
        "data": {"train": rows_file},
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
    }
    path = folder / f"{output.name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def start(recipe: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "fastmpi", "run", str(recipe)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(recipe: Path) -> None:
    process = start(recipe)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-3000:]


def assert_whole(output: Path) -> None:
    """Every checkpoint and every model that can be seen is readable to its last byte."""
    for stage in ("cpt", "sft", "rl"):
        for checkpoint in checkpoints(output / stage):
            read_state(checkpoint)
            for path in checkpoint.rglob("*.safetensors"):
                load_file(path)
        if (output / stage / "config.json").exists():
            load_file(output / stage / "model.safetensors")


def assert_same(found: Path, expected: Path) -> None:
    for stage in ("cpt", "sft", "rl"):
        one, other = (load_file(f / stage / "model.safetensors") for f in (found, expected))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one), stage


@pytest.mark.soak
def test_killed_at_random_moments(world, tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    began = time.monotonic()
    finish(write_recipe(world, tmp_path, straight))
    whole_run = time.monotonic() - began
    recipe = write_recipe(world, tmp_path, broken)
    rng = np.random.default_rng(SEED)
    kills = completed = 0
    while kills < KILLS:
        process = start(recipe)
        try:
            _, errors = process.communicate(timeout=rng.uniform(0.2, 0.8) * whole_run)
            assert process.returncode == 0, errors.decode()[-3000:]
            assert_same(broken, straight)
            shutil.rmtree(broken)
            completed += 1
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            assert_whole(broken)
    finish(recipe)
    assert_same(broken, straight)
    print(f"{kills} kills, {completed + 1} completed runs, a whole one takes {whole_run:.0f} s")
