"""Writes docs/performance.md from the measurements in benchmarks/results/<device>/<bench>.json.

    python scripts/make_performance.py benchmarks/results docs/performance.md

The files are those of `fastmpi bench <name> --json FILE`. No number is typed by hand, and what has
no file is said to be not measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from performance_targets import TARGETS

from fastmpi.bench import BENCHES

INTRODUCTION = """# Performance

Made by `scripts/make_performance.py` from the files that `fastmpi bench <name> --json FILE` wrote.

All arms of a case compute the same from the same tensors, in one process, in turn (first to last,
then last to first), after all have warmed up; on CUDA between events, with the L2 cache overwritten
and the device idle before each run; on the CPU in CPU time of the process, since others may share
the machine (wall times are in the files). `ms` is the median of the runs, in brackets the middle
three fifths. `times ours` is the arm's time over fastmpi's, paired round by round: the median, in
brackets its 95 % bootstrap interval; above 1, fastmpi is faster. `MiB` is the most that a run held
above what was allocated before it, with its outputs (on the CPU: resident memory of the process).
`error` is against float64: mean nats of the log-probs where a case has them, else relative. A
result on a CPU compares arms on that CPU; it says nothing of a GPU. There the ops run their
references in plain torch, which multiply 16-bit heads in float32: slower than an eager head in
bfloat16, and four orders of magnitude more exact."""

NOTES = {
    "step": """Arms are trainers' own `train()`, one step at a time: rollout, scoring, update.
`grpo`: 16 responses to (image, question), the same work in both arms. `policyrollout`: 8 to that
and 8 to (policy, image, question), pooled, and all learned after (image, question). TRL has no such
group: `trl` takes two of 8, the second with the policy in its prompts and in its update, so that it
learns something else, as its error says; `trl, no policy` takes 16 and shows no policy at all.
`cpt`: 16 samples after one policy; `packed` is our code without sharing; `trl` is transformers'
model with TRL's head in a plain loop, one row a sample, so it holds one row at a time where the
others hold a micro-batch. `error` is that of the first step's gradient, from given responses.""",
}


def main() -> None:
    """Reads all devices' folders and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args()
    devices = {folder.name: records(folder) for folder in sorted(args.folder.iterdir())}
    parts = [INTRODUCTION, targets(devices)]
    parts += [device(found) for found in devices.values() if found]
    args.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """What one device's folder holds, by bench."""
    paths = {bench: folder / f"{bench}.json" for bench in BENCHES}
    return {
        bench: json.loads(path.read_text(encoding="utf-8"))
        for bench, path in paths.items()
        if path.exists()
    }


def targets(devices: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Every target with what was measured, the worst case of each."""
    lines = ["## Targets", "", "| bench | target | on | measured | |", "|---|---|---|---|---|"]
    for target in TARGETS:
        record = devices.get(target.folder, {}).get(target.bench)
        found = target.judge(record["cases"]) if record is not None else None
        measured, verdict = ("not measured", "") if found is None else found
        about = f"{target.bench} | {target.text} | {target.device}"
        lines.append(f"| {about} | {measured} | {verdict} |")
    return "\n".join(lines)


def device(found: dict[str, dict[str, Any]]) -> str:
    """The section of one device."""
    parts = [f"## {next(iter(found.values()))['device']}"]
    parts += [bench(found[name]) if name in found else not_measured(name) for name in BENCHES]
    return "\n\n".join(parts)


def not_measured(name: str) -> str:
    return f"### {name}\n\nNot measured."


def bench(record: dict[str, Any]) -> str:
    """How it was measured, and one row for each arm of each case."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    machine = ", ".join(f"{name} {value}" for name, value in record["machine"].items())
    lines = [
        f"### {record['bench']}",
        "",
        f"{record['runs']} runs of each arm; commit `{record['commit']}`; {versions}; {machine}."
        + limits(record["limits"])
        + missing(record["missing"]),
        "",
        *([NOTES[record["bench"]], ""] if record["bench"] in NOTES else []),
        "| case | arm | ms | times ours | MiB | error |",
        "|---|---|---|---|---|---|",
    ]
    lines += [row for case in record["cases"] for row in rows(case)]
    return "\n".join(lines + parts(record["cases"]))


def limits(measured: dict[str, float]) -> str:
    if not measured:
        return ""
    copied, product = measured["bytes_per_s"] / 1e12, measured["flop_per_s"] / 1e12
    return f" Measured limits: copy {copied:.2f} TB/s, bf16 product {product:.0f} TFLOP/s."


def missing(arms: dict[str, str]) -> str:
    if not arms:
        return ""
    return f" Not run: {', '.join(f'{arm} ({reason})' for arm, reason in arms.items())}."


def rows(case: dict[str, Any]) -> list[str]:
    """The arms of a case; the case is named in the first row."""
    names = [case["case"]] + [""] * (len(case["arms"]) - 1)
    return [
        f"| {name} | {arm} | {' | '.join(cells(found, case, arm))} |"
        for name, (arm, found) in zip(names, case["arms"].items(), strict=True)
    ]


def parts(cases: list[dict[str, Any]]) -> list[str]:
    """The parts of the arms' runs, where they have some; all cases have the same."""
    timed = [
        (case["case"], arm, found["parts"])
        for case in cases
        for arm, found in case["arms"].items()
        if "parts" in found
    ]
    if not timed:
        return []
    names = list(dict.fromkeys(name for *_, of_arm in timed for name in of_arm))
    lines = ["", f"| case | arm | {' | '.join(f'{name}, ms' for name in names)} |"]
    lines.append("|---|---|" + "---|" * len(names))
    for case, arm, of_arm in timed:
        times = (spread(part.get("cpu_ms", part["ms"])) for part in of_arm.values())
        lines.append(f"| {case} | {arm} | {' | '.join(times)} |")
    return lines


def cells(found: dict[str, Any] | str, case: dict[str, Any], arm: str) -> list[str]:
    """ms, times ours, MiB, error."""
    if isinstance(found, str):
        return [found, "", "", ""]
    on_cpu = "cpu_ms" in found
    time = spread(found["cpu_ms" if on_cpu else "ms"])
    times_ours = interval(case["cpu_ratio" if on_cpu else "ratio"].get(arm))
    if "graph_ms" in found:
        time += f"; kernels {spread(found['graph_ms'])}"
        if arm in case["graph_ratio"]:
            times_ours += f"; kernels {interval(case['graph_ratio'][arm])}"
    peak = "" if found["peak_mb"] is None else f"{found['peak_mb']:.0f}"
    return [time, times_ours, peak, error(found.get("error"))]


def spread(times: dict[str, float]) -> str:
    p20, median, p80 = (in_ms(times[name]) for name in ("p20", "median", "p80"))
    return f"{median} [{p20}, {p80}]"


def in_ms(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def interval(ratio: dict[str, float] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def error(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.1e}"


if __name__ == "__main__":
    main()
