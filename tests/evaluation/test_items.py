"""Marking of answers and reading of the folder that they are written to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fastmpi.evaluation.folder import EvaluationFolder, SuiteSummary, read_json, write_jsonl
from fastmpi.evaluation.items import Answer, figures, mark, score, value
from fastmpi.evaluation.metrics import Figure

sys.path.insert(0, str(Path(__file__).parent))
from evaluation_folders import make_data, make_evaluation  # noqa: E402

BOX = '{"name": "DrawBox_v1", "arguments": {"bbox": "(0, 0, 10, 10)", "annotation": "a cat"}}'
OCR = '{"name": "OCR_v4", "arguments": {"image": "image/1.jpg"}}'
OLD = '{"name": "OCR_v1", "arguments": {"image": "image/1.jpg"}}'


def item_of(response, **row):
    row = {"id": "r", "policy_id": "p", "images": [], "prompt": "q", "answer": "Case 1", **row}
    return mark([row], [Answer("r", response, 7, 3, True)])[0]


@pytest.mark.parametrize(
    "response, parsed, correct",
    [
        ("<think>C1 red yes</think>\\boxed{Case 1}", "Case 1", True),
        ("\\boxed{ Case 1 }", " Case 1 ", True),
        ("\\boxed{Case 10}", "Case 10", False),
        ("Case 1", None, False),
        ("", None, False),
    ],
)
def test_plain_answers(response, parsed, correct):
    item = item_of(response, leaf="1.1", reasoning="secret")
    assert (item["parsed"], item["correct"]) == (parsed, correct)
    assert item["leaf"] == "1.1" and "reasoning" not in item and "scores" not in item
    assert (item["prompt_tokens"], item["response_tokens"], item["finished"]) == (7, 3, True)
    assert score(item) == value(item, "accuracy") == float(correct)
    assert value(item, "tool") is None


@pytest.mark.parametrize(
    "response, tool, argument, correct",
    [
        (f"\\boxed{{{OCR}}}", 1.0, 1.0, True),
        (f"\\boxed{{{OLD}}}", 0.0, 1.0, False),
        ('\\boxed{{"name": "OCR_v4", "arguments": {}}}', 1.0, 0.0, False),
        ("\\boxed{OCR_v4}", 0.0, 0.0, False),
    ],
)
def test_tool_calls(response, tool, argument, correct):
    item = item_of(response, answer=OCR, tool="OCR", profile={"credits": 250})
    assert item["scores"] == {"tool": tool, "argument": argument, "overall": (tool + argument) / 2}
    assert item["correct"] is correct and item["tool"] == "OCR"
    assert value(item, "tool") == tool and score(item) == (tool + argument) / 2


def test_what_is_parsed_of_a_call_is_the_call():
    item = item_of(f"```json\n{OCR}\n```", answer=OCR)
    assert json.loads(item["parsed"]) == json.loads(OCR)


@pytest.mark.parametrize(
    "response, answer, old, kept",
    [
        ("\\boxed{Case 2}", "Case 1", "Case 2", True),
        ("\\boxed{Case 1}", "Case 1", "Case 2", False),
        ("\\boxed{Case 1}", "Case 1", "Case 1", None),
        (f"\\boxed{{{OLD}}}", OCR, OLD, True),
        (f"\\boxed{{{OCR}}}", OCR, OLD, False),
        ("nothing", OCR, OLD, False),
        (f"\\boxed{{{BOX.replace('a cat', 'one cat')}}}", BOX.replace("v1", "v2"), BOX, True),
        (f"\\boxed{{{BOX.replace('cat', 'dog')}}}", BOX.replace("cat", "dog"), BOX, False),
    ],
)
def test_old_answers_are_told_where_they_differ(response, answer, old, kept):
    item = item_of(response, answer=answer, old_answer=old)
    assert item.get("kept_old") == kept


def test_all_texts_are_compared_at_once():
    asked = []

    def similarity(pairs):
        asked.append(list(pairs))
        return np.full(len(pairs), 0.5)

    rows = [{"id": i, "policy_id": "p", "prompt": "q", "images": [], "answer": BOX} for i in "ab"]
    said = [f"\\boxed{{{BOX.replace('a cat', animal)}}}" for animal in ("a dog", "two cats")]
    answers = [Answer(i, text, 1, 1, True) for i, text in zip("ab", said, strict=True)]
    items = mark(rows, answers, similarity=similarity)
    assert asked == [[("a dog", "a cat"), ("two cats", "a cat")]]
    assert [item["scores"]["argument"] for item in items] == [0.75, 0.75]


def test_figures_of_mixed_items():
    items = [item_of("\\boxed{Case 1}"), item_of(f"\\boxed{{{OLD}}}", answer=OCR)]
    found = figures(items)
    assert {name: (figure.value, figure.n) for name, figure in found.items()} == {
        "accuracy": (0.5, 2), "parsed": (1.0, 2), "tool": (0.0, 1), "argument": (1.0, 1),
        "overall": (0.5, 1),
    }  # fmt: skip


def test_pictures_keep_the_names_of_the_file(tmp_path):
    rows = [{"id": "r", "images": [str(tmp_path.resolve() / "images" / "a.png")], "answer": "x"}]
    (item,) = mark(rows, [Answer("r", "", 1, 1, True)], folder=tmp_path)
    assert item["images"] == ["images/a.png"]
    rows[0]["images"] = [object()]
    (item,) = mark(rows, [Answer("r", "", 1, 1, True)])
    assert item["images"] == []


def test_a_made_folder_is_read_back(tmp_path):
    data = make_data(tmp_path / "data")
    made = make_evaluation(tmp_path / "eval", data, label="SFT", accuracy=0.5)
    assert EvaluationFolder.is_one(made.path) and not EvaluationFolder.is_one(data)
    folder = EvaluationFolder(made.path)
    assert folder.label == "SFT" and folder.arms() == ["task", "in-context", "override"]
    assert folder.data_path("test") == data / "test.jsonl" and folder.data_path("x") is None
    items = folder.items("task")
    assert (folder.pictures_folder("task") / items[0]["images"][0]).is_file()
    summary = folder.summary()
    assert summary["task"].figures == figures(items)
    assert list(summary["task"].by_depth) == ["2"]
    assert 0 < sum(item["correct"] for item in items) < len(items)
    assert {"kept_old"} <= summary["override"].figures.keys()


def test_damage_is_named(tmp_path):
    folder = EvaluationFolder(tmp_path)
    with pytest.raises(ValueError, match="run.json cannot be read: No such file"):
        folder.label  # noqa: B018
    with pytest.raises(ValueError, match="task.jsonl does not exist: the arm was not asked"):
        folder.items("task")
    write_jsonl(folder.items_path("task"), [{"id": 1}])
    folder.items_path("task").write_text('{"id": 1}\n{"id"\n')
    with pytest.raises(ValueError, match="task.jsonl, line 2 is damaged"):
        folder.items("task")
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match="run.json: expected an object, found list"):
        read_json(tmp_path / "run.json")
    (tmp_path / "run.json").write_text('{"label": "x"}')
    with pytest.raises(ValueError, match="run.json: no evaluation"):
        folder.data_path("test")
    for damaged in ('{"task": 3}', '{"task": {"figures": {"accuracy": 1}}}', "[]"):
        (tmp_path / "summary.json").write_text(f'{{"suites": {damaged}}}')
        with pytest.raises(ValueError, match="summary.json is damaged"):
            folder.summary()


def test_responses_no_encoding_has_bytes_for(tmp_path):
    folder = EvaluationFolder(tmp_path)
    items = [{"id": "1", "response": "\ud800 \u2028 \x00 \u202e </script>"}]
    write_jsonl(folder.items_path("task"), items)
    assert folder.items("task") == items


def test_summary_without_parts():
    figure = Figure(0.5, 0.1, 0.9, 3)
    assert SuiteSummary.from_dict({"figures": {"exact": figure.to_dict()}}) == SuiteSummary(
        {"exact": figure}
    )
