"""How each run was made and measured: what all have in common once, the rest side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastmpi.report.content import Cell, Row, Table
from fastmpi.report.figures import number
from fastmpi.report.runs import Evaluation

_PARTS = {"data": "Data", "settings": "", "versions": "Version"}
LONGEST = 200  # characters of a value


def fact_tables(evaluations: Sequence[Evaluation]) -> list[Table]:
    """Two tables: facts that differ, one column each, and facts that are the same in all runs."""
    facts = {e.label: _facts(e) for e in evaluations}
    names = list(dict.fromkeys(name for own in facts.values() for name in own))
    values = {name: [own.get(name, "\u2013") for own in facts.values()] for name in names}
    same = [name for name in names if len(set(values[name])) == 1]
    different = [name for name in names if name not in same]
    tables = []
    if different:
        rows = [
            _row(label, [own.get(n, "\u2013") for n in different]) for label, own in facts.items()
        ]
        columns = [(name, "") for name in different]
        tables.append(Table("Run", columns, rows, "Each run", words=True))
    if same:
        rows = [_row(name, values[name][:1]) for name in same]
        title = "The same in all runs" if len(evaluations) > 1 else "This run"
        tables.append(Table("", [("", "")], rows, title, words=True))
    return tables


def _row(name: str, values: Sequence[str]) -> Row:
    return Row(name, [Cell(value) for value in values])


def _facts(evaluation: Evaluation) -> dict[str, str]:
    own = evaluation.run
    facts = {"Model": own.get("model"), "Fingerprint": own.get("fingerprint")}
    if evaluation.trainings is not None:
        stages = [f"{t.chain[-1]} ({t.steps} steps)" for t in evaluation.trainings]
        facts["Stages"] = " \u2192 ".join(stages) or "not trained"
        facts["Training, CPU-seconds"] = number(evaluation.cpu_seconds or 0)
    facts["Answering, seconds"] = f"{sum(own.get('seconds', {}).values()):.1f}"
    for part in _PARTS:
        values = own.get(part)
        if isinstance(values, Mapping):
            facts |= {_words(part, name): value for name, value in values.items()}
    return {name: _shown(value) for name, value in facts.items() if value is not None}


def _words(part: str, name: str) -> str:
    words = str(name).replace("_", " ")
    return words.capitalize() if part == "settings" else f"{_PARTS[part]}: {words}"


def _shown(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "\u2026"
