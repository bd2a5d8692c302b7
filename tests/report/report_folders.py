"""Runs on disk for the tests of reports: evaluations of two kinds of policies, and a comparison."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from fastmpi.evaluation.folder import write_json, write_jsonl
from fastmpi.policies.gta.policy import gta_policy
from fastmpi.policies.gta.rules import Profile
from fastmpi.policies.policy import PolicySet

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))

from evaluation_folders import make_data, make_evaluation  # noqa: E402

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\u2067 &amp; \x00"

METHODS: dict[str, tuple[list[str], float]] = {
    "In-context (base)": ([], 0.2),
    "SFT": (["sft"], 0.5),
    "SFT, compute-matched": (["long"], 0.6),
    "TriMPI": (["cpt", "sft", "rl"], 0.9),
}


def make_gta_data(folder: Path, *, num_test: int = 24) -> Path:
    """A data folder of the paper's tool policy: a call of OCR or of Calculator for many profiles,
    and other rules that turn OCR's versions around."""
    policy = gta_policy()
    changed = [r for r in policy.rules if r.tool == "CountGivenObject"]
    reverse = [_with_target(rule, 5 - int(str(rule.then))) for rule in changed]
    block, other = policy.override(reverse)
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (320, 200), "#335577").save(folder / "images" / "scene.jpg")
    rows = [_gta_row(policy, number) for number in range(num_test)]
    new = [{**_gta_row(other, n), "old_answer": rows[n]["answer"]} for n in range(num_test)]
    write_jsonl(folder / "test.jsonl", rows)
    write_jsonl(folder / "override.jsonl", new)
    PolicySet.from_policies([policy.to_policy()]).to_jsonl(folder / "policies.jsonl")
    blocks = PolicySet.from_policies([other.to_policy(block)])
    blocks.to_jsonl(folder / "override_policies.jsonl")
    return folder


def make_comparison(folder: Path, *, accuracy_of: dict[str, float] | None = None) -> Path:
    """What `compare` leaves of four methods: stages with their metrics, and evaluations."""
    data = make_data(folder / "data", num_test=24)
    compare = {
        "title": "Four methods",
        "methods": {method: chain for method, (chain, _) in METHODS.items()},
        "variants": {"long": {"stage": "sft", "match_seconds_of": "TriMPI"}},
        "notes": {"In-context (base)": "not trained"},
    }
    (folder / "config.yaml").write_text(json.dumps({"model": "tiny", "compare": compare}))
    for seed, (method, (chain, accuracy)) in enumerate(METHODS.items()):
        for length in range(1, len(chain) + 1):
            make_stage(folder / "stages" / "+".join(chain[:length]), chain[length - 1])
        name = "+".join(chain) or "base"
        accuracy = (accuracy_of or {}).get(method, accuracy)
        make_evaluation(folder / "eval" / name, data, label=name, accuracy=accuracy, seed=seed)
    return folder


def make_stage(folder: Path, stage: str) -> None:
    """The record and the metrics of 40 steps."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = "sft" if stage == "long" else stage
    record = {"identity": stage, "made_from": {"stage": kind}, "done": True, "model": str(folder),
              "steps": 40, "cpu_seconds": 12.5, "seconds": 13.0}  # fmt: skip
    write_json(folder / "stage.json", record)
    lines: list[dict[str, Any]] = [{"step": s, "loss": 2 / s} for s in range(1, 41)]
    if kind == "rl":
        arms = ({"reward/policy_free": s / 50, "reward/policy_aware": 0.9} for s in range(1, 41))
        lines = [line | rewards for line, rewards in zip(lines, arms, strict=True)]
    write_jsonl(folder / "metrics.jsonl", lines)


def _gta_row(policy: Any, number: int) -> dict[str, Any]:
    profile = Profile("ABCD"[number % 4], 100 * (number % 10), 10 + 7 * (number % 8))
    tool = ("CountGivenObject", "OCR", "Calculator")[number % 3]
    routing = policy.route(tool, profile)
    arguments = {
        "CountGivenObject": {"image": "images/scene.jpg", "text": "cube"},
        "OCR": {"image": "images/scene.jpg"},
        "Calculator": {"expression": f"{number} + 1"},
    }[tool]
    answer = json.dumps({"name": routing.name, "arguments": arguments})
    prompt = f"Account type: {profile.account_type}.\n\nRequest: use {tool} on the picture.\n"
    return {"id": f"t{number}", "policy_id": policy.name, "images": ["images/scene.jpg"],
            "prompt": prompt, "reasoning": "r", "answer": answer, "tool": tool,
            "rule": routing.rule, "profile": profile.to_json(), "formulas": False}  # fmt: skip


def _with_target(rule: Any, version: int) -> Any:
    return type(rule)(rule.id, rule.tool, rule.when, version)
