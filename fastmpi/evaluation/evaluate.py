"""Ask a model every question of a data set, with or without the policy in the prompt, and mark it.

The answers come from the same engine that samples in training. The time to read a prompt is taken
apart from that, one prompt at a time, because that is what a user of the model waits for.
`suites.py` does the same for whole evaluations, on files.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastmpi.data.prompts import Row
from fastmpi.evaluation.answering import Asked, OnBatch, answer_rows
from fastmpi.evaluation.items import mark
from fastmpi.evaluation.prefill import prefill_ms
from fastmpi.evaluation.result import EvalConfig, EvalResult
from fastmpi.models.forest_model import ForestModel
from fastmpi.policies.policy import Policy
from fastmpi.rollout.engine import Engine
from fastmpi.rollout.native import NativeEngine


def evaluate(
    model: ForestModel | str | Path,
    rows: Sequence[Row],
    policies: Mapping[str, Policy] | None = None,
    *,
    with_policy: bool,
    config: EvalConfig | None = None,
    engine: Engine | None = None,
    on_batch: OnBatch | None = None,
) -> EvalResult:
    """Answers every row and marks it: a tool call by its scores, anything else where the text in
    `\\boxed{}` is exactly its answer.

    with_policy: put the row's policy into the prompt; needs `policies`. on_batch: called with the
    number of rows answered so far. ValueError for an unknown policy_id and for no rows.
    """
    config = config or EvalConfig()
    if isinstance(model, (str, Path)):
        model = load_model(model, config)
    rows = [dict(row) for row in rows][: config.num_rows]
    asked = Asked(model, engine or NativeEngine(model), (policies or {}) if with_policy else None)
    items = mark(rows, answer_rows(asked, rows, config, on_batch=on_batch))
    tokens = statistics.mean(item["prompt_tokens"] for item in items)
    timed = [asked.prompt(row) for row in rows[: config.num_timed_prompts]]
    return EvalResult(with_policy, items, tokens, prefill_ms(model, timed))


def load_model(
    path: str | Path, config: EvalConfig, *, trust_remote_code: bool = False
) -> ForestModel:
    """The model of an evaluation, in the precision that `config.dtype` asks for."""
    import torch

    on_cuda = torch.cuda.is_available()
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    dtype = dtypes.get(config.dtype, "auto" if on_cuda else torch.float32)
    return ForestModel.from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code)
