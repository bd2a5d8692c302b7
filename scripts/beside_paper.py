"""The section of docs/results.md that sets our order of methods beside the paper's."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import paper_figures as paper
from demo_figures import DEMOS, Demo, line, mean, values


def beside_the_paper(demos: Mapping[str, Sequence[Demo]]) -> str:
    """Our means beside the paper's figures, then suite by suite how far the orders agree."""
    kinds = [kind for kind in paper.KINDS if kind in demos]
    headings = ["method"]
    for kind in kinds:
        headings += [DEMOS[kind][0], "paper"]
    lines = [line(headings), "|" + "---|" * len(headings)]
    for name in paper.TASK:
        ours = {kind: _task(demos[kind]).get(name) for kind in kinds}
        if any(ours.values()):
            cells = [name]
            for kind in kinds:
                theirs = paper.TASK[name][paper.KINDS.index(kind)]
                cells += [mean(ours[kind]), "\u2013" if theirs is None else f"{theirs:.1f}"]
            lines.append(line(cells))
    return "\n\n".join(
        [
            "## Beside the paper",
            "The paper trains Qwen2.5-VL-7B on policies of six layers and on the whole GTAPolicy; "
            "here a model a few thousand times smaller learns two layers and a part of the tools. "
            "So the numbers are not to be compared, only the order of the methods. In-context is "
            "the untrained model with the policy in its prompt, the others do without it.",
            "\n".join(lines),
            "\n".join(_orders(demos, kinds)),
        ]
    )


def _orders(demos: Mapping[str, Sequence[Demo]], kinds: Sequence[str]) -> list[str]:
    """For each suite and kind, how far the trained methods are in the paper's order, and where the
    untrained model stands among them."""
    lines = []
    for suite, figures in paper.SUITES.items():
        for kind in kinds:
            place = paper.KINDS.index(kind)
            theirs = {n: f[place] for n, f in figures.items() if f[place] is not None}
            ours = _task(demos[kind]) if suite == "task" else _suite(demos[kind], suite)
            base = _base(ours, theirs)
            trained = {name: values for name, values in ours.items() if name != "In-context"}
            if found := paper.agreement(trained, theirs):
                lines.append(f"- {DEMOS[kind][0]}, {_WORDS[suite]}: {_order(found)}{base}")
    return lines


def _base(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, float]) -> str:
    """Where the untrained model with the policy in its prompt stands."""
    if "In-context" not in ours or "In-context" not in theirs:
        return ""
    others = [name for name in ours if name in theirs and name != "In-context"]
    here = sum(statistics.mean(ours[n]) < statistics.mean(ours["In-context"]) for n in others)
    there = sum(theirs[name] < theirs["In-context"] for name in others)
    return f" In-context is ahead of {here} of these {len(others)} here, of {there} there."


_WORDS = {
    "task": "without the policy",
    "in-context": "with the policy put back",
    "override": "with other rules",
    "referral": "in quoting the rules truly (the paper: by a judge)",
}


def _order(found: paper.Agreement) -> str:
    said = (
        f"{found.agreeing} of {found.pairs} pairs of trained methods are in the paper's order "
        f"(Kendall's tau {found.tau:+.2f})."
    )
    for clear, words in ((True, "by every seed"), (False, "on average, not by every seed")):
        behind: dict[str, list[str]] = {}
        for one, other, apart in found.others:
            if apart == clear:
                behind.setdefault(one, []).append(other)
        own = [f"{one} is ahead of {' and of '.join(others)}" for one, others in behind.items()]
        said += f" The other way round, {words}: {'; '.join(own)}." if own else ""
    return said


def _task(demos: Sequence[Demo]) -> dict[str, list[float]]:
    """By the paper's names: the task as the paper counts it."""
    suites = {n: "in-context" if n == "In-context" else "task" for n in paper.TASK}
    return _named(demos, suites)


def _suite(demos: Sequence[Demo], suite: str) -> dict[str, list[float]]:
    return _named(demos, dict.fromkeys(paper.TASK, suite))


def _named(demos: Sequence[Demo], suites: Mapping[str, str]) -> dict[str, list[float]]:
    found = {}
    for method in demos[0]["methods"]:
        if name := paper.paper_name(method):
            figure = "referral" if suites[name] == "referral" else ""
            if measured := values(demos, method, ("", suites[name], figure, 100)):
                found[name] = measured
    return found
