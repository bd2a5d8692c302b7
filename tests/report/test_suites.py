"""The numbers of the tables, against those that the items give by hand."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fastmpi.evaluation.folder import SuiteSummary
from fastmpi.evaluation.metrics import Figure
from fastmpi.report.differences import differences, gain, verdict
from fastmpi.report.figures import binary, cost_cell, number, percent, signed
from fastmpi.report.findings import findings
from fastmpi.report.gallery import galleries
from fastmpi.report.runs import Evaluation, read_run
from fastmpi.report.suites import fixed_answer, glance, headline, parts

sys.path.insert(0, str(Path(__file__).parent))
from report_folders import (  # noqa: E402
    make_comparison,
    make_data,
    make_evaluation,
    make_gta_data,
)


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    return read_run(make_comparison(tmp_path_factory.mktemp("runs") / "demo")).evaluations


def made(label: str, **suites: dict[str, Figure]) -> Evaluation:
    summaries = {name.replace("_", "-"): SuiteSummary(figures) for name, figures in suites.items()}
    return Evaluation(label, None, {}, summaries)


def figure(value: float, reach: float = 0.1) -> Figure:
    return Figure(value, value - reach, value + reach, 10)


def column(table, heading):
    place = [name for name, _ in table.columns].index(heading)
    return [row.cells[place] for row in table.rows]


def test_glance_has_one_column_for_each_suite(methods):
    table = glance(methods)
    assert [row.name for row in table.rows] == [e.label for e in methods]
    cells = column(table, "Without policy")
    shares = [sum(i["correct"] for i in e.items("task")) / 24 for e in methods]
    assert [cell.text for cell in cells] == [percent(share) for share in shares]
    assert [cell.best for cell in cells] == [share == max(shares) for share in shares]
    assert [row.marked for row in table.rows] == [cell.best for cell in cells]
    assert [cell.text for cell in column(table, "Training")] == ["none", "12.5", "12.5", "37.5"]
    assert column(table, "Prompt tokens")[0].text == "20.0"


def test_best_is_the_least_where_less_is_better():
    runs = [
        made("a", override={"accuracy": figure(0.4), "kept_old": figure(0.3)}),
        made("b", override={"accuracy": figure(0.4), "kept_old": figure(0.1)}),
    ]
    table = parts(runs)[0].tables[0]
    assert [cell.best for cell in column(table, "Old answer kept")] == [False, True]
    assert [cell.best for cell in column(table, "Accuracy")] == [False, False]  # a tie of all
    assert [cell.detail for cell in column(table, "Accuracy")] == ["30.0 to 50.0"] * 2


def test_parts_follow_the_suites_and_split_the_task(methods):
    found = parts(methods)
    assert [part.title for part in found][:3] == [
        "Without the policy in the prompt", "With the policy in the prompt",
        "Other rules under the same name",
    ]  # fmt: skip
    titles = [table.title for table in found[0].tables]
    assert titles == ["", "Accuracy by policy, in %", "Accuracy by outcome, in %"]
    by_policy = found[0].tables[1]
    assert by_policy.heat and by_policy.folded and len(by_policy.rows) == 2
    items = [i for i in methods[0].items("task") if i["policy_id"] == by_policy.rows[0].name]
    share = sum(item["correct"] for item in items) / len(items)
    assert by_policy.rows[0].cells[0].share == pytest.approx(share)
    assert by_policy.rows[0].note == f"n {len(items)}"


def test_an_unknown_suite_and_an_absent_one_are_shown_as_they_are():
    runs = [made("a", task={"accuracy": figure(0.5)}), made("b", safety={"refused": figure(0.2)})]
    found = parts(runs)
    assert [part.title for part in found] == ["Without the policy in the prompt", "Safety"]
    assert [c.text for c in column(found[0].tables[0], "Accuracy")] == ["50.0 %", "\u2013"]
    assert [c.text for c in column(found[1].tables[0], "Refused")] == ["\u2013", "0.200"]


def test_tool_calls_stand_with_their_overall_score(tmp_path):
    data = make_gta_data(tmp_path / "data")
    runs = [
        read_run(make_evaluation(tmp_path / name, data, label=name, accuracy=a).path).evaluations[0]
        for name, a in (("low", 0.2), ("high", 0.9))
    ]
    assert headline("task", runs) == "overall" and fixed_answer(runs) is None
    headings = [heading for heading, _ in parts(runs)[0].tables[0].columns]
    assert headings == ["Overall", "Tool", "Arguments", "Accuracy", "Answer found"]
    low, high = (e.items("task") for e in runs)
    by_hand = [
        ours["scores"]["overall"] - theirs["scores"]["overall"]
        for ours, theirs in zip(high, low, strict=True)
    ]
    assert gain(runs[1], runs[0], "task").value == pytest.approx(sum(by_hand) / len(by_hand))


def test_differences_are_paired_and_judged_by_their_interval(methods):
    base, sft, _, trimpi = methods
    tables = differences(methods, base)
    assert [len(table.rows) for table in tables] == [3, 3, 3]
    ahead = gain(trimpi, base, "task")
    by_hand = [
        ours["correct"] - theirs["correct"]
        for ours, theirs in zip(trimpi.items("task"), base.items("task"), strict=True)
    ]
    assert ahead.value == pytest.approx(sum(by_hand) / 24) and ahead.n == 24
    assert tables[0].rows[-1].cells[0].text == signed(ahead.value)
    assert tables[0].rows[-1].cells[1].text == verdict(ahead) == "ahead"
    assert gain(sft, sft, "task").value == 0 and verdict(gain(sft, sft, "task")) == "not told apart"
    assert differences([base], base) == []


def test_different_questions_are_not_compared(methods, tmp_path):
    data = make_gta_data(tmp_path / "data")
    other = read_run(make_evaluation(tmp_path / "o", data, label="o").path).evaluations[0]
    assert gain(methods[0], other, "task") is None
    assert reasons([methods[0], other]) == ["no common questions"] * 3


def reasons(runs):
    return [table.rows[0].cells[1].text for table in differences(runs, runs[0])]


def test_the_same_ids_of_other_data_are_not_paired(methods, tmp_path):
    data = make_data(tmp_path / "data", num_test=24)
    mine, same = (evaluated(tmp_path / name, data) for name in ("mine", "same"))
    assert gain(same, mine, "task").n == 24
    path = data / "test.jsonl"
    path.write_text(path.read_text().replace('"prompt": "', '"prompt": "another '))
    other = evaluated(tmp_path / "other", data)
    assert {i["id"] for i in other.items("task")} == {i["id"] for i in mine.items("task")}
    assert reasons([mine, other])[:2] == ["other questions"] * 2
    assert gain(other, mine, "override").n == 24
    assert fixed_answer([mine, same]) is not None and fixed_answer([mine, other]) is None
    for gallery in galleries([mine, same, other], mine, 1):
        assert [mark.run for mark in gallery.cards[0].marks] == ["mine", "same"]
        assert gallery.note.endswith("not shown, since they were asked others: other")
    known = {"hashes": {"test": "1"}}  # the file is the same, however it is named
    one, two = (replace(e, run={**e.run, **known}) for e in (mine, other))
    assert gain(one, two, "task").n == 24


def test_scores_by_different_similarities_are_not_ranked(tmp_path):
    data = make_gta_data(tmp_path / "data")
    runs = [evaluated(tmp_path / name, data, accuracy=a) for name, a in (("a", 0.3), ("b", 0.9))]
    assert runs[1].suites["task"].notes == {}
    runs = [
        replace(e, suites={"task": replace(e.suites["task"], notes={"similarity": by})})
        for e, by in zip(runs, ("BERTScore", "token-F1"), strict=True)
    ]
    assert gain(runs[1], runs[0], "task") is None
    assert reasons(runs)[0] == "other text similarity"
    table = parts(runs)[0].tables[0]
    assert not any(cell.best for cell in column(table, "Overall"))
    assert [cell.best for cell in column(table, "Tool")] == [False, True]
    assert not any(row.marked for row in [*table.rows, *glance(runs).rows])
    said = "Texts were compared by BERTScore in some runs and by token-F1 in others"
    assert said in str(table.notes) and said in str(glance(runs).notes)


def evaluated(folder, data, **options):
    made = make_evaluation(folder, data, label=folder.name, **options)
    return read_run(made.path).evaluations[0]


def test_findings_name_the_control_and_the_prompt(methods):
    said = findings(methods, methods[0], methods[-1])
    assert said[0].startswith("In-context (base) reaches ") and "instead of 200" in said[0]
    control = "The control SFT, compute-matched trained for 12.5 CPU-seconds, TriMPI for 37.5."
    assert said[1].startswith(control) and "At equal compute" in said[1]
    assert "compute-matched" not in said[2] and "SFT (" in said[2]
    assert findings(methods[:1], methods[0], methods[0]) == []


@pytest.mark.parametrize(
    "low, high, expected",
    [(0.01, 0.2, "ahead"), (-0.2, -0.01, "behind"), (-0.1, 0.1, "not told apart"),
     (0.0, 0.1, "not told apart")],
)  # fmt: skip
def test_verdict_needs_an_interval_without_zero(low, high, expected):
    assert verdict(Figure((low + high) / 2, low, high, 9)) == expected


def test_a_fixed_answer_is_the_most_frequent_of_each_policy(methods):
    items = methods[0].items("task")
    best = 0
    for name in {item["policy_id"] for item in items}:
        answers = [item["answer"] for item in items if item["policy_id"] == name]
        best += max(answers.count(answer) for answer in answers)
    assert fixed_answer(methods) == best / len(items)


def test_numbers_have_three_digits_that_matter():
    written = [number(v) for v in (0, 0.1234, 1.234, 12.34, 123.4, 12345.6, -4.5)]
    assert written == ["0", "0.123", "1.23", "12.3", "123", "12\u202f346", "\u22124.50"]
    assert [binary(v) for v in (512, 2048, 3 * 2**20)] == ["512 B", "2.0 KiB", "3.0 MiB"]
    assert signed(-0.051) == "\u22125.1" and percent(0.5) == "50.0 %"


def test_costs_are_shown_with_what_is_saved():
    costs = {"prefill_ms_with": figure(20.0), "prefill_ms_without": figure(5.0),
             "prefill_ms_saved": Figure(0.75, 0.7, 0.8, 4)}  # fmt: skip
    cell = cost_cell(costs, "prefill_ms")
    assert (cell.text, cell.detail) == ("20.0 \u2192 5.00 ms", "75.0 % less (70.0 to 80.0)")
    assert cost_cell({}, "prefill_ms").text == "\u2013"
