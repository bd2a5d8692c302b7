"""Chaining stages: what is run, what is found finished, what is refused. The trainer is a stub."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastmpi.recipe import Recipe
from fastmpi.rewards import exact_answer
from fastmpi.stages import chain
from fastmpi.stages.chain import prepare_data, reward_functions, run_stage
from fastmpi.stages.chain import run as run_recipe
from fastmpi.stages.record import DataFiles, StageRecord, StageStart


@pytest.fixture
def trained(monkeypatch):
    """The stages that ran: (kind, starting model, resumed from)."""
    ran = []

    def build(plan, model, data, *, trust_recipe_code=False):
        output = Path(plan.config.output_dir)

        def train(resume_from_checkpoint):
            output.mkdir(parents=True, exist_ok=True)
            ran.append((plan.kind, model, resume_from_checkpoint))
            if plan.config.max_steps == 13:
                raise KeyboardInterrupt
            metrics = {"cpu_seconds": 2.0, "train_seconds": 3.0}
            return SimpleNamespace(output_dir=output, global_step=5, metrics=metrics)

        return SimpleNamespace(train=train)

    monkeypatch.setattr(chain, "build_trainer", build)
    return ran


@pytest.fixture
def files(tmp_path):
    for name in ("policies", "train", "cot"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"{name}": 1, "prompt": "?"}}\n')
    return {"train": str(tmp_path / "train.jsonl"), "train_cot": str(tmp_path / "cot.jsonl")}


def recipe(tmp_path, files, **changes):
    values = {"data": files, "policies": str(tmp_path / "policies.jsonl"), "model": "base"}
    return Recipe.from_dict({**values, "output_dir": str(tmp_path / "run"), **changes})


def test_each_stage_starts_from_the_one_before(trained, files, tmp_path):
    result = run_recipe(recipe(tmp_path, files, cpt={}, sft={}, rl={}))
    run = tmp_path / "run"
    assert trained == [
        ("cpt", "base", None), ("sft", str(run / "cpt"), None), ("rl", str(run / "sft"), None)
    ]  # fmt: skip
    assert result.model == str(run / "rl") and result.suites == {}
    record = StageRecord.read(run / "sft")
    assert record.done and (record.steps, record.cpu_seconds, record.seconds) == (5, 2.0, 3.0)
    assert Recipe.from_yaml(run / "config.yaml").sft == {}


@pytest.mark.parametrize("is_main", [True, False])
def test_processes_wait_as_long_as_a_stage_says_and_not_for_the_evaluation(
    trained, files, tmp_path, monkeypatch, is_main
):
    done = []

    class State:
        is_main_process = is_main

        def __init__(self, cpu, timeout):
            done.append(timeout.total_seconds())

        def wait_for_everyone(self):
            done.append("wait")

    def evaluate(*_, **__):
        done.append("evaluate")
        return {"task": 1}

    monkeypatch.setattr("accelerate.PartialState", State)
    monkeypatch.setattr(chain, "evaluate_recipe", evaluate)
    if not is_main:  # the first process, which is not here, writes
        (tmp_path / "run").mkdir()
    result = run_recipe(recipe(tmp_path, files, cpt={}, sft={"ddp_timeout": 4000}))
    assert done[0] == 4000 and done[-2:] == (["wait", "evaluate"] if is_main else ["wait", "wait"])
    assert result.suites == ({"task": 1} if is_main else {})


def test_finished_stages_are_not_run_again(trained, files, tmp_path):
    run_recipe(recipe(tmp_path, files, cpt={}, sft={}))
    run_recipe(recipe(tmp_path, files, cpt={"logging_steps": 1}, sft={}, rl={}))
    assert [kind for kind, *_ in trained] == ["cpt", "sft", "rl"]
    run_recipe(recipe(tmp_path, files, cpt={}), overwrite=True)
    assert trained[-1][0] == "cpt"


def test_other_settings_in_the_same_folder_are_refused(trained, files, tmp_path):
    run_recipe(recipe(tmp_path, files, cpt={}, sft={}))
    with pytest.raises(ValueError, match="run/sft was made with lora_r 16, not 8; choose another"):
        run_recipe(recipe(tmp_path, files, cpt={}, sft={"lora_r": 8}))
    Path(files["train_cot"]).write_text('{"other": 1, "prompt": "?"}\n')
    with pytest.raises(ValueError, match="run/cpt was made with rows "):
        run_recipe(recipe(tmp_path, files, cpt={}))
    assert len(trained) == 2


def test_a_killed_run_has_its_recipe(trained, files, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe(tmp_path, files, sft={"max_steps": 13}))
    assert Recipe.from_yaml(tmp_path / "run" / "config.yaml").sft == {"max_steps": 13}


def test_a_later_stage_of_another_recipe_is_refused_before_the_first_is_trained(
    trained, files, tmp_path
):
    run_recipe(recipe(tmp_path, files, rl={}))
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match="run/rl was made with start "):
        run_recipe(recipe(tmp_path, files, sft={}, rl={}))
    assert [kind for kind, *_ in trained] == ["rl"]
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_stage_after_a_changed_one_is_not_taken_for_its_own(trained, files, tmp_path):
    run_recipe(recipe(tmp_path, files, cpt={}, sft={}))
    run_recipe(recipe(tmp_path, files, cpt={"max_steps": 3}), overwrite=True)
    with pytest.raises(ValueError, match="run/sft was made with start "):
        run_recipe(recipe(tmp_path, files, cpt={"max_steps": 3}, sft={}))


def test_interrupted_stage_continues_from_its_checkpoint(trained, files, tmp_path):
    plan = recipe(tmp_path, files).stage("sft", {"max_steps": 13})
    data = DataFiles(None, **files, test=None)
    arguments = (plan, StageStart("base", "base"), data, tmp_path / "sft")
    with pytest.raises(KeyboardInterrupt):
        run_stage(*arguments)
    assert not StageRecord.read(tmp_path / "sft").done
    (tmp_path / "sft" / "checkpoint-5").mkdir()
    (tmp_path / "sft" / "leftover").touch()
    with pytest.raises(KeyboardInterrupt):
        run_stage(*arguments)
    assert [resumed for *_, resumed in trained] == [None, "auto"]
    assert (tmp_path / "sft" / "leftover").exists()
    with pytest.raises(KeyboardInterrupt):
        run_stage(*arguments, overwrite=True)
    assert not (tmp_path / "sft" / "leftover").exists()


def test_missing_rows_are_named_before_anything_is_written(trained, tmp_path):
    with pytest.raises(ValueError, match="data has no 'train_cot', and a stage needs it"):
        run_recipe(recipe(tmp_path, {"train": "t.jsonl"}, policies=None, sft={}))
    with pytest.raises(ValueError, match="t.jsonl cannot be read: No such file"):
        run_recipe(recipe(tmp_path, {"train": "t.jsonl"}, policies=None, rl={}))
    assert not (tmp_path / "run" / "sft").exists() and trained == []


def test_what_a_later_stage_needs_is_checked_before_the_first(trained, tmp_path, files):
    with pytest.raises(ValueError, match="allow it with --trust-recipe-code"):
        run_recipe(recipe(tmp_path, files, sft={}, rl={"reward_funcs": ["my.reward"]}))
    with pytest.raises(ValueError, match="nope.jsonl cannot be read"):
        run_recipe(recipe(tmp_path, {**files, "test": "nope.jsonl"}, sft={}))
    assert trained == [] and not (tmp_path / "run").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_of_others_are_never_removed(trained, tmp_path, files, overwrite):
    mine = tmp_path / "run" / "sft" / "weights.bin"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ValueError, match="sft is there already and was not made by a recipe"):
        run_recipe(recipe(tmp_path, files, sft={}), overwrite=overwrite)
    generated = {"clevr_policy": {"world": "tiny", "num_train": 4, "num_test": 4}}
    (tmp_path / "run" / "data").mkdir()
    (tmp_path / "run" / "data" / "mine.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="data is there already"):
        changes = {"policies": None, "sft": {}, "model": "tiny"}
        run_recipe(recipe(tmp_path, generated, **changes), overwrite=overwrite)
    assert mine.exists() and (tmp_path / "run" / "data" / "mine.jsonl").exists()


@pytest.mark.parametrize("left", [["stage.json.writing"], ["stage.json", "model", "z.jsonl"]])
def test_a_stage_that_was_killed_as_it_began_starts_anew(trained, tmp_path, files, left):
    folder = tmp_path / "run" / "sft"
    folder.mkdir(parents=True)
    for name in left:
        (folder / name).write_text("{}")
    run_recipe(recipe(tmp_path, files, sft={}), overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["stage.json"]


def test_killed_while_a_stage_is_removed(trained, tmp_path, files, monkeypatch):
    """What says that the folder is ours goes last, so the next run can remove the rest."""
    run_recipe(recipe(tmp_path, files, sft={}))
    for name in ("aaa", "zzz"):
        (tmp_path / "run" / "sft" / name).mkdir()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(chain.shutil, "rmtree", lambda path: (path.rmdir(), 1 / 0))
        run_recipe(recipe(tmp_path, files, sft={}), overwrite=True)
    left = {path.name for path in (tmp_path / "run" / "sft").iterdir()}
    assert "stage.json" in left and len(left) == 2
    run_recipe(recipe(tmp_path, files, sft={}), overwrite=True)


def test_generated_data_are_kept_and_checked(tmp_path):
    settings = {"world": "tiny", "num_policies": 2, "num_train": 8, "num_test": 4}
    changes = {"policies": None, "model": "tiny"}
    made = prepare_data(recipe(tmp_path, {"clevr_policy": settings}, **changes))
    before = Path(made.test).stat().st_mtime_ns
    assert prepare_data(recipe(tmp_path, {"clevr_policy": settings}, **changes)) == made
    assert Path(made.test).stat().st_mtime_ns == before
    other = recipe(tmp_path, {"clevr_policy": {**settings, "depth": 3}}, **changes)
    with pytest.raises(ValueError, match="run/data was made with depth 2, not 3; choose another"):
        prepare_data(other)
    prepare_data(other, overwrite=True)
    meta = json.loads((tmp_path / "run" / "data" / "meta.json").read_text())
    assert meta["settings"]["depth"] == 3


def test_a_model_that_is_not_there_is_told_before_data_are_made(tmp_path):
    settings = {"world": "tiny", "num_policies": 2, "num_train": 8, "num_test": 4}
    mistyped = recipe(tmp_path, {"clevr_policy": settings}, policies=None, model="no/such/model")
    with pytest.raises(ValueError, match="no model folder 'no/such/model'"):
        run_recipe(mistyped)
    assert not (tmp_path / "run").exists()


def test_reward_code_needs_trust(tmp_path, monkeypatch):
    (tmp_path / "chain_rewards.py").write_text("def half(completions, **_): return [0.5]\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert reward_functions(["exact_answer"], False) == [exact_answer]
    with pytest.raises(ValueError, match="'chain_rewards:half' runs code .*--trust-recipe-code"):
        reward_functions(["chain_rewards:half"], False)
    (half,) = reward_functions(["chain_rewards:half"], True)
    assert half(["x"]) == [0.5]


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_damaged_record_is_named(tmp_path, text):
    (tmp_path / "stage.json").write_text(text)
    with pytest.raises(ValueError, match="stage.json is damaged"):
        StageRecord.read(tmp_path)
