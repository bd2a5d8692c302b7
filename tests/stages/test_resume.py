"""A killed and resumed run ends where an unbroken one does: same bits, same metrics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastmpi.tracking import read_metrics

TIMES = ("perf/", "step_time", "cpu_seconds")


class Killed(Exception):
    pass


def kill_at(step: int) -> Any:
    def evaluate(model: Any, at: int) -> dict[str, float]:
        if at == step:
            raise Killed
        return {}

    return evaluate


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def curves(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if not name.startswith(TIMES)}
        for line in read_metrics(folder)
        if "loss" in line
    ]


def assert_same(found: Path, expected: Path) -> None:
    for name, tensor in weights(expected).items():
        assert weights(found)[name].equal(tensor), name
    assert curves(found) == curves(expected)


def straight_and_killed(world: Any, stage: str, killed_at: int, **settings: Any) -> tuple:
    """Folders of a run in one go and of one that was killed and resumed."""
    settings = {"save_strategy": "steps", "save_steps": 3, "eval_steps": 1, **settings}
    straight = world.trainer(stage, **settings).train()
    broken = {**settings, "output_dir": str(world.output / "broken")}
    with pytest.raises(Killed):
        world.trainer(stage, evaluate=kill_at(killed_at), **broken).train()
    torch.rand(3), torch.manual_seed(5)  # another process has other generators
    resumed = world.trainer(stage, **broken).train(resume_from_checkpoint="auto")
    assert resumed.global_step == straight.global_step
    return resumed.output_dir, straight.output_dir


AUTO = {
    "gradient_checkpointing": "auto",
    "max_tokens_per_microbatch": "auto",
    "memory_budget_gib": 0.0045,
}
BESIDE = {"async_generate": True, "beta": 0.1, "learning_rate": 1e-2, "steps_per_generation": 2}


@pytest.mark.parametrize(
    ("stage", "killed_at", "settings"),
    [
        ("cpt", 4, {"max_steps": 6, "weight_decay": 0.1}),  # at the end of an epoch of three
        ("cpt", 5, {"num_train_epochs": 2, "logging_steps": 4}),
        ("sft", 4, {"max_steps": 5, "lr_scheduler_type": "cosine", "warmup_steps": 2}),
        # in the middle of a window of four steps, two passes over two
        ("rl", 4, {"max_steps": 6, "steps_per_generation": 4, "num_iterations": 2, "beta": 0.1}),
        ("rl", 4, {"max_steps": 5, "use_peft": True, "beta": 0.1, "learning_rate": 1e-2}),
        # cut by memory, processes by seconds, of which there is only one
        ("cpt", 4, {"max_steps": 6, "balance_by": "seconds", **AUTO}),
        # all at once: beside the update, twice over a window, an adapter that goes on and off
        ("rl", 4, {"max_steps": 6, "num_iterations": 2, "use_peft": True, **BESIDE, **AUTO}),
    ],
)
def test_bit_exact(world, stage: str, killed_at: int, settings: dict) -> None:
    assert_same(*straight_and_killed(world, stage, killed_at, **settings))


def test_a_window_kept_whole(world) -> None:
    """Resuming inside a window samples nothing again."""
    settings = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 1,
        "steps_per_generation": 8,
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 2,
        "eval_steps": 1,
    }
    with pytest.raises(Killed):
        world.trainer("rl", evaluate=kill_at(2), **settings).train()
    trainer = world.trainer("rl", **settings)
    trainer.sampler.batch = None  # would raise
    assert trainer.train(resume_from_checkpoint="auto").global_step == 4


def test_dynamic_sampling_goes_on_with_the_next_rows(world) -> None:
    settings = {
        "max_steps": 4,
        "save_steps": 1,
        "dynamic_sampling": True,
        "dynamic_sampling_range": (0.2, 0.8),
    }
    assert_same(*straight_and_killed(world, "rl", 2, **settings))


def test_across_stages(world) -> None:
    """SFT, then RL on what it left, both killed once."""

    def stages(folder: Path, kill: int | None) -> Path:
        model = world.model
        for stage in ("sft", "rl"):
            settings = {
                "output_dir": str(folder / stage),
                "max_steps": 3,
                "save_strategy": "steps",
                "save_steps": 1,
                "eval_steps": 1,
                "model": model,
            }
            if kill:
                with pytest.raises(Killed):
                    world.trainer(stage, evaluate=kill_at(kill), **settings).train()
            world.trainer(stage, **settings).train(resume_from_checkpoint="auto")
            model = folder / stage
        return model

    assert_same(stages(world.output / "broken", 2), stages(world.output / "straight", None))


def test_a_finished_run_is_left_as_it_is(world) -> None:
    settings = {"max_steps": 2, "save_strategy": "steps"}
    first = world.trainer("cpt", **settings).train()
    before = weights(first.output_dir), curves(first.output_dir)
    again = world.trainer("cpt", **settings).train(resume_from_checkpoint="auto")
    assert again.global_step == 2
    after = weights(again.output_dir), curves(again.output_dir)
    assert all(after[0][name].equal(tensor) for name, tensor in before[0].items())
    assert after[1] == before[1]


def test_a_new_run_does_not_mix_with_an_old_one(world) -> None:
    settings = {"max_steps": 2, "save_strategy": "steps"}
    world.trainer("cpt", **settings).train()
    with pytest.raises(ValueError, match=r"checkpoint-2 is there already: continue it with"):
        world.trainer("cpt", **settings).train()


def test_checkpoints_are_model_folders(world) -> None:
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    trainer = world.trainer(
        "sft", max_steps=4, save_strategy="steps", save_steps=2, save_total_limit=1
    )
    result = trainer.train()
    folder = result.output_dir / "checkpoint-4"
    assert not (result.output_dir / "checkpoint-2").exists()
    assert AutoTokenizer.from_pretrained(folder).chat_template
    model = AutoModelForImageTextToText.from_pretrained(folder)
    merged = dict(AutoModelForImageTextToText.from_pretrained(result.output_dir).named_parameters())
    assert all(p.equal(merged[name]) for name, p in model.named_parameters())
    names = {path.suffix for path in result.output_dir.rglob("*") if path.is_file()}
    assert names <= {".json", ".jsonl", ".yaml", ".safetensors", ".jinja"}  # no pickle


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage": "cpt"}, "is of another stage"),
        ({"settings": {"seed": 7}}, "was made with seed = 42, this run has 7"),
        ({"rows": slice(1, None)}, "is of another data set"),
        ({"model": True}, "is of another model"),
    ],
)
def test_a_checkpoint_of_another_run(world, tmp_path: Path, change: dict, message: str) -> None:
    settings = {"max_steps": 2, "save_strategy": "steps", "use_peft": False}
    world.trainer("sft", **settings).train()
    model = None
    if change.get("model"):
        from fastmpi.models.tiny import tiny_model

        model = tmp_path / "other"
        tiny_model("qwen2_5_vl", seed=1, folder=model)
    trainer = world.trainer(
        change.get("stage", "sft"),
        rows=world.rows[change["rows"]] if "rows" in change else None,
        model=model,
        **{**settings, **change.get("settings", {}), "output_dir": str(tmp_path / "new")},
    )
    checkpoint = world.output / "sft" / "checkpoint-2"
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=checkpoint)
    assert not (tmp_path / "new").exists()


def test_metrics_of_the_future_are_dropped(world) -> None:
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    result = world.trainer("cpt", **settings).train()
    shutil.rmtree(result.output_dir / "checkpoint-4")
    before = curves(result.output_dir)
    world.trainer("cpt", **settings).train(resume_from_checkpoint="auto")
    lines = (result.output_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert curves(result.output_dir) == before


def test_a_checkpoint_behind_newer_ones_is_refused(world) -> None:
    """Or two branches of a run would lie in one folder, and "auto" would take the wrong one."""
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    folder = world.trainer("sft", **settings).train().output_dir
    with pytest.raises(ValueError, match="checkpoint-3 is newer than .*checkpoint-1"):
        world.trainer("sft", **settings).train(folder / ".." / folder.name / "checkpoint-1")
