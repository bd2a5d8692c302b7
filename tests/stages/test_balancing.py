"""Processes share a step by seconds: measured once, written down, and taken up again."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastmpi.models.cost import CostModel, Work
from fastmpi.stages.balancing import FILE, MeasuredBalance, _largest
from fastmpi.stages.clock import Timed

sys.path.insert(0, str(Path(__file__).parent))
from processes import launch, run  # noqa: E402

COST = CostModel(overhead=0, row=1e-3, pair=1e-5, score=0, patch=1e-4)


def two_processes(trainer: Any) -> Any:
    """The trainer as the first of two processes that find the same."""
    trainer.begin()
    device = trainer.accelerator.device
    trainer.accelerator = SimpleNamespace(
        process_index=0, num_processes=2, is_main_process=True, device=device
    )
    trainer.gather_json = lambda value: [value, value]
    return trainer


def test_measured_saved_and_read_again(world) -> None:
    trainer = two_processes(world.trainer("cpt", dataloader_prefetch_factor=3))
    balance = MeasuredBalance(trainer, None)
    for step in range(4):
        assert balance.of_step(step) is None and trainer.clock is not None
        works = [Work(n, n * 50, n) for n in (100 * (step + 1), 70)]
        slow = 10 if step == 0 else 1
        trainer.clock.timed += [Timed(step, w, slow * COST.seconds(w), 0) for w in works]
        trainer.features.seconds, trainer.features.patches = 0.5, 1000
        trainer.state.global_step = step + 1
        assert not (world.output / "cpt" / FILE).exists()
        (world.output / "cpt").mkdir(parents=True, exist_ok=True)
        balance.step_done()
    assert trainer.clock is None and not trainer.features.times_itself
    # one step to warm up, three measured, three that may be prepared, one that is being prepared
    assert balance.from_step == 8
    assert balance.of_step(7) is None
    trainer.args.per_device_train_batch_size = 1  # five steps an epoch
    found = balance.of_step(8)
    assert found.seconds(Work(200, 10_000, 200)) == pytest.approx(0.3, rel=0.05)
    assert found.patch == 0 and balance.cost.patch == pytest.approx(5e-4)

    again = MeasuredBalance(trainer, world.output / "cpt" / "checkpoint-2")
    assert (again.from_step, again.cost) == (8, balance.cost) and trainer.clock is None
    trainer.args.output_dir = str(world.output / "elsewhere")
    (world.output / "elsewhere").mkdir()
    moved = MeasuredBalance(trainer, world.output / "cpt" / "checkpoint-2")
    moved.step_done()
    texts = [(world.output / name / FILE).read_text() for name in ("cpt", "elsewhere")]
    assert texts[0] == texts[1]

    (world.output / "cpt" / FILE).write_text('{"from_step": 8}')
    with pytest.raises(ValueError, match=rf"{FILE} is damaged"):
        MeasuredBalance(trainer, world.output / "cpt" / "checkpoint-2")


def test_a_new_run_measures_anew(world) -> None:
    (world.output / "cpt").mkdir(parents=True)
    (world.output / "cpt" / FILE).write_text(json.dumps({"from_step": 2, "seconds": {}}))
    trainer = two_processes(world.trainer("cpt"))
    assert MeasuredBalance(trainer, None).cost is None and trainer.clock is not None


def test_those_that_wait_are_left_out() -> None:
    """By what there is to do, not by what took long."""
    unit = torch.ones(4).numpy()
    first = [(4, 10, 0, 0, 0, 3.0), (4, 20, 0, 0, 0, 1.0), (5, 1, 0, 0, 0, 1.0)]
    second = [(4, 30, 0, 0, 0, 2.0), (5, 2, 0, 0, 0, 1.0)]
    assert _largest([first, second], unit) == [second[0], first[1], second[1]]


def test_seconds_decide_who_takes_what(world) -> None:
    """Where pairs are what is dear, the longest sample has a process to itself."""
    rows = [
        {**world.rows[0], "id": word, "images": [], "prompt": f"{word} " * count}
        for word, count in (("red", 100), ("cube", 70), ("small", 50), ("metal", 40))
    ]
    trainer = two_processes(world.trainer("sft", rows, per_device_train_batch_size=2))
    pairs = CostModel(overhead=0, row=0, pair=1, score=0, patch=0)
    taken = []
    for balance in (None, SimpleNamespace(of_step=lambda step: pairs if step == 0 else None)):
        trainer.balance = balance
        shares = []
        for rank in range(2):
            trainer.accelerator.process_index = rank
            shares.append(len(trainer.prepare(0).samples))
        taken.append(sorted(shares))
    assert taken == [[2, 2], [1, 3]]


def weights(folder: Path) -> torch.Tensor:
    saved = load_file(folder / "model.safetensors")
    return torch.cat([saved[name].double().reshape(-1) for name in sorted(saved)])


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_bit_for_bit(world, tmp_path: Path) -> None:
    """From a checkpoint before the model counts and from one after; and to rounding as one."""
    rows = []
    for i, row in enumerate(world.rows):
        row["images"][0].save(tmp_path / f"{i}.png")
        rows.append({**row, "images": [str(tmp_path / f"{i}.png")] * (i % 2)})
    settings = {
        "max_steps": 9,
        "save_steps": 3,
        "per_device_train_batch_size": 6,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "adam_epsilon": 1e-5,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_prefetch_factor": 0,
        "balance_by": "seconds",
        "max_tokens_per_microbatch": 110,
    }
    policies = {name: policy.text for name, policy in world.policies.items()}
    job = {"stage": "cpt", "rows": rows, "model": str(world.model), "policies": policies}

    def into(name: str, resume: Path | None = None) -> dict[str, Any]:
        output = {**settings, "output_dir": str(tmp_path / name)}
        return {**job, "settings": output, "resume": None if resume is None else str(resume)}

    launch([into("whole")], tmp_path / "jobs", 2)
    assert json.loads((tmp_path / "whole" / FILE).read_text())["from_step"] == 5
    for at in (3, 6):
        for kept in (f"checkpoint-{at}", FILE):
            source, target = tmp_path / "whole" / kept, tmp_path / f"from-{at}" / kept
            target.parent.mkdir(exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    broken = [into(f"from-{at}", tmp_path / f"from-{at}" / f"checkpoint-{at}") for at in (3, 6)]
    launch(broken, tmp_path / "jobs-2", 2)
    run(into("one"))
    whole = weights(tmp_path / "whole")
    assert weights(tmp_path / "from-3").equal(whole) and weights(tmp_path / "from-6").equal(whole)
    assert float((weights(tmp_path / "one") - whole).norm() / whole.norm()) < 1e-5
