"""The comparison: shared beginnings, matched compute, order of the jobs, what the table says."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from fastmpi.evaluation.folder import EvaluationFolder
from fastmpi.evaluation.result import EvalResult
from fastmpi.recipe import Recipe, find_recipe
from fastmpi.stages import comparison as comparison_module
from fastmpi.stages import comparison_page as page
from fastmpi.stages import ladder as ladder_module
from fastmpi.stages.ladder import Ladder
from fastmpi.stages.methods import (
    MATCH,
    Comparison,
    comparison_of,
    label,
    matched_steps,
    prefixes,
)
from fastmpi.stages.record import DataFiles, StageRecord, StageStart

COMPARE = {
    "methods": {
        "base": [],
        "SFT": ["sft"],
        "long SFT": ["long"],
        "GRPO": ["sft", "grpo"],
        "TriMPI": ["cpt", "sft", "rl"],
    },
    "variants": {
        "long": {"stage": "sft", MATCH: "TriMPI"},
        "grpo": {"stage": "rl", "num_generations": 4, "num_policy_generations": 0},
    },
}
CPU_SECONDS = {"cpt": 5.0, "sft": 4.0, "rl": 11.0, "grpo": 9.0, "long": 20.0}


def recipe(tmp_path, **compare):
    rl = {"num_generations": 2, "per_device_train_batch_size": 4}
    return Recipe(
        data={"train": "t", "train_cot": "c", "test": "e"}, policies="p", model="m",
        output_dir=str(tmp_path), cpt={}, sft={"max_steps": 8}, rl=rl,
        compare={**COMPARE, **compare},
    )  # fmt: skip


class SameProcess:
    """Stands for `Workers`: one job at a time, in this process."""

    def __init__(self, num_workers):
        self.results = {}

    has_room = True

    @property
    def running(self):
        return list(self.results)

    def submit(self, name, function, arguments):
        self.results[name] = function(**arguments)

    def collect(self, timeout_s):
        results, self.results = self.results, {}
        return results

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def answers(right, with_policy):
    items = [
        {"id": str(i), "policy_id": "kavo", "answer": f"Case {i % 2}", "correct": i < right,
         "response": "", "parsed": None, "prompt": "question kavo"}
        for i in range(10)
    ]  # fmt: skip
    return EvalResult(with_policy, items, 50.0 if with_policy else 10.0, float("nan"))


@pytest.fixture
def trained(monkeypatch):
    """Every stage that the ladder would train: (start model, folder's name, plan)."""
    seen = []

    def run_stage(plan, start, data, folder, **options):
        seen.append(SimpleNamespace(name=folder.name, plan=plan, start=start, options=options))
        cpu = CPU_SECONDS[folder.name.split("+")[-1]]
        return StageRecord(folder.name, {}, True, str(folder), 8, cpu, 1.0)

    def evaluate_model(recipe, model, data, folder, overwrite, trust_remote_code):
        return answers(9, True), answers({"m": 1}.get(model, 7 if "rl" in model else 4), False)

    def time_prefills(recipe, models, folders, data, trust_remote_code):
        return dict.fromkeys(models, (20.0, 5.0))

    monkeypatch.setattr(ladder_module, "Workers", SameProcess)
    pace = [{"step": 1, "cpu_seconds": 1.5}, {"step": 8, "cpu_seconds": 5.0}]
    monkeypatch.setattr(ladder_module, "read_metrics", lambda folder: pace)
    monkeypatch.setattr(ladder_module, "run_stage", run_stage)
    monkeypatch.setattr(ladder_module, "evaluate_model", evaluate_model)
    monkeypatch.setattr(ladder_module, "time_prefills", time_prefills)
    return seen


FILES = DataFiles("p", "t", "c", "e")


def test_prefixes_are_a_trie():
    chains = [(), ("a",), ("a", "b"), ("a", "c"), ("b", "a")]
    assert prefixes(chains) == [("a",), ("a", "b"), ("a", "c"), ("b",), ("b", "a")]
    assert label(()) == "base" and label(("cpt", "sft")) == "cpt+sft"


def test_each_common_beginning_is_trained_once(trained, tmp_path):
    ladder = Ladder(recipe(tmp_path), FILES, overwrite=True)
    outcome = ladder.run(lambda ladder, running: None)
    names = [stage.name for stage in trained]
    assert sorted(names) == ["cpt", "cpt+sft", "cpt+sft+rl", "long", "sft", "sft+grpo"]
    starts = {stage.name: stage.start for stage in trained}
    assert starts["cpt"] == StageStart("m", "m")
    parent = ladder.folder(("cpt", "sft"))
    assert starts["cpt+sft+rl"] == StageStart(str(parent), "cpt+sft")
    assert all(stage.options["overwrite"] for stage in trained)
    assert set(outcome.evaluations) == set(ladder.comparison.chains().values())


def test_matched_stage_waits_and_takes_the_seconds_of_its_target(trained, tmp_path):
    Ladder(recipe(tmp_path), FILES).run(lambda ladder, running: None)
    names = [stage.name for stage in trained]
    assert names.index("long") > max(names.index("cpt+sft+rl"), names.index("sft"))
    plans = {stage.name: stage.plan for stage in trained}
    # TriMPI took 5 + 4 + 11 CPU-seconds; a step of SFT takes 0.5, and the first one 1 more.
    assert plans["long"].config.max_steps == 38 and plans["sft"].config.max_steps == 8
    assert plans["sft+grpo"].config.policy_generations == 0
    assert all(plan.config.disable_tqdm for plan in plans.values())


def test_matched_steps_count_a_slow_start_once():
    lines = [{"step": 2, "cpu_seconds": 3.0}, {"step": 10, "cpu_seconds": 7.0}]
    assert [matched_steps(s, lines) for s in (0.0, 7.0, 7.1, 107.0)] == [1, 10, 11, 210]
    assert matched_steps(7.1, lines[1:]) == 11  # a single log: the mean


def test_what_others_wait_for_starts_first(trained, tmp_path, monkeypatch):
    order = []
    submit = SameProcess.submit
    monkeypatch.setattr(SameProcess, "submit", lambda *a: (order.append(a[1]), submit(*a)))
    Ladder(recipe(tmp_path), FILES).run(lambda ladder, running: None)
    assert order.index("train cpt") < order.index("train sft+grpo")
    assert order.index("train cpt") < order.index("evaluate base")
    assert order[-1] == "prefill times"


@pytest.mark.parametrize(
    "compare, message",
    [
        ({"methods": {}}, "there are no methods"),
        ({"methods": {"a": ["sfy"]}, "variants": {}}, "a: no stage 'sfy'; did you mean 'sft'"),
        ({"methods": {"a": "sft"}, "variants": {}}, "a: expected a list of stages, found 'sft'"),
        ({"variants": {"x": {"stage": "stf"}}}, "variants: x needs `stage`, one of cpt, sft, rl"),
        ({"variants": {"sft": {"stage": "sft"}}}, "'sft' is the recipe's own stage"),
        ({"variants": {"long": {"stage": "sft", MATCH: "TriMP"}, "grpo": {"stage": "rl"}}},
         "variants: long: no method 'TriMP'; did you mean 'TriMPI'"),
        ({"variants": {"long": {"stage": "sft", "lr": 1}, "grpo": {"stage": "rl"}}},
         "sft: there is no 'lr'"),
        ({"methods": {"TriMPI": ["sft", "long"]},
          "variants": {"long": {"stage": "sft", MATCH: "TriMPI"}}}, "of which it is a part"),
        ({"methods": {"TriMPI": ["cpt"], "x": ["long"]},
          "variants": {"long": {"stage": "sft", MATCH: "TriMPI"}}},
         "goes at the pace of sft, which is not trained"),
        ({"notes": {"TriMP": "x"}}, "notes: no method 'TriMP'; did you mean 'TriMPI'"),
        ({"worker": 1}, "Comparison has no 'worker'; did you mean 'workers'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, compare, message):
    with pytest.raises(ValueError, match=message):
        comparison_of(recipe(tmp_path, **compare))


def test_table_and_findings(trained, tmp_path):
    outcome = (ladder := Ladder(recipe(tmp_path), FILES)).run(lambda ladder, running: None)
    rows = page.method_rows(ladder.comparison, outcome)
    table = {row.method: row for row in rows}
    assert (table["base"].prompt_tokens, table["TriMPI"].prompt_tokens) == (50.0, 10.0)
    assert (table["base"].prefill_ms, table["TriMPI"].prefill_ms) == (20.0, 5.0)
    assert (table["GRPO"].cpu_seconds, table["TriMPI"].cpu_seconds) == (13.0, 20.0)
    assert (table["base"].accuracy, table["base"].accuracy_with_policy) == (0.1, 0.9)
    said = page.findings(ladder.comparison, outcome, rows)
    assert said[0].startswith("base reads 50 tokens a prompt and is right on 90.0 %")
    assert said[1].startswith("The control long SFT trained for 20 CPU-seconds, TriMPI for 20.")
    assert "+30.0 points" in said[1] and said[1].endswith("At equal compute TriMPI is ahead.")
    assert [s.split(":")[0] for s in said[2:]] == ["TriMPI against SFT", "TriMPI against GRPO"]
    assert page.fixed_answer(outcome) == 0.5


@pytest.mark.parametrize("theirs, verdict", [(7, "cannot be told apart"), (10, "TriMPI is behind")])
def test_the_control_is_said_plainly(theirs, verdict):
    chains = {"long": ("long",), "TriMPI": ("rl",)}
    outcome = SimpleNamespace(evaluations={c: (None, answers(7, False)) for c in chains.values()})
    outcome.evaluations[("long",)] = (None, answers(theirs, False))
    ahead = page.difference(outcome, ("rl",), ("long",))
    row = SimpleNamespace(method="TriMPI", cpu_seconds=1.0)
    assert verdict in page._control_finding(
        row, SimpleNamespace(method="x", cpu_seconds=1.0), ahead
    )


def test_summary_is_what_was_promised(tmp_path):
    row = page.MethodRow("TriMPI", 0.9, 0.95, 10, 12.0, 3.0, 40.0, (0.8, 1.0))
    comparison_module._write_summary(
        tmp_path / "summary.json", recipe(tmp_path), [row], {"cpt": 1.5, "total": 2.0}
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rows"] == [
        {"method": "TriMPI", "accuracy": 0.9, "accuracy_with_policy": 0.95, "n": 10,
         "prompt_tokens": 12.0, "prefill_ms": 3.0, "cpu_seconds": 40.0}
    ]  # fmt: skip
    assert summary["seed"] == 0 and summary["seconds"] == {"cpt": 1.5, "total": 2.0}
    assert "torch" in summary["versions"]


def test_demo_has_the_promised_rows():
    for name in ("demo", "demo_quick"):
        comparison = comparison_of(find_recipe(name, {}, {}))
        assert list(comparison.methods) == [
            "In-context (base)", "Direct SFT", "CoT SFT", "CoT SFT, compute-matched",
            "CoT SFT + GRPO (budget-matched)", "CoT SFT + PolicyRollout",
            "TriMPI without PolicyRollout", "TriMPI",
        ]  # fmt: skip


def test_comparison_from_beginning_to_end(tiny_folder, tmp_path):
    """Real processes, a random model, one step a stage: all files, and nothing done twice."""
    small = find_recipe("demo_quick", {}, {})
    compare = {"methods": {"base": [], "SFT": ["sft"], "RL": ["sft", "rl"]}, "workers": 1}
    changes = {"model": str(tiny_folder("qwen2_5_vl")), "output_dir": str(tmp_path / "run")}
    values = {**small.to_dict(), **changes, "compare": compare, "cpt": None}
    values["sft"] |= {"max_steps": 1}
    values["rl"] |= {"max_steps": 1, "max_completion_length": 2}
    values["eval"] = {"max_completion_length": 2, "num_timed_prompts": 1}
    values["data"] = {"clevr_policy": {"world": "tiny", "num_policies": 2, "num_train": 8,
                                       "num_test": 4}}  # fmt: skip
    console = Console(quiet=True)
    rows, _ = comparison_module.compare(Recipe.from_dict(values), console)
    assert [row.method for row in rows] == ["base", "SFT", "RL"] and rows[0].n == 4
    assert rows[2].cpu_seconds > rows[1].cpu_seconds > rows[0].cpu_seconds == 0
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written == {"config.yaml", "data", "eval", "report.html", "stages", "summary.json"}
    evaluations = tmp_path / "run" / "eval"
    assert {path.name for path in evaluations.iterdir()} == {"base", "sft", "sft+rl"}
    folder = EvaluationFolder(evaluations / "sft")
    assert folder.label == "sft" and folder.arms() == ["task", "in-context"]
    efficiency = folder.summary()["efficiency"].figures
    assert {"prompt_tokens_saved", "prefill_ms_with"} < efficiency.keys()
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert report.count("<article>") == 4 and "Reward per arm" in report
    assert isinstance(Comparison.from_dict(compare), Comparison)
