"""Writes docs/results.md from the measurements in benchmarks/results/<device>/.

    python scripts/make_results.py benchmarks/results/cpu docs/results.md

`demo-seed*.json` are the `summary.json` files of `fastmpi compare recipes/demo.yaml --seed N`,
`sharing.json` is written by `benchmarks/bench_sharing.py`, `notes.md` is what a person says of
them. No number is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

CONTROL = "CoT SFT, compute-matched"
SUBJECT = "TriMPI"
TARGETS = {"CoT SFT": 30, "CoT SFT + GRPO (budget-matched)": 15}  # points, mean over seeds


def main() -> None:
    """Reads one device's folder and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    demos = [_read(path) for path in sorted(args.folder.glob("demo-seed*.json"))]
    parts = [
        "# Results",
        _demo(demos),
        _targets(demos),
        _sharing(_read(args.folder / "sharing.json")),
    ]
    parts.append((args.folder / "notes.md").read_text(encoding="utf-8").strip())
    args.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _demo(demos: list[dict[str, Any]]) -> str:
    seeds = ", ".join(str(demo["seed"]) for demo in demos)
    versions = ", ".join(f"{k} {v}" for k, v in demos[0]["versions"].items())
    lines = [
        "## The demonstration",
        f"`fastmpi compare recipes/demo.yaml --seed N` for N = {seeds}; one CPU thread a process; "
        f"{versions}. Mean over the seeds, in brackets the lowest and highest. Accuracy is exact "
        f"match on {demos[0]['rows'][0]['n']} questions about scenes that no stage has seen; "
        "CPU-seconds are of training, all stages of the method together.",
        "| method | accuracy without the policy | with it | prompt tokens | prefill ms | CPU-s |",
        "|---|---|---|---|---|---|",
    ]
    head, table = lines[:2], lines[2:]
    table += [_row(method, _rows(demos, method)) for method in demos[0]["methods"]]
    return "\n\n".join(head) + "\n\n" + "\n".join(table)


def _row(method: str, rows: list[dict[str, Any]]) -> str:
    free = _spread([100 * row["accuracy"] for row in rows], " %")
    aware = _spread([100 * row["accuracy_with_policy"] for row in rows], " %")
    others = [_spread([row[k] for row in rows]) for k in ("prompt_tokens", "prefill_ms")]
    seconds = _spread([row["cpu_seconds"] for row in rows])
    return f"| {method} | {free} | {aware} | {others[0]} | {others[1]} | {seconds} |"


def _targets(demos: list[dict[str, Any]]) -> str:
    lines = ["## What it shows, and what it does not", ""]
    for method, wanted in TARGETS.items():
        gains = _gains(demos, method)
        mean = statistics.mean(gains)
        verdict = "met" if mean >= wanted else "**failed**"
        lines.append(
            f"- {SUBJECT} against {method}: {_signed(gains)} points. "
            f"Target at least {wanted}: {verdict}."
        )
    gains = _gains(demos, CONTROL)
    mean = statistics.mean(gains)
    said = (
        "the advantage survives equal compute" if min(gains) > 0 else "it does not always survive"
    )
    if mean <= 0:
        said = "**at equal compute plain fine-tuning is as good or better**"
    lines.append(f"- The control, {CONTROL}: {_signed(gains)} points for {SUBJECT}; {said}.")
    for method in ("CoT SFT + PolicyRollout", "TriMPI without PolicyRollout"):
        lines.append(f"- {SUBJECT} against {method}: {_signed(_gains(demos, method))} points.")
    return "\n".join(lines)


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


def _gains(demos: list[dict[str, Any]], method: str) -> list[float]:
    """Points of accuracy that SUBJECT is ahead of `method`, by seed."""
    pairs = zip(_rows(demos, SUBJECT), _rows(demos, method), strict=True)
    return [100 * (ours["accuracy"] - theirs["accuracy"]) for ours, theirs in pairs]


def _rows(demos: list[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    return [next(row for row in demo["rows"] if row["method"] == method) for demo in demos]


def _spread(values: list[float], unit: str = "") -> str:
    return f"{statistics.mean(values):.1f}{unit} [{min(values):.1f}, {max(values):.1f}]"


def _signed(values: list[float]) -> str:
    return f"{statistics.mean(values):+.1f} [{min(values):+.1f}, {max(values):+.1f}]"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
