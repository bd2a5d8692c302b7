"""`kill -9` of a comparison, which trains in processes of its own: they end with it, and whoever
starts it again ends with the same models, answers and figures."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fastmpi.recipe import find_recipe
from fastmpi.stages.record import StageRecord
from fastmpi.tracking import read_metrics

sys.path.insert(0, str(Path(__file__).parent))

from killed_run import finish, killed, start  # noqa: E402

TIMED = ("seconds", "prefill", "versions")


def write_recipe(model: Path, output: Path) -> list[str]:
    """A command that trains `sft` and `rl` on data of its own, and evaluates three models."""
    values = find_recipe("demo_quick", {}, {}).to_dict()
    stage = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    values |= {"model": str(model), "output_dir": str(output), "cpt": None}
    values["sft"] |= stage
    values["rl"] |= {**stage, "max_completion_length": 4}
    values["data"] = {
        "clevr_policy": {"world": "tiny", "num_policies": 2, "num_train": 8, "num_test": 4}
    }
    values["eval"] = {"max_completion_length": 4, "num_timed_prompts": 1, "suites": ["task"]}
    methods = {"base": [], "SFT": ["sft"], "RL": ["sft", "rl"]}
    values["compare"] = {"title": "Three methods", "methods": methods, "workers": 1}
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return ["compare", str(path)]


def kill_when(command: list[str], seen: Callable[[], Any]) -> None:
    """Kills the process itself, not those that it has started; they must end too."""
    process = start(command)
    ends = time.monotonic() + 300
    while not seen():
        assert process.poll() is None and time.monotonic() < ends
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)  # ends when nobody holds its pipes open any more
    assert process.returncode == -signal.SIGKILL


def untimed(values: Any) -> Any:
    """Figures without those that another run cannot repeat."""
    if isinstance(values, dict):
        kept = {k: v for k, v in values.items() if not any(word in k for word in TIMED)}
        return {key: untimed(value) for key, value in kept.items()}
    return [untimed(value) for value in values] if isinstance(values, list) else values


def assert_same(found: Path, expected: Path) -> None:
    for stage in ("sft", "sft+rl"):
        one, other = (
            load_file(f / "stages" / stage / "model.safetensors") for f in (found, expected)
        )
        assert all(torch.equal(one[name], other[name]) for name in other), stage
    for path in (expected / "eval").glob("*/items/*.jsonl"):
        assert (found / path.relative_to(expected)).read_bytes() == path.read_bytes(), path
    one, other = (json.loads((f / "summary.json").read_text()) for f in (found, expected))
    assert untimed(one) == untimed(other)


@pytest.mark.soak
def test_a_killed_comparison(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = tiny_folder("qwen2_5_vl")
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    finish(write_recipe(model, straight))
    command = write_recipe(model, broken)
    root, stages = f"{broken}/", broken / "stages"
    print("\n" + killed(command, {"root": root, "begin": r"os.rename \.data\.writing$"}))
    kill_when(command, lambda: len(read_metrics(stages / "sft")) >= 1)
    print("killed in a stage")
    kill_when(command, lambda: (record := StageRecord.read(stages / "sft")) and record.done)
    print("killed between two stages")
    print(killed(command, {"root": root, "begin": "open summary.json", "count": 1}))
    finish(command)
    assert_same(broken, straight)
