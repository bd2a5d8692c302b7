"""Folders of runs: what is read of them, and what is said of those that are not whole."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from fastmpi.report.runs import LONGEST, read_run, read_runs

sys.path.insert(0, str(Path(__file__).parent))
from report_folders import (  # noqa: E402
    METHODS,
    make_comparison,
    make_data,
    make_evaluation,
    make_stage,
)


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return make_comparison(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture
def evaluation(tmp_path):
    return make_evaluation(tmp_path / "one", make_data(tmp_path / "data"), label="one").path


def test_a_comparison_has_its_methods_and_their_stages(comparison):
    run = read_run(comparison)
    assert run.title == "Four methods"
    assert [e.label for e in run.evaluations] == list(METHODS)
    base, sft, control, trimpi = run.evaluations
    assert (base.untrained, base.note, base.cpu_seconds) == (True, "not trained", 0)
    assert [t.chain for t in trimpi.trainings] == [("cpt",), ("cpt", "sft"), ("cpt", "sft", "rl")]
    assert [t.kind for t in trimpi.trainings] == ["cpt", "sft", "rl"]
    assert trimpi.cpu_seconds == 3 * 12.5 and trimpi.matches == ""
    assert control.matches == "TriMPI" and control.trainings[0].kind == "sft"
    assert len(sft.items("task")) == 24 and len(run.trainings) == 5
    assert sft.file("policies") == (comparison / "data" / "policies.jsonl").resolve()


def test_a_chain_of_stages_has_one_evaluation(tmp_path):
    run = tmp_path / "mine"
    make_evaluation(run / "eval", make_data(run / "data"), label="models/rl")
    (run / "config.yaml").write_text("model: tiny\n")
    for stage in ("sft", "cpt", "rl"):
        make_stage(run / stage, stage)
    (only,) = read_run(run).evaluations
    assert only.label == "mine"
    assert [t.chain for t in only.trainings] == [("cpt",), ("cpt", "sft"), ("cpt", "sft", "rl")]


def test_an_evaluation_alone_has_no_stages(evaluation):
    (only,) = read_run(evaluation).evaluations
    assert only.label == "one" and only.trainings is None and only.cpu_seconds is None
    assert not only.untrained and only.figures("judge") == {} and only.items("forgetting") == []


def test_long_responses_are_cut_when_read(tmp_path):
    data = make_data(tmp_path / "data", num_test=2)
    first = json.loads((data / "test.jsonl").read_text().splitlines()[0])["id"]
    folder = make_evaluation(tmp_path / "e", data, responses={first: "x" * 100_000}).path
    item = read_run(folder).evaluations[0].items("task")[0]
    assert len(item["response"]) == LONGEST and item["response_length"] == 100_000


def test_equal_labels_get_the_names_of_their_folders(comparison, tmp_path):
    shutil.copytree(comparison, tmp_path / "again")
    labels = [
        e.label for run in read_runs([comparison, tmp_path / "again"]) for e in run.evaluations
    ]
    assert read_runs([comparison, tmp_path / "again"])[1].evaluations[2].matches == "again: TriMPI"
    assert labels[0] == "demo: In-context (base)" and labels[-1] == "again: TriMPI"
    with pytest.raises(ValueError, match="two runs are called .*demo: In-context.* given twice"):
        read_runs([comparison, comparison])


def test_equal_names_of_folders_get_those_above_them(evaluation, tmp_path, monkeypatch):
    for name in ("a/eval", "b/eval"):
        shutil.copytree(evaluation, tmp_path / name)
    monkeypatch.chdir(tmp_path / "a")
    labels = [run.evaluations[0].label for run in read_runs(["eval", tmp_path / "b" / "eval"])]
    assert labels == ["a/eval", "b/eval"]


@pytest.mark.parametrize(
    "broken, message",
    [
        (lambda f: (f / "summary.json").unlink(), r"summary.json is missing: has this evaluation"),
        (lambda f: (f / "run.json").unlink(), r"no folder of `fastmpi eval` .run.json"),
        (lambda f: (f / "run.json").write_text("{"), r"run.json cannot be read"),
        (lambda f: (f / "summary.json").write_text('{"suites": {"task": {"figures": {"a": 1}}}}'),
         "no figure: 1"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(evaluation, broken, message):
    broken(evaluation)
    with pytest.raises(ValueError, match=message):
        read_run(evaluation)


def test_a_stage_without_its_facts_is_named(tmp_path, comparison):
    shutil.copytree(comparison, tmp_path / "c")
    path = tmp_path / "c" / "stages" / "sft" / "stage.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=re.escape(f"{path}: missing 'made_from'")):
        read_run(tmp_path / "c")


def test_no_run_is_an_error():
    with pytest.raises(ValueError, match="report needs a run"):
        read_runs([])
