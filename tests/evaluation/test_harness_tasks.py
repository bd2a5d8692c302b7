"""The harnesses' command lines, with stand-ins for the packages, and what they write."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fastmpi.evaluation.harness_tasks import (
    HarnessSettings,
    harness_command,
    read_result,
    run_harness,
)
from fastmpi.evaluation.metrics import wilson_interval

# Writes down how it was called, then what the real one would write, to where that would be.
STAND_IN = """
import json, sys
from pathlib import Path
words = sys.argv[1:]
options = dict(zip(words[::2], words[1::2]))
if options["--tasks"] == "broken":
    sys.exit("no such task: broken")
folder = Path(options["--output_path"]) / "model"
folder.mkdir(parents=True)
(folder / "called.json").write_text(json.dumps({"words": words, "here": str(Path.cwd())}))
result = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "other,none": 0.9}
task = options["--tasks"]
data = {"results": {task: result}, "n-samples": {task: {"effective": 25}}}
if options["--tasks"] != "silent":
    (folder / NAME).write_text(json.dumps(data))
"""
NAMES = {"lmms_eval": "20260101_results.json", "lm_eval": "results_2026-01-01.json"}


@pytest.fixture()
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both packages, known to this process and to those it starts."""
    packages = tmp_path / "packages"
    for package, name in NAMES.items():
        (packages / package).mkdir(parents=True)
        (packages / package / "__init__.py").write_text("")
        (packages / package / "__main__.py").write_text(STAND_IN.replace("NAME", repr(name)))
    monkeypatch.syspath_prepend(packages)
    monkeypatch.setenv("PYTHONPATH", str(packages))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture()
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "a model; rm -rf $HOME"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    return folder


def test_tasks_run_in_their_harness_and_only_once(installed: Path, model: Path) -> None:
    settings = HarnessSettings(forgetting_tasks=["mmmu_pro,lm-eval:mmlu_pro"], forgetting_limit=25)
    said: list[str] = []
    results = [run_harness(model.name, settings, "out", say=said.append) for _ in range(2)]
    assert results[0] == results[1]
    assert len(said) == 2
    figure = results[0]["mmmu_pro"]
    assert (figure.value, figure.n) == (0.5, 25)
    assert (figure.low, figure.high) == pytest.approx((0.304, 0.696), abs=1e-3)
    called = json.loads(Path("out/lmms-eval/mmmu_pro-25/model/called.json").read_text())
    assert called["words"][:4] == ["--model", "qwen2_5_vl", "--model_args", f"pretrained={model}"]
    assert called["words"][-2:] == ["--limit", "25"]
    assert called["here"] != str(installed)  # and what is here cannot be taken for the package
    other = json.loads(Path("out/lm-eval/mmlu_pro-25/model/called.json").read_text())
    assert other["words"][:2] == ["--model", "hf"]


def test_another_limit_is_another_result(installed: Path, model: Path) -> None:
    for limit in (None, 5):
        settings = HarnessSettings(forgetting_tasks=["mmlu_pro"], forgetting_limit=limit)
        run_harness(model, settings, "out", say=lambda text: None)
    assert sorted(p.name for p in Path("out/lmms-eval").iterdir()) == ["mmlu_pro", "mmlu_pro-5"]


def test_command(model: Path) -> None:
    settings = HarnessSettings(forgetting_batch_size=8, forgetting_model="vllm")
    command = harness_command("lm-eval", "mmlu_pro", "org/name", Path("/o"), settings)
    assert command == [
        *(sys.executable, "-m", "lm_eval", "--model", "vllm"),
        *("--model_args", "pretrained=org/name", "--tasks", "mmlu_pro"),
        *("--batch_size", "8", "--output_path", "/o"),
    ]
    with pytest.raises(ValueError, match="give forgetting_model"):
        harness_command("lmms-eval", "mmmu_pro", "org/name", Path("/o"), HarnessSettings())
    with pytest.raises(ValueError, match="comma"):
        harness_command("lmms-eval", "mmmu_pro", "a,trust=1", Path("/o"), settings)


def test_a_failing_harness_says_why(installed: Path, model: Path) -> None:
    for task, message in (("broken", "failed with 1: no such task"), ("silent", "no results")):
        settings = HarnessSettings(forgetting_tasks=[task])
        with pytest.raises(ValueError, match=message):
            run_harness(model, settings, "out", say=lambda text: None)


def test_what_is_not_installed_is_named_before_anything_runs() -> None:
    settings = HarnessSettings(forgetting_tasks=["mmlu_pro"])
    with pytest.raises(ValueError, match="lmms-eval is not installed: pip install lmms-eval"):
        settings.harness_tasks()
    assert HarnessSettings().harness_tasks() == []


@pytest.mark.parametrize(
    "task", ["--help", "a b", "../x", "", "helm:mmlu", "a;b", "-x", "a/b", "t\u00e2che"]
)
def test_wrong_names(task: str) -> None:
    with pytest.raises(ValueError, match="forgetting task"):
        HarnessSettings(forgetting_tasks=[task]).harness_tasks()


def test_wrong_numbers() -> None:
    with pytest.raises(ValueError, match="forgetting_limit must be at least 1"):
        HarnessSettings(forgetting_limit=-1).harness_tasks()


def written(folder: Path, data: object, name: str = "results_1.json") -> Path:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / name).write_text(json.dumps(data))
    return folder


def test_results_without_an_error_get_wilsons_interval(tmp_path: Path) -> None:
    result = {"alias": "x", "acc_stderr_clt,none": 0.2, "acc,none": 0.75, "acc_stderr,none": "N/A"}
    data = {"results": {"t": result}, "n-samples": {"t": {"effective": 8}}}
    figure = read_result(written(tmp_path, data), "t")
    assert (figure.value, figure.n) == (0.75, 8)
    assert figure.interval == wilson_interval(6, 8)


def test_a_group_without_a_figure_is_the_mean_of_its_tasks(tmp_path: Path) -> None:
    data = {
        "results": {"g": {" ,none": " "}, "a": {"acc,none": 1.0}, "b": {"acc,none": 0.5}},
        "group_subtasks": {"g": ["a", "b"]},
        "n-samples": {"a": {"effective": 10}, "b": {"effective": 30}},
    }
    figure = read_result(written(tmp_path, data), "g")
    assert (figure.value, figure.n) == (0.625, 40)


def test_a_group_with_a_figure_keeps_it(tmp_path: Path) -> None:
    data = {
        "results": {"g": {"acc,none": 0.6, "acc_stderr,none": 0.01}, "a": {"acc,none": 1.0}},
        "group_subtasks": {"g": ["a"]},
        "n-samples": {"a": {"effective": 10}},
    }
    figure = read_result(written(tmp_path, data), "g")
    assert (figure.value, figure.n) == (0.6, 10)


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {"results": 7},
        {"results": {"t": {}}, "n-samples": {"t": {"effective": 1}}},
        {"results": {"t": {"acc,none": 0.5}}, "n-samples": {}},
        {"results": {"t": {"acc,none": 70.5}}, "n-samples": {"t": {"effective": 1}}},
        {
            "results": {"t": {"mme,none": 1500.0, "mme_stderr,none": 20.0}},
            "n-samples": {"t": {"effective": 1}},
        },
        {"results": {"t": {"acc,none": float("nan")}}, "n-samples": {"t": {"effective": 1}}},
    ],
)
def test_damaged_results_are_named(tmp_path: Path, data: object) -> None:
    with pytest.raises(ValueError, match=r"results_1.json: no result of t"):
        read_result(written(tmp_path, data), "t")
