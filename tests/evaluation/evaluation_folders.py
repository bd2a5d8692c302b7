"""Evaluation folders made without a model, for the tests of whatever reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from fastmpi.data.rows import read_rows
from fastmpi.evaluation.folder import EvaluationFolder, SuiteSummary, write_json, write_jsonl
from fastmpi.evaluation.items import Answer, figures, mark
from fastmpi.evaluation.metrics import median, saved, share, split
from fastmpi.policies.clevr_data import ClevrPolicyConfig, generate

DATA = {
    "test": "test.jsonl",
    "policies": "policies.jsonl",
    "override": "override.jsonl",
    "override_policies": "override_policies.jsonl",
}
ARMS = {"task": "test", "in-context": "test", "override": "override"}


def make_data(folder: Path, *, num_policies: int = 2, num_test: int = 12, depth: int = 2) -> Path:
    """A tiny ClevrPolicy data folder."""
    sizes = {"num_policies": num_policies, "num_train": 8, "num_test": num_test}
    return generate(ClevrPolicyConfig(world="tiny", depth=depth, output_dir=str(folder), **sizes))


def make_evaluation(
    folder: Path,
    data: Path,
    *,
    label: str = "model",
    accuracy: float = 0.7,
    seed: int = 0,
    responses: dict[str, str] | None = None,
) -> EvaluationFolder:
    """A whole evaluation of the rows in `data`, of which about `accuracy` are right.

    responses: row id -> what to answer instead, in every arm.
    """
    rng = np.random.default_rng(seed)
    made, suites = EvaluationFolder(folder), {}
    for arm, name in ARMS.items():
        path = data / DATA[name]
        rows = read_rows(path)
        told = [(responses or {}).get(row["id"]) for row in rows]
        answers = [
            _answer(row, text, rng, accuracy, 200 if arm == "in-context" else 20)
            for row, text in zip(rows, told, strict=True)
        ]
        items = mark(rows, answers, folder=path.parent)
        write_jsonl(made.items_path(arm), items)
        suites[arm] = _summary(items)
    right = [True, False, True]
    suites["referral"] = SuiteSummary({"exact": share(right)})
    suites["branching"] = SuiteSummary({"unknown": share([not r for r in right])})
    suites["efficiency"] = _efficiency(len(items))
    files = {name: f"{_up(folder, data)}/{file}" for name, file in DATA.items()}
    write_json(
        folder / "run.json",
        {"label": label, "model": f"models/{label}", "fingerprint": "0" * 64,
         "settings": {"seed": seed}, "data": files, "hashes": {}, "versions": {"python": "3"},
         "seconds": {"task": 1.0}},
    )  # fmt: skip
    made.write_summary(suites)
    return made


def _answer(
    row: dict[str, Any], text: str | None, rng: np.random.Generator, accuracy: float, tokens: int
) -> Answer:
    if text is None:
        said = row["answer"] if rng.random() < accuracy else "Case 99"
        text = f"<think>C1 red yes</think>\\boxed{{{said}}}"
    return Answer(row["id"], text, tokens, 9, True)


def _summary(items: list[dict[str, Any]]) -> SuiteSummary:
    parts = {
        name: {key: figures(part) for key, part in split(items, column).items()}
        for name, column in (
            ("by_policy", lambda item: item["policy_id"]),
            ("by_depth", lambda item: 2),
            ("by_outcome", lambda item: item["answer"]),
        )
    }
    return SuiteSummary(figures(items), **parts)


def _efficiency(n: int) -> SuiteSummary:
    found = {}
    for name, less, more in (("prompt_tokens", 20.0, 200.0), ("prefill_ms", 3.0, 20.0)):
        found[f"{name}_without"], found[f"{name}_with"] = median([less] * n), median([more] * n)
        found[f"{name}_saved"] = saved([less] * n, [more] * n)
    return SuiteSummary(found)


def _up(folder: Path, data: Path) -> str:
    return os.path.relpath(data, folder)
