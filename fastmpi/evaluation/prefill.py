"""Milliseconds that a model needs to read one prompt and its pictures, measured alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import torch

from fastmpi.data.batch import ForestBatch
from fastmpi.data.prompts import render
from fastmpi.data.rows import read_rows
from fastmpi.data.samples import Prompt
from fastmpi.evaluation.result import EvalConfig
from fastmpi.models.forest_model import ForestModel
from fastmpi.policies.policy import PolicySet

KeyT = TypeVar("KeyT", bound=Hashable)


def prefill_ms(model: ForestModel, prompts: Sequence[Prompt]) -> float:
    """Median over `prompts` of one pass up to the first token's scores; NaN for no prompts."""
    if not prompts:
        return float("nan")
    one_prefill_ms(model, prompts[0])  # the first pass also allocates
    return statistics.median(one_prefill_ms(model, prompt) for prompt in prompts)


@torch.no_grad()
def one_prefill_ms(model: ForestModel, prompt: Prompt) -> float:
    batch = ForestBatch.from_prompts([prompt], model.processor).to(model.device)
    _wait(model)
    start = time.perf_counter()
    model(batch, lambda hidden, head: hidden[-1] @ head.T)
    _wait(model)
    return 1e3 * (time.perf_counter() - start)


def interleaved_prefill_ms(
    models: Mapping[KeyT, str],
    test: str,
    policies: str,
    config: EvalConfig,
    *,
    trust_remote_code: bool = False,
) -> dict[KeyT, tuple[float, float]]:
    """Medians with the policy and without it of several models, measured in turn prompt by prompt.

    Whatever else the machine does then disturbs all of them alike.
    """
    known = PolicySet.from_jsonl(policies)
    rows = read_rows(test)[: max(1, config.num_timed_prompts)]
    loaded = {
        key: ForestModel.from_pretrained(path, probe=False, trust_remote_code=trust_remote_code)
        for key, path in models.items()
    }
    times: dict[KeyT, tuple[list[float], list[float]]] = {key: ([], []) for key in models}
    for index, row in enumerate([rows[0], *rows]):
        for key, model in loaded.items():
            for arm, policy in enumerate((known[row["policy_id"]], None)):
                ms = one_prefill_ms(model, render(row, model.processor, policy))
                if index:  # the first round also allocates
                    times[key][arm].append(ms)
    return {key: (statistics.median(a), statistics.median(b)) for key, (a, b) in times.items()}


def _wait(model: ForestModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
