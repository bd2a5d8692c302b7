"""Checkpoints are whole or absent, know what they belong to, and hold no pickle."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmpi import checkpoint


def write(folder: Path, step: int) -> Path:
    with checkpoint.written_aside(folder, step) as aside:
        checkpoint.write_tensors(checkpoint.state_path(aside, "rng"), {"x": torch.arange(3)})
        checkpoint.write_state(aside, {"step": step})
    return folder / f"checkpoint-{step}"


def test_newest_by_number_and_pruned(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        write(tmp_path, step)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == [
        "checkpoint-2",
        "checkpoint-9",
        "checkpoint-10",
    ]
    checkpoint.prune(tmp_path, 2)
    assert checkpoint.find_checkpoint(tmp_path, "auto") == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-2").exists()


def test_find(tmp_path: Path) -> None:
    assert checkpoint.find_checkpoint(tmp_path, None) is None
    assert checkpoint.find_checkpoint(tmp_path, "auto") is None
    made = write(tmp_path, 1)
    assert checkpoint.find_checkpoint("elsewhere", made) == made
    with pytest.raises(
        ValueError, match=r"nowhere is no checkpoint: it has no trainer_state\.json"
    ):
        checkpoint.find_checkpoint(tmp_path, "nowhere")


def test_a_killed_write_is_never_seen(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt), checkpoint.written_aside(tmp_path, 2) as aside:
        checkpoint.write_state(aside, {"step": 2})
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]
    (tmp_path / ".checkpoint-2.writing" / "state").mkdir(parents=True)  # as a kill leaves it
    assert checkpoint.find_checkpoint(tmp_path, "auto") == tmp_path / "checkpoint-1"
    write(tmp_path, 3)  # clears away what was left
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-3"]


def test_a_checkpoint_moved_away_by_a_killed_write_comes_back(tmp_path: Path) -> None:
    write(tmp_path, 1).rename(tmp_path / ".checkpoint-1.old")
    write(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_written_again(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "checkpoint-1" / "old").touch()
    write(tmp_path, 1)
    assert not (tmp_path / "checkpoint-1" / "old").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    made = write(tmp_path, 1)
    (made / checkpoint.STATE_FILE).write_text('{"step": 1')
    with pytest.raises(ValueError, match=r"trainer_state\.json: not readable as JSON"):
        checkpoint.read_state(made)
    checkpoint.state_path(made, "rng").write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(ValueError, match=r"rng\.safetensors: not readable as safetensors"):
        checkpoint.read_tensors(checkpoint.state_path(made, "rng"))
    with pytest.raises(ValueError, match=r"optimizer\.safetensors: not readable"):
        checkpoint.read_tensors(checkpoint.state_path(made, "optimizer"))


def test_one_file_a_process() -> None:
    path = checkpoint.state_path(Path("c"), "rng", 1, 4)
    assert path == Path("c/state/rng-00002-of-00004.safetensors")


def test_random_generators_go_back() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002

    def draw() -> list[float]:
        numpy_values = [np.random.normal(), np.random.random()]  # noqa: NPY002
        return [random.gauss(0, 1), random.random(), *numpy_values, torch.rand(()).item()]

    draw()  # leaves the second gauss of each pair in the generators
    state = checkpoint.rng_state()
    first = draw()
    draw()
    checkpoint.set_rng_state(state)
    assert draw() == first


def test_fingerprint_sees_names_shapes_and_values() -> None:
    weights = {"a": torch.arange(5000.0), "b": torch.zeros(2, 3)}
    same = checkpoint.fingerprint(weights.items())
    assert checkpoint.fingerprint(reversed(weights.items())) == same
    changed = [
        {"a": weights["a"] + 1, "b": weights["b"]},
        {"a": weights["a"], "b": torch.zeros(3, 2)},
        {"a": weights["a"], "c": weights["b"]},
    ]
    assert all(checkpoint.fingerprint(other.items()) != same for other in changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "rl"}, "is of another stage: it has stage sft, this run rl"),
        ({"model": "b" * 64}, "is of another model"),
        ({"rows": "b" * 64}, "is of another data set"),
        ({"policies": "b" * 64}, "is of another set of policies"),
        ({"samples_per_step": 8}, "has 4 samples a step on 1 processes, this run 8 on 1"),
        ({"steps_per_window": 2}, "has 1 steps for each window of responses on 1 processes"),
        ({"config": {"seed": 2}}, "was made with seed = 1, this run has 2"),
    ],
)
def test_another_run(change: dict, message: str) -> None:
    found = {"stage": "sft", "model": "a", "rows": "a", "policies": "a", "processes": 1}
    found |= {"samples_per_step": 4, "steps_per_window": 1}
    found["config"] = {"seed": 1}
    checkpoint.check_same_run(Path("c"), found, {**found, "processes": 3})
    with pytest.raises(ValueError, match=message):
        checkpoint.check_same_run(Path("c"), found, {**found, **change})


def test_killed_while_it_prunes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be seen is whole: a checkpoint loses its name before it loses its files."""
    for step in (1, 2):
        write(tmp_path, step)

    def killed(path: Path) -> None:
        next(path.rglob("*.safetensors")).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.prune(tmp_path, 1)
    monkeypatch.undo()
    assert checkpoint.checkpoints(tmp_path) == [tmp_path / "checkpoint-2"]
    write(tmp_path, 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]


def test_parts_of_several_processes_are_one_state(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    whole = {"cut": torch.arange(15.0).reshape(5, 3), "small": torch.ones(1, 2)}
    for rank in range(3):
        part = {"cut": whole["cut"][2 * rank : 2 * rank + 2], "small": whole["small"][rank:]}
        part["small"] = part["small"] if rank == 0 else torch.zeros(0, 2)
        only_first = {"whole": torch.tensor(7.0)} if rank == 0 else {}
        checkpoint.write_part(tmp_path, "optimizer", part | only_first, rank, 3)
    found = dict(checkpoint.read_parts(tmp_path, "optimizer"))
    assert found.keys() == {"cut", "small", "whole"} and found["whole"] == 7
    assert found["cut"].equal(whole["cut"]) and found["small"].equal(whole["small"])
    checkpoint.state_path(tmp_path, "optimizer", 1, 3).write_bytes(b"half")
    with pytest.raises(ValueError, match="optimizer-00002-of-00003.safetensors: not readable"):
        dict(checkpoint.read_parts(tmp_path, "optimizer"))
    (tmp_path / "state" / "optimizer.index.json").write_text("{")
    with pytest.raises(ValueError, match=r"optimizer.index.json: not readable as JSON"):
        dict(checkpoint.read_parts(tmp_path, "optimizer"))
