"""`fastmpi bench`: cases are chosen by name, tables and JSON say what was measured."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from fastmpi.bench import BENCHES, BenchInputs
from fastmpi.benchmarks import command, record
from fastmpi.benchmarks.harness import Case, Unavailable
from fastmpi.cli import main


def absent():
    raise Unavailable("not installed")


def no_memory():
    raise torch.OutOfMemoryError()


def case(name, **arms):
    def make():
        return lambda: {"y": torch.ones(2)}

    return Case(
        name,
        {"fastmpi": make, "eager": make, "trl": absent, **arms},
        exact=lambda: {"y": torch.ones(2, dtype=torch.float64)},
    )


@pytest.fixture
def bench(monkeypatch):
    """Stands for bench_update; remembers whether small shapes were wanted."""
    seen = SimpleNamespace()

    def cases(device, small):
        seen.small = small
        return [case("frozen T=4", liger=no_memory), case("trained T=4", liger=absent)]

    monkeypatch.setitem(
        sys.modules, "fastmpi.benchmarks.bench_update", SimpleNamespace(cases=cases)
    )
    return seen


def test_file_has_the_layout_of_the_design(bench, tmp_path, capsys):
    path = tmp_path / "update.json"
    assert main(["bench", "update", "--json", str(path), "--runs", "3"]) == 0
    found = json.loads(path.read_text())
    assert found["bench"] == "update" and found["runs"] == 3
    assert found["device"] and found["commit"] and "torch" in found["versions"]
    first = found["cases"][0]
    assert first["case"] == "frozen T=4"
    ours = first["arms"]["fastmpi"]
    assert set(ours["ms"]) == {"p20", "median", "p80"} and ours["error"] == 0
    assert set(first["ratio"]["eager"]) == {"median", "low", "high"}
    assert first["arms"]["liger"] == "out of memory"
    assert found["missing"] == {"trl": "not installed"}  # liger ran out of memory: it is installed
    assert found["cases"][1]["missing"] == {"trl": "not installed", "liger": "not installed"}
    assert list(tmp_path.iterdir()) == [path]
    shown = capsys.readouterr().out
    assert "out of memory" in shown and "not run: trl, liger (not installed)" in shown
    assert "times ours" in shown and "of limit" not in shown  # which the CPU does not measure


def test_cases_are_chosen_by_part_of_their_name(bench, tmp_path, capsys):
    path = tmp_path / "update.json"
    words = ["bench", "update", "--json", str(path), "--runs", "1", "--case"]
    assert main([*words, "trained"]) == 0
    assert [case["case"] for case in json.loads(path.read_text())["cases"]] == ["trained T=4"]
    capsys.readouterr()
    assert main([*words, "melted"]) == 2
    said = capsys.readouterr().err
    assert "no case has 'melted' in its name" in said and "frozen T=4; trained T=4" in said


def test_a_bench_can_be_measured_in_parts(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "commit", lambda: "abc")  # the checkout may change meanwhile
    path = tmp_path / "update.json"
    words = ["bench", "update", "--json", str(path), "--runs", "1", "--case"]
    for part in ("frozen", "trained", "frozen"):
        assert main([*words, part]) == 0
    names = [case["case"] for case in json.loads(path.read_text())["cases"]]
    assert names == ["trained T=4", "frozen T=4"]
    capsys.readouterr()
    assert main([*words, "frozen", "--runs", "2"]) == 2
    assert (
        "update.json was measured with another runs; name another file" in capsys.readouterr().err
    )
    path.write_text("[]")
    assert main([*words, "frozen"]) == 2
    assert "update.json is no file of results" in capsys.readouterr().err


def test_shapes_are_small_on_the_cpu(bench, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench", "update", "--runs", "1"]) == 0
    assert bench.small is True


@pytest.mark.parametrize(
    "words, message",
    [
        ([], f"bench needs a name: one of {', '.join(BENCHES)}"),
        (["updates"], f"unknown bench 'updates'; known: {', '.join(BENCHES)}"),
        (["update", "--runs", "0"], "runs must be at least 1, not 0"),
        (["update", "--json", "nowhere/x.json"], "nowhere/x.json: there is no such folder"),
        (["update", "--json", "."], ". is a folder, not a file"),
        (["update", "--rnus", "3"], "unknown flag '--rnus'; did you mean '--runs'?"),
    ],
)
def test_mistakes_are_one_line(bench, capsys, words, message):
    assert main(["bench", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [f"error: {message}"] and captured.out == ""


def test_file_of_an_interrupted_run_has_the_finished_cases(bench, tmp_path, monkeypatch):
    path, real = tmp_path / "update.json", command.run_case

    def interrupted(case, **options):
        if case.name.startswith("trained"):
            raise KeyboardInterrupt
        return real(case, **options)

    monkeypatch.setattr(command, "run_case", interrupted)
    assert main(["bench", "update", "--json", str(path), "--runs", "1"]) == 130
    assert [case["case"] for case in json.loads(path.read_text())["cases"]] == ["frozen T=4"]


def test_commit_is_of_the_checkout_or_the_version(monkeypatch, tmp_path):
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    assert record.commit().startswith("fastmpi ")


def test_parts_of_a_run_have_a_table_of_their_own(bench, monkeypatch, capsys):
    def run():
        return {"y": torch.ones(2)}

    run.parts = {"rollout": {"ms": 12.0}, "update": {"ms": 34.0}}
    made = Case("step", {"fastmpi": lambda: run, "trl": absent})
    stands = SimpleNamespace(cases=lambda *_: [made], RUNS={"cpu": 2, "cuda": 2})
    monkeypatch.setitem(sys.modules, "fastmpi.benchmarks.bench_update", stands)
    assert command.run_bench(BenchInputs(name="update"))["runs"] == 2
    printed = capsys.readouterr().out
    assert "rollout" in printed and "34" in printed
