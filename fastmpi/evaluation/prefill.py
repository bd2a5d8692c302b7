"""Milliseconds that a model needs to read one prompt and its pictures, measured alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from fastmpi.data.batch import ForestBatch
from fastmpi.data.prompts import Row, render
from fastmpi.data.samples import Prompt
from fastmpi.models.forest_model import ForestModel
from fastmpi.policies.policy import Policy

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True)
class PrefillTimes:
    """Milliseconds of the same rows' prompts with the policy and without it, in the same order."""

    with_policy: list[float] = field(default_factory=list)
    without: list[float] = field(default_factory=list)


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
    models: Mapping[KeyT, ForestModel], rows: Sequence[Row], policies: Mapping[str, Policy]
) -> dict[KeyT, PrefillTimes]:
    """Times of several models, measured in turn prompt by prompt.

    Whatever else the machine does then disturbs all of them alike, and both ways of asking.
    """
    times: dict[KeyT, PrefillTimes] = {key: PrefillTimes() for key in models}
    for index, row in enumerate([rows[0], *rows]):
        for key, model in models.items():
            for policy, kept in (
                (policies[row["policy_id"]], times[key].with_policy),
                (None, times[key].without),
            ):
                ms = one_prefill_ms(model, render(row, model.processor, policy))
                if index:  # the first round also allocates
                    kept.append(ms)
    return times


def _wait(model: ForestModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
