"""A disk that is full, a folder that cannot be made, a damaged file: a clear error, and nothing
whole is lost."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fastmpi.tracking import read_metrics

sys.path.insert(0, str(Path(__file__).parents[1]))

from disks import full_disk, read_only  # noqa: E402

SETTINGS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "eval_steps": 1}


def full_from(step: int, limit: int = 100_000) -> Any:
    """An evaluation that fills the disk before checkpoint `step` is written."""

    def evaluate(model: Any, at: int) -> dict[str, float]:
        if at == step:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        return {}

    return evaluate


@pytest.mark.parametrize("stage", ["cpt", "sft", "rl"])
def test_a_full_disk(world, stage: str) -> None:
    """The error names the place, checkpoints stay whole, and the run goes on when there is room."""
    straight = world.trainer(stage, **SETTINGS).train().output_dir
    broken = {**SETTINGS, "output_dir": str(world.output / "broken")}
    with full_disk(resource.RLIM_INFINITY), pytest.raises(OSError, match="broken"):
        world.trainer(stage, evaluate=full_from(3), **broken).train()
    left = sorted(path.name for path in Path(broken["output_dir"]).glob("*checkpoint*"))
    assert left == ["checkpoint-1", "checkpoint-2"]
    resumed = world.trainer(stage, **broken).train(resume_from_checkpoint="auto").output_dir
    weights = load_file(resumed / "model.safetensors")
    for name, tensor in load_file(straight / "model.safetensors").items():
        assert weights[name].equal(tensor), name


def test_no_room_for_the_final_model(world) -> None:
    settings = {**SETTINGS, "save_strategy": "no"}
    with full_disk(resource.RLIM_INFINITY), pytest.raises(OSError, match="cannot be written"):
        world.trainer("cpt", evaluate=full_from(4), **settings).train()
    left = {path.name for path in (world.output / "cpt").iterdir()}
    assert left == {"config.yaml", "metrics.jsonl"}


def test_no_room_for_a_line_of_metrics(world) -> None:
    """The line that did not fit leaves nothing of itself, and the run goes on where it was."""
    straight = world.trainer("cpt", **SETTINGS).train().output_dir
    broken = {**SETTINGS, "output_dir": str(world.output / "broken"), "save_strategy": "no"}
    # Nothing else is written between the second line and the third.
    with full_disk(resource.RLIM_INFINITY), pytest.raises(OSError, match=r"broken/metrics.jsonl"):
        world.trainer("cpt", evaluate=full_from(2, 1200), **broken).train()
    lines = (world.output / "broken" / "metrics.jsonl").read_text()
    assert lines.endswith("}\n") and [json.loads(line)["step"] for line in lines.splitlines()] == [
        1,
        2,
    ]
    resumed = world.trainer("cpt", **broken).train().output_dir
    assert len(read_metrics(resumed)) == len(read_metrics(straight)) == 4


def test_a_read_only_folder(world) -> None:
    """A run that may not write says where, and the one before it stays whole."""
    settings = {**SETTINGS, "max_steps": 2}
    folder = world.trainer("cpt", **settings).train().output_dir
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with read_only(folder), pytest.raises(PermissionError, match=str(folder)):
        more = {**settings, "max_steps": 3}
        world.trainer("cpt", **more).train(resume_from_checkpoint="auto")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    parent = world.output / "closed"
    parent.mkdir()
    with read_only(parent), pytest.raises(PermissionError, match="closed/out"):
        world.trainer("cpt", output_dir=str(parent / "out"), max_steps=1).train()


def test_a_folder_that_cannot_be_made(world) -> None:
    with pytest.raises(OSError, match="/dev/null/out"):
        world.trainer("cpt", output_dir="/dev/null/out", max_steps=1).train()


@pytest.mark.parametrize(
    "damaged",
    [
        "model.safetensors",
        "config.json",
        "state/optimizer.safetensors",
        "state/rng.safetensors",
        "state/rollout.safetensors",
        "trainer_state.json",
    ],
)
def test_a_damaged_checkpoint_is_named(world, damaged: str) -> None:
    """And the one before it, once the damaged one is removed, is as good as ever."""
    world.trainer("cpt", **{**SETTINGS, "max_steps": 2}).train()
    path = world.output / "cpt" / "checkpoint-2" / damaged
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises((ValueError, OSError), match="checkpoint-2"):
        world.trainer("cpt", **{**SETTINGS, "max_steps": 3}).train(resume_from_checkpoint="auto")
    assert path.read_bytes() == whole[: len(whole) // 2]
