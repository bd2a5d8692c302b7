"""`compare` from beginning to end: what it leaves, and what it says."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from fastmpi.evaluation.folder import EvaluationFolder
from fastmpi.recipe import Recipe, find_recipe
from fastmpi.report import read_run
from fastmpi.stages.comparison import compare

METHODS = {"base": [], "SFT": ["sft"], "RL": ["sft", "rl"]}


@pytest.fixture(scope="module")
def compared(tiny_folder, tmp_path_factory):
    """Real processes, a random model, one step a stage."""
    output = tmp_path_factory.mktemp("compared") / "run"
    small = find_recipe("demo_quick", {}, {})
    changes = {"model": str(tiny_folder("qwen2_5_vl")), "output_dir": str(output)}
    comparison = {"title": "Three methods", "methods": METHODS, "workers": 1,
                  "notes": {"base": "not trained"}}  # fmt: skip
    values = {**small.to_dict(), **changes, "compare": comparison, "cpt": None}
    values["sft"] |= {"max_steps": 1}
    values["rl"] |= {"max_steps": 1, "max_completion_length": 2}
    suites = ["task", "in-context", "override", "efficiency"]
    values["eval"] = {"max_completion_length": 2, "num_timed_prompts": 1, "suites": suites}
    values["data"] = {"clevr_policy": {"world": "tiny", "num_policies": 2, "num_train": 8,
                                       "num_test": 4}}  # fmt: skip
    content = compare(Recipe.from_dict(values), Console(quiet=True))
    return output, content


def test_what_a_later_stage_needs_is_checked_first(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "?"}\n')
    nowhere = {"stage": "rl", "train_dataset": str(tmp_path / "nowhere.jsonl")}
    values = {"data": {"train": str(rows), "train_cot": str(rows)},
              "output_dir": str(tmp_path / "run"),
              "compare": {"methods": {"RL": ["sft", "v"]}, "variants": {"v": nowhere}}}  # fmt: skip
    with pytest.raises(ValueError, match="nowhere.jsonl cannot be read"):
        compare(Recipe.from_dict(values), Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_all_files_are_there(compared):
    output, _ = compared
    written = {path.name for path in output.iterdir()}
    assert written == {"config.yaml", "data", "eval", "report.html", "stages", "summary.json"}
    assert {path.name for path in (output / "eval").iterdir()} == {"base", "sft", "sft+rl"}
    assert EvaluationFolder(output / "eval" / "sft").arms() == ["task", "in-context", "override"]


def test_page_is_that_of_report(compared):
    output, content = compared
    assert [row.name for row in content.glance.rows] == list(METHODS)
    assert content.glance.rows[0].note == "not trained"
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "<h1>Three methods</h1>" in page and "Reinforcement learning, by arm" in page
    assert page.count("<article>") == sum(len(g.cards) for g in content.galleries) >= 4


def test_summary_has_the_figures_of_every_suite(compared):
    output, _ = compared
    summary = json.loads((output / "summary.json").read_text())
    assert summary["methods"] == list(METHODS) and summary["seed"] == 0
    assert "torch" in summary["versions"] and {"data", "sft", "sft+rl", "total"} == set(
        summary["seconds"]
    )
    run = read_run(output)
    for row, evaluation in zip(summary["rows"], run.evaluations, strict=True):
        assert row["n"] == 4 and row["accuracy"] == evaluation.figures("task")["accuracy"].value
        assert row["suites"]["override"]["accuracy"]["n"] == 4
        used = "with" if row["method"] == "base" else "without"
        for cost in ("prompt_tokens", "prefill_ms"):
            assert row[cost] == row["suites"]["efficiency"][f"{cost}_{used}"]["value"]
    seconds = [row["cpu_seconds"] for row in summary["rows"]]
    assert seconds[0] == 0 < seconds[1] < seconds[2]
