"""The rules of tool policies as tables: one line a rule, one column a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastmpi.evaluation.items import value
from fastmpi.evaluation.metrics import Item
from fastmpi.policies.gta.policy import GTAPolicy
from fastmpi.policies.gta.rules import rules_of
from fastmpi.policies.gta.text import rule_text
from fastmpi.policies.policy import PolicySet
from fastmpi.report.content import Cell, Row, Table
from fastmpi.report.runs import Evaluation
from fastmpi.report.suites import share_cell

Marks = dict[tuple[str, str], list[float]]  # (tool, rule) -> whether the right name was called


def rule_tables(policies: PolicySet, evaluations: Sequence[Evaluation]) -> list[Table]:
    """For each tool policy the share of right names, by the rule that applied."""
    tables = []
    for name, policy in policies.items():
        if "gta" not in policy.metadata:
            continue
        gta = GTAPolicy.from_json(policy.metadata["gta"])
        marks = [_marks(e.items("task"), name) for e in evaluations]
        columns = [(e.label, "") for e in evaluations]
        rows = [row for tool in gta.tools for row in _tool_rows(gta, tool, marks)]
        title = f"{name}: calls with the right tool and version, in %, by the rule that applies"
        tables.append(Table("Rule", columns, rows, title, heat=True))
    return tables


def _marks(items: Sequence[Item], policy_id: str) -> Marks:
    marks: Marks = {}
    for item in items:
        if item.get("policy_id") == policy_id and (right := value(item, "tool")) is not None:
            place = (str(item.get("tool") or ""), str(item.get("rule") or ""))
            marks.setdefault(place, []).append(right)
    return marks


def _tool_rows(policy: GTAPolicy, tool: str, marks: Sequence[Marks]) -> list[Row]:
    """A tool's rules, and one line for calls that no rule decides."""
    named = [(rule.id, rule_text(rule, policy.style)) for rule in rules_of(policy.rules, tool)]
    rows = [_row(text, [own.get((tool, rule), []) for own in marks]) for rule, text in named]
    without = [own.get((tool, ""), []) for own in marks]
    if any(without):
        rows.append(_row(f"{tool}: no rule", without))
    return rows


def _row(text: str, found: Sequence[Sequence[Any]]) -> Row:
    cells = [share_cell(sum(own) / len(own)) if own else Cell("\u2013") for own in found]
    return Row(text, cells, f"n {max(map(len, found), default=0)}")
