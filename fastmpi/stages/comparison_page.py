"""A comparison's outcome as the content of a report: rows, findings, curves, trees, scenes."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmpi.data.rows import read_rows
from fastmpi.data.scenes import Attributes
from fastmpi.evaluation.metrics import Z_95
from fastmpi.policies.clevr_tree import ClevrTree, Leaf, Node
from fastmpi.policies.clevr_world import WORLDS
from fastmpi.policies.policy import PolicySet
from fastmpi.report import (
    Chart,
    Curve,
    MethodRow,
    PolicyPicture,
    ResponseMark,
    SceneSample,
    StageCurves,
    TreeNode,
)
from fastmpi.stages.ladder import Outcome
from fastmpi.stages.methods import MATCH, Chain, Comparison, label, prefixes
from fastmpi.stages.record import DataFiles
from fastmpi.tracking import read_metrics

if TYPE_CHECKING:
    from fastmpi.evaluation.result import EvalResult

# What each chart shows: title, label of the axis, and its curves as (metric, name, dashed).
CHARTS: Mapping[str, tuple[tuple[str, str, tuple[tuple[str, str, bool], ...]], ...]] = {
    "supervised": (("Loss", "nats per token", (("loss", "", False),)),),
    "rl": (
        ("Loss (on-policy: zero, its gradient is not)", "loss", (("loss", "", False),)),
        (
            "Reward per arm",
            "reward",
            (
                ("reward/policy_free", "policy-free", False),
                ("reward/policy_aware", "policy-aware", True),
            ),
        ),
    ),
}


def method_rows(comparison: Comparison, outcome: Outcome) -> list[MethodRow]:
    """The table, in the recipe's order. Prompt tokens and prefill are of the prompt in use: the
    untrained row needs the policy in it, the others do not."""
    rows = []
    for method, chain in comparison.chains().items():
        with_policy, without = outcome.evaluations[chain]
        used = with_policy if not chain else without
        rows.append(
            MethodRow(
                method=method,
                accuracy=without.accuracy,
                accuracy_with_policy=with_policy.accuracy,
                n=without.n,
                prompt_tokens=used.prompt_tokens,
                prefill_ms=outcome.prefill_ms[chain][0 if not chain else 1],
                cpu_seconds=sum(outcome.records[c].cpu_seconds for c in prefixes([chain])),
                interval=without.interval,
                interval_with_policy=with_policy.interval,
                stages=chain,
                note=str(comparison.notes.get(method, "")),
            )
        )
    return rows


@dataclass(frozen=True)
class Difference:
    """Points of accuracy without the policy between two methods, and the 95 % interval of that,
    from their paired answers to the same questions."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = f"95 % interval {self.low:+.1f} to {self.high:+.1f}, same questions"
        return f"{self.points:+.1f} points ({interval})"


def difference(outcome: Outcome, one: Chain, other: Chain) -> Difference:
    """How far `one` is ahead of `other`."""
    right = {item["id"]: item["correct"] for item in outcome.evaluations[other][1].items}
    pairs = [item["correct"] - right[item["id"]] for item in outcome.evaluations[one][1].items]
    points = 100 * statistics.mean(pairs)
    reach = 100 * Z_95 * statistics.pstdev(pairs) / math.sqrt(len(pairs))
    return Difference(points, points - reach, points + reach)


def findings(comparison: Comparison, outcome: Outcome, rows: Sequence[MethodRow]) -> list[str]:
    """Plain sentences about the last method: its prompt, equal compute, the other methods."""
    chains, subject = comparison.chains(), rows[-1]
    untrained = [row for row in rows if not row.stages]
    said = [_prompt_finding(row, subject) for row in untrained]
    others = [row for row in rows[:-1] if row.stages]
    for row in sorted(others, key=lambda row: not _is_control(comparison, row)):
        ahead = difference(outcome, chains[subject.method], chains[row.method])
        if _is_control(comparison, row):
            said.append(_control_finding(subject, row, ahead))
        else:
            said.append(f"{subject.method} against {row.method}: {ahead}.")
    return said


def _is_control(comparison: Comparison, row: MethodRow) -> bool:
    return any(MATCH in comparison.variants.get(stage, {}) for stage in row.stages)


def _control_finding(subject: MethodRow, control: MethodRow, ahead: Difference) -> str:
    if ahead.low > 0:
        verdict = f"At equal compute {subject.method} is ahead."
    elif ahead.high < 0:
        verdict = f"At equal compute {subject.method} is behind."
    else:
        verdict = "At equal compute the two cannot be told apart."
    return (
        f"The control {control.method} trained for {control.cpu_seconds:.0f} CPU-seconds, "
        f"{subject.method} for {subject.cpu_seconds:.0f}. {subject.method} against it: {ahead}. "
        + verdict
    )


def _prompt_finding(base: MethodRow, last: MethodRow) -> str:
    cut = 100 * (1 - last.prompt_tokens / base.prompt_tokens)
    return (
        f"{base.method} reads {base.prompt_tokens:.0f} tokens a prompt and is right on "
        f"{100 * base.accuracy_with_policy:.1f} % ({100 * base.accuracy:.1f} % without the policy "
        f"in it). {last.method} reads {last.prompt_tokens:.0f}, {cut:.0f} % fewer, and is right on "
        f"{100 * last.accuracy:.1f} %."
    )


def fixed_answer(outcome: Outcome) -> float:
    """Accuracy of always giving the most frequent answer of each policy."""
    items = next(iter(outcome.evaluations.values()))[1].items
    answers: dict[str, Counter[str]] = {}
    for item in items:
        answers.setdefault(item["policy_id"], Counter())[item["answer"]] += 1
    return sum(max(counts.values()) for counts in answers.values()) / len(items)


def stage_curves(comparison: Comparison, outcome: Outcome) -> list[StageCurves]:
    """Loss of every trained stage, and in RL the reward of each arm."""
    shown = []
    for chain, record in outcome.records.items():
        kind = comparison.kind(chain[-1])
        lines = read_metrics(record.model)
        charts = [_chart(lines, *chart) for chart in CHARTS["rl" if kind == "rl" else "supervised"]]
        users = [m for m, c in comparison.chains().items() if c[: len(chain)] == chain]
        note = (
            f"{record.steps} steps, {record.cpu_seconds:.1f} CPU-seconds. Of: {', '.join(users)}."
        )
        shown.append(StageCurves(" \u2192 ".join(chain), charts, note))
    return shown


def _chart(
    lines: Sequence[Mapping[str, float]],
    title: str,
    y_label: str,
    curves: Sequence[tuple[str, str, bool]],
) -> Chart:
    drawn = []
    for metric, name, dashed in curves:
        points = [(line["step"], line[metric]) for line in lines if metric in line]
        if points:
            drawn.append(Curve(name, points, dashed))
    return Chart(title, y_label, drawn)


def policy_pictures(data: DataFiles) -> list[PolicyPicture]:
    """Each policy's text, with its tree where the file has one."""
    assert data.policies is not None
    pictures = []
    for policy in PolicySet.from_jsonl(data.policies).values():
        drawn = None
        if "tree" in policy.metadata:
            world = WORLDS["tiny" if policy.metadata.get("style") == "compact" else "clevr"]
            drawn = tree_nodes(ClevrTree.from_json(policy.metadata["tree"]), world.attributes)
        pictures.append(PolicyPicture(policy.policy_id, drawn, policy.text))
    return pictures


def tree_nodes(tree: ClevrTree, attributes: Attributes) -> TreeNode:
    """The tree for drawing; outcomes that no scene with these attributes reaches are marked."""
    reachable = {leaf.id for leaf in tree.reachable(attributes)}
    return _tree_node(tree.root, reachable)


def _tree_node(item: Node | Leaf, reachable: set[str]) -> TreeNode:
    if isinstance(item, Leaf):
        return TreeNode(item.case, reachable=item.id in reachable)
    yes, no = (_tree_node(child, reachable) for child in (item.if_true, item.if_false))
    return TreeNode(f"{item.value}?", item.id, yes, no, yes.reachable or no.reachable)


def scene_samples(
    comparison: Comparison, outcome: Outcome, data: DataFiles, count: int
) -> list[SceneSample]:
    """The first test rows of each policy in turn, with what every method answered.

    The untrained model is shown with the policy in its prompt, the others without it.
    """
    assert data.test is not None
    marks = {m: _marks(m, c, outcome.evaluations[c]) for m, c in comparison.chains().items()}
    answered = set.intersection(*(set(of_method) for of_method in marks.values()))
    samples = []
    for row in _in_turn([row for row in read_rows(data.test) if row["id"] in answered])[:count]:
        image = Path(row["images"][0]).read_bytes() if row["images"] else None
        responses = [of_method[row["id"]] for of_method in marks.values()]
        samples.append(
            SceneSample(image, row["prompt"], row["answer"], responses, row["policy_id"])
        )
    return samples


def _marks(
    method: str, chain: Chain, results: tuple[EvalResult, EvalResult]
) -> dict[str, ResponseMark]:
    with_policy, without = results
    name = method if chain else f"{method}, policy in the prompt"
    return {
        item["id"]: ResponseMark(name, item["response"], item["parsed"], item["correct"])
        for item in (without if chain else with_policy).items
    }


def _in_turn(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row of each policy, then a second one of each, and so on."""
    turn: dict[str, int] = {}
    places = []
    for index, row in enumerate(rows):
        turn[row["policy_id"]] = turn.get(row["policy_id"], -1) + 1
        places.append((turn[row["policy_id"]], index))
    return [rows[index] for _, index in sorted(places)]


def stage_seconds(outcome: Outcome) -> dict[str, float]:
    """Seconds by the wall clock of each stage's training."""
    return {label(chain): record.seconds for chain, record in outcome.records.items()}
