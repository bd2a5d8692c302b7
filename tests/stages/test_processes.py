"""Several processes take the steps that one takes, also where their work is unequal; another number
of them goes on with a run; and one that dies ends the others."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastmpi.tracking import read_metrics

sys.path.insert(0, str(Path(__file__).parent))
from processes import launch, run, start  # noqa: E402

COMMON = {
    "max_steps": 3,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "adam_epsilon": 1e-5,
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "save_steps": 2,
}
# The batch is of all processes together. Of seven rows the second step takes one: only one process
# has a sample then. Only every other row has a picture.
CASES: dict[str, dict[str, Any]] = {
    "cpt": {"per_device_train_batch_size": 6, "max_tokens_per_microbatch": 110},
    "sft": {"per_device_train_batch_size": 6, "learning_rate": 1e-2},
    "rl": {
        "per_device_train_batch_size": 12,
        "num_generations": 1,
        "steps_per_generation": 2,
        "max_completion_length": 6,
        "beta": 0.1,
        "scale_rewards": "batch",
        "dynamic_sampling": True,
        "log_completions": True,
    },
}
SAME = ("loss", "reward", "reward_std", "kl", "num_tokens", "completions/max_length")


def make_jobs(world: Any, folder: Path, **settings: Any) -> dict[str, dict[str, Any]]:
    rows = []
    for i, row in enumerate([*world.rows, *world.rows[:3]]):
        path = folder / f"{i}.png"
        row["images"][0].save(path)
        rows.append({**row, "id": f"row-{i}", "images": [str(path)] * (i % 2)})
    return {
        stage: {
            "stage": stage,
            "settings": {**COMMON, **of_stage, **settings},
            "rows": rows if stage == "rl" else rows[:7],
            "model": str(world.model),
            "policies": {name: policy.text for name, policy in world.policies.items()},
        }
        for stage, of_stage in CASES.items()
    }


def into(job: dict[str, Any], folder: Path, resume: Path | None = None, **settings: Any) -> Any:
    """`job`, whose output goes to `folder`."""
    settings = {**job["settings"], **settings, "output_dir": str(folder)}
    return {**job, "settings": settings, "resume": None if resume is None else str(resume)}


def weights(folder: Path) -> torch.Tensor:
    saved = load_file(folder / "model.safetensors")
    return torch.cat([saved[name].double().reshape(-1) for name in sorted(saved)])


def relative(found: Path, expected: Path) -> float:
    return float((weights(found) - weights(expected)).norm() / weights(expected).norm())


@pytest.mark.slow
def test_three_processes_equal_one(world, tmp_path: Path) -> None:
    """In numbers precise enough to see what is wrong rather than rounded."""
    jobs = make_jobs(world, tmp_path, dtype="float64", save_strategy="no")
    jobs = {name: {**job, "exact": True} for name, job in jobs.items()}
    launch([into(job, tmp_path / f"3-{n}") for n, job in jobs.items()], tmp_path / "jobs", 3)
    for name, job in jobs.items():
        one, three = tmp_path / f"1-{name}", tmp_path / f"3-{name}"
        run(into(job, one))
        assert relative(three, one) < 1e-10, name
        for first, other in zip(read_metrics(one), read_metrics(three), strict=True):
            for key in set(SAME) & set(first):
                assert other[key] == pytest.approx(first[key], rel=1e-6, abs=1e-9), (name, key)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(world, tmp_path: Path) -> None:
    """Bit for bit on as many processes, in the middle of a window too; else to rounding."""
    jobs = make_jobs(world, tmp_path)
    at_two = {n: tmp_path / f"broken-{n}" / "checkpoint-2" for n in jobs}
    launch(
        [
            *[into(job, tmp_path / f"2-{n}", max_steps=4) for n, job in jobs.items()],
            *[into(job, at_two[n].parent, max_steps=2) for n, job in jobs.items()],
            *[into(job, tmp_path / f"2+2-{n}", at_two[n], max_steps=4) for n, job in jobs.items()],
        ],
        tmp_path / "jobs-2",
        2,
    )
    on_three = [into(j, tmp_path / f"2+3-{n}", at_two[n], max_steps=4) for n, j in jobs.items()]
    launch(on_three, tmp_path / "jobs-3", 3)
    for name, job in jobs.items():
        run(into(job, tmp_path / f"2+1-{name}", at_two[name], max_steps=4))
        run(into(job, tmp_path / f"1-{name}", max_steps=4))
        whole = tmp_path / f"2-{name}"
        assert weights(tmp_path / f"2+2-{name}").equal(weights(whole)), name
        for other in ("1", "2+1", "2+3"):
            assert relative(tmp_path / f"{other}-{name}", whole) < 1e-5, (name, other)
        state = {path.name for path in (whole / "checkpoint-2" / "state").iterdir()}
        assert {"optimizer.safetensors", "rng-00001-of-00002.safetensors"} < state
    rl = into(jobs["rl"], tmp_path / "other", at_two["rl"], per_device_train_batch_size=6)
    with pytest.raises(ValueError, match=r"has 12 samples a step on 2 processes, this run 6 on 1"):
        run(rl)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "where", "rank", "how"),
    [
        ("rl", "rollout", 1, "kill"),
        ("sft", "backward", 0, "the device is lost"),
        ("cpt", "saving", 1, "kill"),
    ],
)
def test_a_process_that_dies_ends_the_others(
    world, tmp_path: Path, stage: str, where: str, rank: int, how: str
) -> None:
    job = into(make_jobs(world, tmp_path)[stage], tmp_path / "out")
    if stage == "rl":
        job["settings"]["steps_per_generation"] = 1  # a window each step
    death = {"rank": rank, "how": how, "where": where, "log": str(tmp_path / "death")}
    processes = start([{**job, "death": death}], tmp_path / "jobs", 2)
    errors = processes[1 - rank].end(timeout=300)
    took = time.time() - float((tmp_path / "death").read_text())
    processes[rank].end(timeout=60)
    assert took < 60 and processes[1 - rank].returncode == 1
    why = f"process {rank} died" if how == "kill" else f"process {rank} failed: OSError: {how}"
    assert why in errors
    assert not (tmp_path / "out" / "checkpoint-2").exists()
