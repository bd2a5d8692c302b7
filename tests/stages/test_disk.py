"""A disk that is full, a folder that cannot be made, a damaged file: a clear error, and nothing
whole is lost."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

SETTINGS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "eval_steps": 1}


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Files cannot grow beyond `limit` bytes: the system refuses the write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_from(step: int) -> Any:
    """An evaluation that fills the disk before checkpoint `step` is written."""

    def evaluate(model: Any, at: int) -> dict[str, float]:
        if at == step:
            soft, hard = 100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return {}

    return evaluate


@pytest.mark.parametrize("stage", ["cpt", "sft"])
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


def test_a_folder_that_cannot_be_made(world) -> None:
    with pytest.raises(OSError, match="/dev/null/out"):
        world.trainer("cpt", output_dir="/dev/null/out", max_steps=1).train()


@pytest.mark.parametrize(
    "damaged", ["model.safetensors", "state/optimizer.safetensors", "trainer_state.json"]
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
