"""`fastmpi bench`: runs the cases of one bench, prints a table of each, and writes JSON."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastmpi.bench import BenchInputs, check_case
from fastmpi.benchmarks.harness import Case, run_case
from fastmpi.benchmarks.record import add_case, kept_cases, new_record, write_json
from fastmpi.benchmarks.timing import measure_limits

RUNS = {"cuda": 30, "cpu": 10}
COLUMNS = ("arm", "ms", "p20 to p80", "times ours", "95 %", "peak MiB", "error", "of limit")


def run_bench(inputs: BenchInputs) -> dict[str, Any]:
    """Measures what `inputs` asks for and returns the record."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = chosen_cases(inputs, device)
    runs = inputs.runs or getattr(_bench(inputs), "RUNS", RUNS)[device.type]
    record = new_record(inputs.name, device, runs)
    if inputs.json is not None and inputs.case is not None:
        record["cases"] = kept_cases(Path(inputs.json), record)
    record["limits"] = measure_limits(device)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"{inputs.name} on {record['device']}, at {record['commit']}")
    for case in _consumed(cases):
        found = run_case(case, device=device, runs=runs, limits=record["limits"])
        add_case(record, found)
        console.print(case_table(found))
        if any("parts" in arm for arm in ran(found).values()):
            console.print(parts_table(found))
        for reason, arms in by_reason(found["missing"]).items():
            console.print(escape(f"not run: {', '.join(arms)} ({reason})"))
        if inputs.json is not None:
            write_json(Path(inputs.json), record)
    return record


def chosen_cases(inputs: BenchInputs, device: torch.device) -> list[Case]:
    """The cases of the bench, or those whose name holds `inputs.case`."""
    cases: list[Case] = _bench(inputs).cases(device, inputs.small or device.type == "cpu")
    if inputs.case is None:
        return cases
    check_case(inputs.case, [case.name for case in cases])
    return [case for case in cases if inputs.case in case.name]


def _bench(inputs: BenchInputs) -> ModuleType:
    """The bench's module: `cases`, and `RUNS` where it takes others than these."""
    return importlib.import_module(f"fastmpi.benchmarks.bench_{inputs.name}")


def _consumed(cases: list[Case]) -> Iterator[Case]:
    """Each case in turn, forgotten after it, since its arms hold their inputs."""
    while cases:
        yield cases.pop(0)


def case_table(case: dict[str, Any]) -> Table:
    """One row for each arm that ran, or ran out of memory; a column without values is left out."""
    rows = [[name, *_numbers(arm, case["ratio"].get(name))] for name, arm in case["arms"].items()]
    used = [i for i, values in enumerate(zip(*rows, strict=True)) if any(values)]
    columns = [COLUMNS[i] for i in used]
    table = Table(*columns, title=escape(case["case"]), title_justify="left")
    for row in rows:
        table.add_row(*(row[i] for i in used))
    return table


def parts_table(case: dict[str, Any]) -> Table:
    """What the parts of a run took, in ms, where the arms tell."""
    timed = {name: arm["parts"] for name, arm in ran(case).items() if "parts" in arm}
    names = list(dict.fromkeys(name for parts in timed.values() for name in parts))
    table = Table("ms of", *names, title=escape(case["case"]), title_justify="left")
    for arm, parts in timed.items():
        table.add_row(arm, *(_time(parts[n]["ms"]["median"]) if n in parts else "" for n in names))
    return table


def ran(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The arms that have times."""
    return {name: arm for name, arm in case["arms"].items() if not isinstance(arm, str)}


def by_reason(missing: dict[str, str]) -> dict[str, list[str]]:
    """The arms that did not run, by the reason why."""
    arms: dict[str, list[str]] = {}
    for arm, reason in missing.items():
        arms.setdefault(reason, []).append(arm)
    return arms


def _numbers(arm: dict[str, Any] | str, ratio: dict[str, float] | None) -> list[str]:
    """What stands in `COLUMNS` after the arm's name."""
    if isinstance(arm, str):
        return [arm, *[""] * (len(COLUMNS) - 2)]
    ms = arm["ms"]
    interval = f"{ratio['low']:.2f} to {ratio['high']:.2f}" if ratio else ""
    return [
        _time(ms["median"]),
        f"{_time(ms['p20'])} to {_time(ms['p80'])}",
        f"{ratio['median']:.2f}" if ratio else "",
        interval,
        _number(arm["peak_mb"], ".0f"),
        _number(arm.get("error"), ".1e"),
        _number(arm["share"], ".0%"),
    ]


def _time(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 1000 else f"{ms:.4g}"


def _number(value: float | str | None, form: str) -> str:
    return "" if value is None else value if isinstance(value, str) else format(value, form)
