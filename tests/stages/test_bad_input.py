"""Bad input is a ValueError that names what is wrong, before anything is written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fastmpi.recipe import stage_plan
from fastmpi.stages.chain import build_trainer
from fastmpi.stages.record import DataFiles


def with_row(world: Any, index: int, **changes: Any) -> list[dict]:
    rows = [dict(row) for row in world.rows]
    rows[index].update(changes)
    return rows


def refused(world: Any, stage: str, message: str, **arguments: Any) -> None:
    with pytest.raises(ValueError, match=message):
        world.trainer(stage, **arguments).train()
    assert not world.output.exists()


@pytest.mark.parametrize(
    ("stage", "row", "message"),
    [
        (
            "cpt",
            {"policy_id": "kavi"},
            "row 'row-3': unknown policy_id 'kavi'; did you mean 'kavo'",
        ),
        ("cpt", {"policy_id": None}, "row 'row-3' has no 'policy_id'"),
        ("cpt", {"answer": None}, "row 'row-3' has no 'answer'"),
        ("sft", {"reasoning": ""}, "row 'row-3' has no 'reasoning'; reasoning=False needs none"),
        ("sft", {"prompt": None}, "row 'row-3' has no 'prompt'"),
        ("sft", {"images": ["no.png"]}, "row 'row-3': image 'no.png' does not exist"),
        ("rl", {"images": ["no.png"]}, "row 'row-3': image 'no.png' does not exist"),
        ("rl", {"policy_id": "kavi"}, "row 'row-3': unknown policy_id 'kavi'"),
        ("rl", {"policy_id": None}, "row 'row-3' has no 'policy_id'"),
        ("rl", {"completions": "x"}, "row 'row-3': 'completions' is what rewards are given"),
        (
            "sft",
            {"reasoning": "yes " * 400},
            r"row 'row-3': its sample has \d+ tokens, more than max_tokens_per_microbatch = 400; "
            "samples with images are never truncated",
        ),
        (
            "rl",
            {"prompt": "yes " * 400},
            r"row 'row-3': its prompt with max_completion_length has \d+ tokens, more than",
        ),
    ],
)
def test_rows(world, stage: str, row: dict, message: str) -> None:
    refused(world, stage, message, rows=with_row(world, 3, **row))


def test_unreadable_image(world, tmp_path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"not a picture")
    rows = with_row(world, 3, images=[str(path)])
    refused(world, "sft", "row 'row-3': image .*broken.png' cannot be read", rows=rows)


def test_no_rows(world) -> None:
    refused(world, "sft", "the data set has no rows", rows=[])


def test_too_few_rows_for_a_window(world) -> None:
    refused(world, "rl", "has 1 rows, fewer than the 2 groups of a window", rows=world.rows[:1])


def test_no_policies(world) -> None:
    refused(
        world, "cpt", "row 'row-0' needs its policy: give the trainer `policies`", policies=None
    )


def test_config_of_another_stage(world) -> None:
    from fastmpi.config import SFTConfig
    from fastmpi.stages.cpt import CPTTrainer

    with pytest.raises(ValueError, match="args must be a CPTConfig, not SFTConfig"):
        CPTTrainer(world.model, SFTConfig(), world.rows)


def test_nothing_to_train(world) -> None:
    refused(world, "cpt", "nothing to train: freeze_vision", freeze_llm=True)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([0.0] * 11 + [math.nan], "'bad' returned nan for completion 11"),
        ([0.0] * 3, "'bad' returned 3 rewards for 12 completions"),
        ([None] * 12, "no reward function applies to completion 0"),
        (["1"] * 12, "'bad' returned '1' for completion 0"),
    ],
)
def test_rewards(world, returned: list, message: str) -> None:
    def bad(**_: Any) -> list:
        return returned

    refused(world, "rl", message, reward_funcs=[bad])


def test_reward_settings(world) -> None:
    refused(world, "rl", "reward_weights has 3 values for 2", reward_weights=[1.0, 2.0, 3.0])
    refused(world, "rl", "accuracy_reward 'acc' is no reward function", accuracy_reward="acc")
    refused(world, "rl", "at least one reward function", reward_funcs=[])


def test_unknown_lora_target(world) -> None:
    refused(
        world, "sft", "no linear layer of the text tower is called 'q'", lora_target_modules=["q"]
    )


def test_refuses_what_cannot_be_hooked(world, tmp_path) -> None:
    import json
    import shutil

    from fastmpi.stages.sft import SFTTrainer

    folder = tmp_path / "model"
    shutil.copytree(world.model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="dropout"):
        SFTTrainer(folder, train_dataset=world.rows)


def test_a_row_of_a_file_is_named_with_its_file(world, tmp_path: Path) -> None:
    rows = [{**row, "images": []} for row in world.rows]
    del rows[3]["reasoning"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = stage_plan("sft", {"train_dataset": str(path)})
    with pytest.raises(ValueError, match=r"rows\.jsonl: row 'row-3' has no 'reasoning'"):
        build_trainer(plan, str(world.model), DataFiles(None, None, None, None))
