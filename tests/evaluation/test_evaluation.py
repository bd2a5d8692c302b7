"""One evaluation on disk: killed and continued, given more suites, never mixed with another."""

from __future__ import annotations

import json

import pytest

from fastmpi.evaluation import evaluation
from fastmpi.evaluation.answering import AnswerFile
from fastmpi.evaluation.folder import EvaluationFolder
from fastmpi.evaluation.items import Answer
from fastmpi.evaluation.suites import run_suites
from fastmpi.models.forest_model import ForestModel

SUITES = ["task", "in-context", "override", "referral", "branching"]


def files_of(path):
    """Everything but run.json, which tells how long it took."""
    found = {p.relative_to(path): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    return {name: content for name, content in found.items() if name.name != "run.json"}


class Killed(Exception):
    pass


def kill_at(arm, count):
    def on_batch(at, done, total):
        if (at, done) == (arm, count):
            raise Killed

    return on_batch


@pytest.mark.parametrize("arm, count", [("task", 4), ("task", 12), ("override", 8)])
def test_killed_and_continued_is_the_same_to_the_bit(ask, arm, count):
    settings = {"suites": SUITES, "temperature": 1.0, "batch_size": 4}
    run_suites(ask(folder="whole", **settings).evaluation)
    with pytest.raises(Killed):
        run_suites(ask(on_batch=kill_at(arm, count), **settings).evaluation)
    partial = ask(**settings).path / "items" / f"{arm}.partial"
    assert len(partial.read_bytes().splitlines()) == count
    with partial.open("ab") as file:  # what a kill in the middle of a write leaves
        file.write(partial.read_bytes().splitlines(keepends=True)[0] + b'{"id": "test-')
    asked = []
    continued = ask(on_batch=lambda arm, done, total: asked.append((arm, done)), **settings)
    run_suites(continued.evaluation)
    assert [done for at, done in asked if at == arm] == list(range(count + 4, 13, 4))
    assert files_of(continued.path) == files_of(ask(folder="whole", **settings).path)
    assert not list(continued.path.rglob("*.partial"))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_items_do_not_depend_on_the_batch_size(ask, temperature):
    found = [
        ask(folder=str(size), batch_size=size, temperature=temperature).evaluation.items("task")
        for size in (1, 5, 64)
    ]
    assert found[0] == found[1] == found[2]
    assert len({item["response"] for item in found[0]}) > 1
    other = ask(folder="other", seed=1, temperature=1.0).evaluation.items("task")
    assert [i["response"] for i in other] != [i["response"] for i in found[0]]


def test_what_is_answered_is_not_asked_again_but_marked_again(ask):
    first = ask(say=lambda prompt: "\\boxed{Case 1}")
    run_suites(first.evaluation)
    assert len(first.engine.asked) == 24
    path = first.path / "items" / "task.jsonl"
    path.write_text(path.read_text().replace('"correct": true', '"correct": false'))
    again = ask(say=lambda prompt: "another", suites=["task", "override"])
    summary = run_suites(again.evaluation)
    assert len(again.engine.asked) == 12  # of override alone
    items = again.evaluation.items("task")
    assert [i["correct"] for i in items] == [i["answer"] == "Case 1" for i in items]
    assert list(summary) == ["task", "override"]
    # what was measured before stays in the summary
    assert list(again.evaluation.folder.summary()) == ["task", "in-context", "override"]


def test_another_evaluation_is_not_mixed_with_this_one(ask, tiny_folder):
    def say(prompt):
        return "\\boxed{Case 1}"

    run_suites(ask(say=say, batch_size=3).evaluation)
    ask(say=say, batch_size=64, num_timed_prompts=0)  # nothing that answers depend on
    with pytest.raises(
        ValueError, match="eval was made with max_completion_length 6, not 7; choose"
    ):
        ask(say=say, max_completion_length=7)
    with pytest.raises(ValueError, match="was made with seed 0, not 1"):
        ask(say=say, seed=1)
    with pytest.raises(ValueError, match="was made with num_rows None, not 3"):
        ask(say=say, num_rows=3)
    other = ForestModel.from_pretrained(tiny_folder("qwen3_vl"), probe=False)
    with pytest.raises(ValueError, match=r"evaluates other weights \(m, not n\)"):
        ask(say=say, model_to_ask=other, model="n")
    with pytest.raises(ValueError, match="eval was made before the weights of m changed; choose"):
        ask(say=say, model_to_ask=other)
    kept = ask(say=say, overwrite="if other")
    assert (kept.path / "items" / "task.jsonl").exists()
    anew = ask(say=say, overwrite="if other", seed=1)
    assert not (anew.path / "items").exists() and not (anew.path / "summary.json").exists()
    run_suites(anew.evaluation)
    assert not (ask(say=say, seed=1, overwrite="always").path / "items").exists()


def test_killed_while_another_evaluation_is_removed(ask, monkeypatch):
    """Its answers go before run.json, which says whose they are: they are never taken for new."""
    run_suites(ask(say=lambda prompt: "\\boxed{Case 1}", suites=["task"]).evaluation)
    monkeypatch.setattr(evaluation.shutil, "rmtree", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask(say=str, seed=1, suites=["task"], overwrite="if other")
    monkeypatch.undo()
    anew = ask(say=lambda prompt: "new", seed=1, suites=["task"], overwrite="if other")
    assert {item["response"] for item in anew.evaluation.items("task")} == {"new"}


def test_a_block_of_changed_rules_stands_alone_or_after_the_whole_policy(ask, data, tmp_path):
    lines = map(json.loads, (data / "override_policies.jsonl").read_text().splitlines())
    turn = {"role": "system", "content": "change : all"}
    blocks = [{**line, "override": "block", "messages": [turn]} for line in lines]
    file = tmp_path / "blocks.jsonl"
    file.write_text("".join(f"{json.dumps(block)}\n" for block in blocks))
    files = {"override_policies": str(file), "suites": ["override"], "say": str, "num_rows": 1}
    prompts = {}
    for context in ("block", "whole"):
        made = ask(folder=context, override_context=context, **files)
        run_suites(made.evaluation)
        (prompts[context],) = made.engine.asked
        assert made.evaluation.folder.run["settings"]["override_context"] == context
    assert "change : all" in prompts["block"] and "policy" not in prompts["block"]
    assert prompts["whole"].index("policy") < prompts["whole"].index("change : all")
    with pytest.raises(ValueError, match="was made with override_context block, not whole"):
        ask(folder="block", override_context="whole", **files)


def test_a_damaged_run_is_overwritten(ask):
    made = ask(say=str, suites=["task"])
    run_suites(made.evaluation)
    (made.path / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json cannot be read"):
        ask(say=str)
    anew = ask(say=str, overwrite="always")
    assert not (anew.path / "items").exists() and anew.evaluation.folder.label == "m"


def test_other_rows_are_noticed(ask, data, tmp_path):
    ask(say=str)
    changed = tmp_path / "test.jsonl"
    lines = (data / "test.jsonl").read_text().replace("images/", f"{data}/images/")
    changed.write_text(lines)
    with pytest.raises(ValueError, match="was made from another test file than ../test.jsonl"):
        ask(say=str, test_dataset=str(changed))


def test_run_json_says_what_was_asked(ask, data):
    made = ask(say=lambda prompt: "x", label="SFT", suites=["task"])
    run_suites(made.evaluation)
    run = json.loads((made.path / "run.json").read_text())
    assert (run["label"], run["model"], len(run["fingerprint"])) == ("SFT", "m", 64)
    assert run["settings"] == {
        "max_completion_length": 6, "temperature": 0.0, "num_rows": None, "seed": 0,
        "override_context": "block", "dtype": "float32",
    }  # fmt: skip
    assert set(run["data"]) == {"test", "policies", "override", "override_policies"}
    assert made.evaluation.folder.data_path("test").resolve() == (data / "test.jsonl").resolve()
    assert list(run["seconds"]) == ["task"] and "torch" in run["versions"]


def test_answers_of_other_rows_are_refused(tmp_path):
    rows = [{"id": "a"}, {"id": "b"}]
    kept = AnswerFile(tmp_path / "items" / "task.partial")
    assert kept.whole_batches(rows, 1) == []
    kept.append([Answer("b", "\ud800", 1, 1, True)])
    with pytest.raises(ValueError, match="task.partial answers row 'b' where the data has 'a'"):
        kept.whole_batches(rows, 1)
    assert kept.whole_batches(rows[1:], 7) == [Answer("b", "\ud800", 1, 1, True)]
    assert kept.whole_batches([*rows[1:], *rows], 2) == []


@pytest.mark.parametrize("line", ["[" * 100_000, "3", '{"id": "a"}', "{"])
def test_a_damaged_item_is_named(tmp_path, line):
    path = tmp_path / "items" / "task.jsonl"
    path.parent.mkdir()
    path.write_text(line + "\n")
    with pytest.raises(ValueError, match=r"items/task\.jsonl, line 1 is damaged"):
        EvaluationFolder(tmp_path).items("task")


@pytest.mark.parametrize("text", ["[" * 100_000, "3", "{"])
def test_a_damaged_summary_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json"):
        _ = EvaluationFolder(tmp_path).run
