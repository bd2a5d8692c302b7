"""What each suite makes of answers that are known."""

from __future__ import annotations

import json

import pytest

from fastmpi.data.rows import read_rows
from fastmpi.evaluation.folder import EvaluationFolder, SuiteSummary
from fastmpi.evaluation.metrics import NOTHING, Figure
from fastmpi.evaluation.result import EvalInputs
from fastmpi.evaluation.suites import run_suites


def say_case(answer):
    return lambda prompt: f"<think>C1 red yes</think>\\boxed{{{answer}}}"


def test_task_in_context_and_their_ratio(ask, data):
    rows = read_rows(data / "test.jsonl")
    right = {row["policy_id"]: row["answer"] for row in rows}

    def say(prompt):
        name = prompt.rsplit("question ", 1)[1].split()[0]
        if "policy" not in prompt:
            return "\\boxed{none}" if name != min(right) else f"\\boxed{{{right[name]}}}"
        return f"\\boxed{{{right[name]}}}"

    suites = run_suites(ask(say=say).evaluation)
    task, shown = suites["task"], suites["in-context"]
    hits = [row["answer"] == right[row["policy_id"]] for row in rows]
    assert shown.figures["accuracy"].value == pytest.approx(sum(hits) / 12)
    first = [h for h, row in zip(hits, rows, strict=True) if row["policy_id"] == min(right)]
    assert task.figures["accuracy"].value == pytest.approx(sum(first) / 12)
    assert shown.figures["internalisation"].value == pytest.approx(sum(first) / sum(hits))
    assert task.by_policy[max(right)]["accuracy"].value == 0
    assert list(task.by_depth) == ["2"] and task.by_depth["2"] == task.figures
    assert set(task.by_outcome) == {row["answer"] for row in rows}
    assert task.figures["parsed"].value == 1 and "tool" not in task.figures


def test_a_ratio_to_nothing_is_said(ask):
    shown = run_suites(ask(say=say_case("none")).evaluation)["in-context"]
    assert "internalisation" not in shown.figures
    assert shown.notes["internalisation"] == "undefined: nothing is right with the policy"


def test_the_ratio_comes_with_whichever_arm_is_asked_last(ask, data):
    say = say_case(read_rows(data / "test.jsonl")[0]["answer"])
    both = run_suites(ask(say=say, folder="both").evaluation)["in-context"]
    first = run_suites(ask(say=say, suites=["in-context"]).evaluation)["in-context"]
    assert "internalisation" not in first.figures
    assert first.notes == {"internalisation": "unknown: the suite task was not asked"}
    files = {"data_dir": None, "test_dataset": str(data / "test.jsonl")}  # without the policies
    task = ask(say=say, suites=["task"], **files).evaluation
    run_suites(task)
    assert task.folder.summary()["in-context"] == both


def test_figures_of_other_options_stay(ask, monkeypatch):
    monkeypatch.setattr("fastmpi.evaluation.harness_tasks._check_installed", lambda harness: None)
    monkeypatch.setattr(
        "fastmpi.evaluation.suites.run_harness",
        lambda path, inputs, *_, **__: dict.fromkeys(inputs.forgetting_tasks, NOTHING),
    )
    found = {}
    for tasks in (None, ["a"], ["b"]):
        made = ask(say=str, suites=["forgetting", "efficiency"], num_rows=1, forgetting_tasks=tasks,
                   num_timed_prompts=0 if tasks else 1)  # fmt: skip
        found = run_suites(made.evaluation)
    assert list(found["forgetting"].figures) == ["describe", "trace", "a", "b"]
    assert found["efficiency"].figures["prefill_ms_with"].n == 1
    assert made.evaluation.folder.summary() == found


def test_a_judged_score_stays_without_the_judge(ask):
    known = SuiteSummary({"referral": NOTHING, "judge_0_to_10": Figure(7, 6, 8, 9)},
                         notes={"judge's model": "j"})  # fmt: skip
    made = ask(say=say_case("x"), suites=["referral"])
    made.evaluation.folder.write_summary({"referral": known})
    found = run_suites(made.evaluation)["referral"]
    assert found.figures["referral"].n and found.figures["judge_0_to_10"].value == 7
    assert found.notes == {"judge's model": "j"}


def test_override_asks_under_the_other_rules_and_tells_old_answers(ask, data):
    rows = read_rows(data / "override.jsonl")
    made = ask(say=say_case(rows[0]["old_answer"]), suites=["override"])
    found = run_suites(made.evaluation)["override"].figures
    differ = [row for row in rows if row["old_answer"] != row["answer"]]
    kept = [row["old_answer"] == rows[0]["old_answer"] for row in differ]
    assert (found["kept_old"].value, found["kept_old"].n) == (sum(kept) / len(kept), len(differ))
    lines = (data / "override_policies.jsonl").read_text().splitlines()
    texts = {p["policy_id"]: p for p in map(json.loads, lines)}
    told = texts[rows[0]["policy_id"]]["messages"][0]["content"]
    words = told if isinstance(told, str) else told[0]["text"]
    assert words.split(":", 1)[1].strip()[:20] in made.engine.asked[0]


def test_reasoning_that_quotes_nothing_true(ask):
    suites = run_suites(ask(say=say_case("x"), suites=["referral", "branching"]).evaluation)
    assert list(suites) == ["referral", "branching"]
    assert 0 <= suites["referral"].figures["referral"].value < 1
    assert set(suites["referral"].by_policy) == set(suites["branching"].by_policy)
    assert suites["branching"].figures["branching_error"].value > 0


def test_efficiency_without_any_answer(ask):
    made = ask(say=str, suites=["efficiency"])
    found = run_suites(made.evaluation)["efficiency"].figures
    assert made.engine.asked == []
    more, less = found["prompt_tokens_with"].value, found["prompt_tokens_without"].value
    assert more > less and found["prompt_tokens_saved"].value == pytest.approx(1 - less / more)
    model = made.evaluation.model
    text = model.base.config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    one = 2 * text.num_hidden_layers * text.num_key_value_heads * size * 4
    assert found["kv_bytes_with"].value == pytest.approx(one * more)
    assert found["prefill_ms_with"].n == 1 and found["prefill_ms_without"].value > 0
    again = ask(say=say_case("x"), folder="again", suites=["task", "in-context", "efficiency"],
                num_timed_prompts=0)  # fmt: skip
    known = run_suites(again.evaluation)["efficiency"].figures
    assert known["prompt_tokens_saved"] == found["prompt_tokens_saved"]
    assert "prefill_ms_with" not in known


def test_forgetting_asks_its_own_rows(ask):
    made = ask(say=lambda prompt: "small red cube ; none", suites=["forgetting"], num_rows=2)
    found = run_suites(made.evaluation)["forgetting"].figures
    assert {name: figure.n for name, figure in found.items()} == {"describe": 2, "trace": 2}
    assert "policy" in made.engine.asked[2] and "policy" not in made.engine.asked[0]
    folder = EvaluationFolder(made.path)
    items = folder.items("forgetting")
    assert (folder.pictures_folder("forgetting") / items[0]["images"][0]).is_file()
    assert all(item["correct"] == (item["score"] == 1) for item in items)


def test_a_folder_behind_a_link_takes_the_forgetting_suite_too(ask, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    made = ask(say=str, folder="link/eval", suites=["forgetting"], num_rows=1)
    run_suites(made.evaluation)
    items = EvaluationFolder(made.path).items("forgetting")
    assert items[0]["images"] == ["images/describe_000000.png"]


def test_tool_calls_have_their_own_figures(ask, data, tmp_path):
    call = '{"name": "OCR_v4", "arguments": {"image": "image/1.jpg"}}'
    row = {"policy_id": "p", "prompt": "which tool", "answer": call, "tool": "OCR"}
    other = {**row, "answer": call.replace("OCR_v4", "Solver"), "tool": "Solver"}
    file = tmp_path / "calls.jsonl"
    file.write_text(f"{json.dumps(row)}\n{json.dumps(other)}\n")
    made = ask(say=lambda prompt: f"\\boxed{{{call}}}", test_dataset=str(file), suites=["task"])
    task = run_suites(made.evaluation)["task"]
    values = {name: figure.value for name, figure in task.figures.items()}
    assert values == {"accuracy": 0.5, "parsed": 1, "tool": 0.5, "argument": 1, "overall": 0.75}
    assert list(task.by_outcome) == ["OCR", "Solver"] and "similarity" in task.notes
    assert not task.by_depth


def test_rules_that_cannot_be_read_are_told_before_anything_is_asked(ask, tmp_path):
    policy = {"policy_id": "p", "messages": [{"role": "system", "content": "be kind"}]}
    (tmp_path / "policies.jsonl").write_text(json.dumps(policy))
    row = {"policy_id": "p", "prompt": "question", "answer": "Case 1"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row))
    made = ask(say=str, data_dir=str(tmp_path), suites=["task", "referral"])
    with pytest.raises(ValueError, match="policy 'p': neither 'tree' nor 'gta' is there"):
        run_suites(made.evaluation)
    assert made.engine.asked == []


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "the suite task needs --test-dataset"),
        ({"suites": ["in-context"], "test_dataset": "t"}, "in-context needs --policies"),
        ({"suites": ["override"], "policies": "p"}, "override needs --override-dataset"),
        ({"suites": ["override"], "override_dataset": "o"}, "needs --override-policies"),
        (
            {
                "suites": ["override"],
                "override_dataset": "o",
                "override_policies": "r",
                "override_context": "whole",
            },
            "override_context: whole needs --policies",
        ),
        ({"override_context": "all"}, "override_context: 'all' is not one of block, whole"),
        ({"data_dir": "nowhere"}, "--data-dir: there is no folder nowhere"),
        ({"suites": ["tsk"]}, "there is no suite 'tsk'; did you mean 'task'"),
        ({"suites": []}, "suites is empty"),
        ({"dtype": "fp16"}, "dtype: 'fp16' is not one of auto, fp32, bf16"),
        ({"test_dataset": "t", "judge_model": "j"}, "--judge-model needs --output-dir"),
        ({"test_dataset": "t", "forgetting_tasks": ["x:y"]}, "'x' is none of lmms-eval"),
    ],
)
def test_mistakes_are_told_first(given, message):
    with pytest.raises(ValueError, match=message):
        EvalInputs.from_dict(given).check()


def test_data_folder_and_files_of_its_own(data):
    inputs = EvalInputs.from_dict({"data_dir": str(data), "policies": "mine.jsonl"})
    assert inputs.files()["policies"] == "mine.jsonl"
    assert inputs.files()["test"] == str(data / "test.jsonl")
    assert inputs.check() == ["task", "in-context"]
    assert EvalInputs.from_dict({"test_dataset": "t"}).check() == ["task"]
