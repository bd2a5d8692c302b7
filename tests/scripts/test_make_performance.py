"""The performance page says what was measured, and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "scripts"))

import make_performance  # noqa: E402
from performance_targets import TARGETS  # noqa: E402

from fastmpi.bench import BENCHES  # noqa: E402


@pytest.fixture
def page(tmp_path, monkeypatch):
    """`page(folder)`: the page made of the results in `folder`."""

    def make(folder: Path) -> str:
        output = tmp_path / "performance.md"
        monkeypatch.setattr(sys, "argv", ["make_performance.py", str(folder), str(output)])
        make_performance.main()
        return output.read_text(encoding="utf-8")

    return make


def measured(ms: float, **more) -> dict:
    times = {"p20": ms, "median": ms, "p80": ms}
    return {"ms": times, "peak_mb": 600.0, "output_mb": 100.0, "error": 1e-6, **more}


def ratio(median: float) -> dict:
    return {"median": median, "low": median, "high": median}


def head_case(name: str, trl: float) -> dict:
    return {
        "case": name,
        "counts": {},
        "arms": {
            "fastmpi": measured(2.0),
            "trl": measured(2 * trl, error=1e-4),
            "liger": "out of memory",
        },
        "ratio": {"trl": ratio(trl)},
        "graph_ratio": {},
        "missing": {},
    }


def write(folder: Path, bench: str, cases: list[dict], device: str = "h200") -> Path:
    record = {
        "bench": bench, "device": "NVIDIA H200", "commit": "abc", "versions": {"torch": "2.11"},
        "machine": {}, "runs": 30, "cases": cases, "missing": {"cce": "not installed"},
        "limits": {"bytes_per_s": 4e12, "flop_per_s": 8e14},
    }  # fmt: skip
    (folder / device).mkdir(exist_ok=True, parents=True)
    (folder / device / f"{bench}.json").write_text(json.dumps(record))
    return folder


def verdicts(text: str) -> dict[str, str]:
    """The measured number and the verdict of each target."""
    lines = text.split("## Targets")[1].split("\n\n## ")[0].splitlines()
    columns = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "| " in line]
    return {cells[1]: " ".join(cells[3:]).strip() for cells in columns[1:]}


def test_committed_page_is_made_from_committed_measurements(page):
    committed = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page(REPOSITORY / "benchmarks" / "results") == committed


def test_every_target_is_of_a_bench_that_exists():
    assert {target.bench for target in TARGETS} <= BENCHES.keys()


def test_without_measurements_every_target_is_not_measured(page, tmp_path):
    (tmp_path / "results" / "cpu").mkdir(parents=True)
    found = verdicts(page(tmp_path / "results"))
    assert set(found.values()) == {"not measured"} and len(found) == len(TARGETS)


def test_the_worst_case_decides(page, tmp_path):
    cases = [head_case(f"frozen T=16384 V={v}", trl) for v, trl in ((1, 1.5), (2, 1.2))]
    cases.append(head_case("frozen T=4096 V=1", 0.5))  # no target is about it
    found = verdicts(page(write(tmp_path / "results", "policy_head", cases)))
    start = "frozen head, T = 16k: "
    assert found[start + "at least 1.3 times TRL's chunked op"] == "1.20 **failed**"
    assert found[start + "at most 1 GiB above inputs and outputs"] == "0.49 GiB met"
    assert found[start + "TRL's error of log-probs at least 20 times ours"] == "100 met"


def test_out_of_memory_is_no_number(page, tmp_path):
    ran = head_case("frozen T=16384 V=1", 2.0)
    ran["ratio"]["liger"] = ratio(4.0)  # one case is not enough
    cases = [head_case("frozen T=16384", 2.0), ran]
    text = page(write(tmp_path / "results", "policy_head", cases))
    assert (
        verdicts(text)["frozen head, T = 16k: at least 3 times Liger's chunked loss"]
        == "not measured"
    )
    assert "|  | liger | out of memory |  |  |  |" in text
    assert "| frozen T=16384 | fastmpi | 2 [2, 2] |  | 600 | 1.0e-06 |" in text
    assert "copy 4.00 TB/s, bf16 product 800 TFLOP/s" in text
    assert "Not run: cce (not installed)." in text
    assert "### update\n\nNot measured." in text


def test_rate_of_equal_work_and_counted_ratio(page, tmp_path):
    attention = {
        "case": "7B forward+backward 1k + 16 x 256",
        "counts": {"flops": 100.0, "causal_flops": 80.0, "fastmpi_new_length_ms": 20.0},
        "arms": {"fastmpi": measured(1.0)},
        "ratio": {"causal": ratio(0.5), "flex": ratio(1.2)},
        "graph_ratio": {},
        "missing": {},
    }
    found = verdicts(page(write(tmp_path / "results", "forest_attention", [attention])))
    assert found["forward and backward: at least 60 % of causal SDPA's rate on equal work"] == (
        "62% met"
    )
    assert found["no compile on a new T: the first call ends within half a second"] == "20 ms met"


def test_on_the_cpu_its_own_time_counts(page, tmp_path):
    case = {
        "case": "small",
        "counts": {"flops": 1.0, "packed_flops": 4.0},
        "arms": {"fastmpi": {**measured(9.0), "cpu_ms": measured(1.0)["ms"], "peak_mb": None}},
        "ratio": {"packed": ratio(9.0)},
        "cpu_ratio": {"packed": ratio(3.0)},
        "missing": {},
    }
    text = page(write(tmp_path / "results", "update", [case], "cpu"))
    target = "a small model: at least 80 % of the ratio of counted FLOPs to packed rows"
    assert verdicts(text)[target] == "75% **failed**"
    assert "| small | fastmpi | 1 [1, 1] |  |  | 1.0e-06 |" in text


def test_kernels_alone_stand_beside_the_time(page, tmp_path):
    case = head_case("64 groups x 16, 256 tokens", 2.0)
    case["arms"]["fastmpi"]["graph_ms"] = {"p20": 0.1, "median": 0.1, "p80": 0.1}
    case["arms"] |= {"eager": measured(3.0, graph_ms={"p20": 2.5, "median": 2.5, "p80": 2.5})}
    case["ratio"]["eager"], case["graph_ratio"] = ratio(1.5), {"eager": ratio(25.0)}
    text = page(write(tmp_path / "results", "group_advantage", [case]))
    assert verdicts(text)[
        "with the loss, 64 groups of 16: at least 20 times eager in device time"
    ] == ("25.0 met")
    row = "3 [3, 3]; kernels 2.5 [2.5, 2.5] | 1.50 [1.50, 1.50]; kernels 25.00 [25.00, 25.00]"
    assert f"|  | eager | {row} | 600 | 1.0e-06 |" in text


def step_case(trl: float, blind: float, peaks: tuple[float, float, float]) -> dict:
    """A case of `step` with two arms of TRL."""

    def arm(cpu_ms: float, peak_mb: float) -> dict:
        cpu = measured(cpu_ms)["ms"]
        parts = {"rollout": {"ms": cpu, "cpu_ms": cpu}, "update": {"ms": cpu, "cpu_ms": cpu}}
        return {**measured(9.0), "cpu_ms": cpu, "peak_mb": peak_mb, "parts": parts}

    times = {"fastmpi": 1.0, "trl": trl, "trl, no policy": blind}
    return {
        "case": "small policyrollout image=9 R=5 8+8",
        "counts": {},
        "arms": {n: arm(t, peak) for (n, t), peak in zip(times.items(), peaks, strict=True)},
        "ratio": {},
        "cpu_ratio": {"trl": ratio(trl), "trl, no policy": ratio(blind)},
        "missing": {},
    }


def test_a_step_is_held_against_the_fastest_and_the_smallest_of_trls(page, tmp_path):
    case = step_case(6.0, 3.0, (30.0, 60.0, 40.0))
    text = page(write(tmp_path / "results", "step", [case], "cpu"))
    found = verdicts(text)
    start = "a small model, stage 3: "
    assert found[start + "at least 2 times TRL's step, with a policy and without"] == "3.00 met"
    assert found[start + "no more memory than TRL's step"] == "0.75 met"
    assert "| case | arm | rollout, ms | update, ms |" in text
    assert "learns something else, as its error says" in text.replace("\n", " ")
    assert "| small policyrollout image=9 R=5 8+8 | trl | 6 [6, 6] | 6 [6, 6] |" in text


def test_without_trl_a_step_is_not_measured(page, tmp_path):
    case = step_case(6.0, 3.0, (30.0, 60.0, 40.0))
    case["cpu_ratio"] = {}
    del case["arms"]["trl"], case["arms"]["trl, no policy"]
    found = verdicts(page(write(tmp_path / "results", "step", [case], "cpu")))
    assert set(found.values()) == {"not measured"}
