"""Writes docs/results.md from the measurements in benchmarks/results/<device>/.

    python scripts/make_results.py benchmarks/results/cpu docs/results.md

`demo-<kind>-seed*.json` are the `summary.json` files of `fastmpi compare <recipe> --seed N`, with
the kinds and recipes of `DEMOS`; `sharing.json` is written by `benchmarks/bench_sharing.py`,
`notes.md` is what a person says of them. No number is typed by hand, but those of the paper.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beside_paper import beside_the_paper
from demo_figures import DEMOS, Column, Demo, demos_of, line, read, rows, signed, spread, values

CONTROL = "CoT SFT, compute-matched"
SUBJECT = "TriMPI"
TARGETS = {"CoT SFT": 30, "CoT SFT + GRPO (budget-matched)": 15}  # points, mean over seeds
MAIN: Sequence[Column] = (
    ("tool", "task", "tool", 100), ("arguments", "task", "argument", 100),
    ("without the policy", "task", "", 100), ("with it", "in-context", "", 100),
    ("without / with", "in-context", "internalisation", 1),
)  # fmt: skip
OTHERS: Sequence[Column] = (
    ("other rules", "override", "", 100), ("old answer kept", "override", "kept_old", 100),
    ("rules quoted truly", "referral", "referral", 100),
    ("unknown rules cited", "branching", "unknown_citations", 100),
    ("branching error", "branching", "branching_error", 1),
    ("describe", "forgetting", "describe", 100), ("trace", "forgetting", "trace", 100),
)  # fmt: skip


def main() -> None:
    """Reads one device's folder and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    demos = {kind: demos_of(args.folder, kind) for kind in DEMOS}
    demos = {kind: found for kind, found in demos.items() if found}
    parts = ["# Results", _intro(demos), *(_demo(kind, found) for kind, found in demos.items())]
    parts += [beside_the_paper(demos), _sharing(read(args.folder / "sharing.json"))]
    parts.append((args.folder / "notes.md").read_text(encoding="utf-8").strip())
    args.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _intro(demos: Mapping[str, Sequence[Demo]]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in next(iter(demos.values()))[0]["versions"].items())
    return (
        "The demonstrations run on a CPU, one thread a process, with models of a few million "
        "parameters at most and policies that they have never seen. Numbers are means over the "
        "seeds, in brackets the lowest and highest, in percent where no other unit is named. "
        "CPU-seconds are of training, all stages of the method together. How each suite is "
        f"defined: [evaluation.md](evaluation.md). {versions}."
    )


def _demo(kind: str, demos: Sequence[Demo]) -> str:
    heading, recipe, what = DEMOS[kind]
    seeds = ", ".join(str(demo["seed"]) for demo in demos)
    parts = [
        f"## {heading}",
        f"`fastmpi compare {recipe} --seed N` for N = {seeds}: {what}, "
        f"{demos[0]['rows'][0]['n']} questions about scenes that no stage has seen."
        + _similarity(demos),
        _table(demos, _known(demos, MAIN), with_costs=True),
    ]
    if others := _known(demos, OTHERS):
        parts.append(_table(demos, others, with_costs=False))
    if said := _said(demos):
        parts.append(said)
    return "\n\n".join(parts)


def _similarity(demos: Sequence[Demo]) -> str:
    found = {d.get("notes", {}).get("task", {}).get("similarity") for d in demos} - {None}
    measured = f" Texts in arguments are compared by {' and '.join(sorted(found))}."
    return " Right means overall score: the mean of tool and arguments." + measured if found else ""


def _table(demos: Sequence[Demo], columns: Sequence[Column], *, with_costs: bool) -> str:
    costs = ("prompt_tokens", "prefill_ms", "cpu_seconds") if with_costs else ()
    headings = ["method", *(column[0] for column in columns)]
    headings += ["prompt tokens", "prefill ms", "CPU-s"] if with_costs else []
    lines = [line(headings), "|" + "---|" * len(headings)]
    for method in demos[0]["methods"]:
        cells = [method, *(spread(values(demos, method, column)) for column in columns)]
        cells += [spread([row[cost] for row in rows(demos, method)]) for cost in costs]
        lines.append(line(cells))
    return "\n".join(lines)


def _known(demos: Sequence[Demo], columns: Sequence[Column]) -> list[Column]:
    """The columns that some method has a number for."""
    methods = demos[0]["methods"]
    return [c for c in columns if any(values(demos, method, c) for method in methods)]


def _said(demos: Sequence[Demo]) -> str:
    """How far the subject is ahead of the other methods, and whether the targets were met."""
    methods = demos[0]["methods"]
    if SUBJECT not in methods:
        return ""
    lines = []
    for method in methods:
        if method == SUBJECT or not rows(demos, method)[0]["cpu_seconds"]:
            continue
        gains = _gains(demos, method)
        said = f"- {SUBJECT} against {method}: {signed(gains)} points."
        if method == CONTROL:
            said = f"- The control, {CONTROL}: {signed(gains)} points for {SUBJECT}; "
            said += _survival(gains) + "."
        elif method in TARGETS and demos[0]["kind"] == "t":
            verdict = "met" if statistics.mean(gains) >= TARGETS[method] else "**failed**"
            said += f" Target at least {TARGETS[method]}: {verdict}."
        lines.append(said)
    return "\n".join(lines)


def _survival(gains: Sequence[float]) -> str:
    if statistics.mean(gains) <= 0:
        return "**at equal compute plain fine-tuning is as good or better**"
    if min(gains) > 0:
        return "the advantage survives equal compute"
    return "it does not always survive"


def _sharing(found: list[dict[str, Any]]) -> str:
    lines = [
        "## Tokens and seconds with and without sharing",
        "",
        "`python -m fastmpi.benchmarks.bench_sharing recipes/demo.yaml`: the gradient of the same "
        "optimiser steps both ways, in turn, in one run, on one CPU core. Sampling is not counted. "
        "Ratio: median of the paired times, in brackets the middle half.",
        "",
        "| stage | tokens a step | after merging | seconds without sharing | with | ratio | "
        "gradients differ by |",
        "|---|---|---|---|---|---|---|",
    ]
    for m in found:
        low, mid, high = m["ratio"]
        lines.append(
            f"| {m['stage']} | {m['tokens']:.0f} | {m['merged_tokens']:.0f} | "
            f"{m['unshared_s']:.3f} | {m['shared_s']:.3f} | {mid:.2f} [{low:.2f}, {high:.2f}] | "
            f"{m['gradient_difference']:.1e} |"
        )
    lines += ["", "On a GPU: not measured."]
    return "\n".join(lines)


def _gains(demos: Sequence[Demo], method: str) -> list[float]:
    """Points without the policy that SUBJECT is ahead of `method`, by seed."""
    column: Column = ("", "task", "", 100)
    pairs = zip(values(demos, SUBJECT, column), values(demos, method, column), strict=True)
    return [ours - theirs for ours, theirs in pairs]


if __name__ == "__main__":
    main()
