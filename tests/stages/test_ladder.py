"""The comparison: shared beginnings, matched compute, order of the jobs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fastmpi.recipe import Recipe, find_recipe
from fastmpi.stages import ladder as ladder_module
from fastmpi.stages.ladder import Ladder
from fastmpi.stages.methods import (
    MATCH,
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


@pytest.fixture
def trained(monkeypatch):
    """Every stage that the ladder would train: (start model, folder's name, plan)."""
    seen = []

    def run_stage(plan, start, data, folder, **options):
        made = SimpleNamespace(name=folder.name, folder=folder, plan=plan, start=start)
        made.options = options
        seen.append(made)
        cpu = CPU_SECONDS[folder.name.split("+")[-1]]
        return StageRecord(folder.name, {}, True, str(folder), 8, cpu, 1.0)

    def evaluate_model(recipe, model, data, folder, override_context, overwrite, trust_remote_code):
        assert folder.parent.name == "eval" and model in ("m", *(f"{s.folder}" for s in seen))
        # only the model that no stage has taught is shown the whole policy beside changed rules
        assert override_context == ("whole" if model == "m" else None)

    def time_prefills(recipe, models, folders, data, trust_remote_code):
        assert models.keys() == folders.keys()

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
    ladder.run(lambda ladder, running: None)
    names = [stage.name for stage in trained]
    assert sorted(names) == ["cpt", "cpt+sft", "cpt+sft+rl", "long", "sft", "sft+grpo"]
    starts = {stage.name: stage.start for stage in trained}
    assert starts["cpt"] == StageStart("m", "m")
    parent = ladder.folder(("cpt", "sft"))
    assert starts["cpt+sft+rl"] == StageStart(str(parent), "cpt+sft")
    assert all(stage.options["overwrite"] for stage in trained)
    evaluated = {f"evaluate {label(chain)}" for chain in ladder.comparison.chains().values()}
    assert evaluated < ladder.results.keys()


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
        ({"methods": {1: ["sft"]}}, "methods: 1 is no name"),
        ({"methods": {"": ["sft"]}}, "methods: '' is no name"),
        ({"methods": {"a": []}, "variants": {"../x": {"stage": "sft"}}}, "'../x' cannot be"),
        ({"methods": {"a": []}, "variants": {"": {"stage": "sft"}}}, "'' cannot be"),
        ({"methods": {"a": []}, "variants": {"sft+rl": {"stage": "sft"}}}, "'sft.rl' cannot"),
        ({"methods": {"a": ["sft"]}, "variants": {"of_none": {"stage": "rl", "beta": -1}}},
         "variants: of_none: rl: beta must be at least 0"),
        ({"worker": 1}, "Comparison has no 'worker'; did you mean 'workers'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, compare, message):
    with pytest.raises(ValueError, match=message):
        comparison_of(recipe(tmp_path, **compare))


def test_demo_has_the_promised_rows():
    for name in ("demo", "demo_m", "demo_gta", "demo_quick"):
        comparison = comparison_of(find_recipe(name, {}, {}))
        assert list(comparison.methods) == [
            "In-context (base)", "Direct SFT", "CoT SFT", "CoT SFT, compute-matched",
            "CoT SFT + GRPO (budget-matched)", "CoT SFT + DAPO", "CoT SFT + PolicyRollout",
            "TriMPI without PolicyRollout", "TriMPI", "TriMPI (DAPO)",
        ]  # fmt: skip
