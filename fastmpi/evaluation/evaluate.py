"""Ask a model every question of a data set, with or without the policy in the prompt, and mark it.

The answers come from the same engine that samples in training. The time to read a prompt is taken
apart from that, one prompt at a time, because that is what a user of the model waits for.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmpi.data.prompts import Row, render
from fastmpi.data.samples import Prompt
from fastmpi.evaluation.prefill import prefill_ms
from fastmpi.evaluation.result import EvalConfig, EvalResult
from fastmpi.models.forest_model import ForestModel
from fastmpi.policies.policy import Policy
from fastmpi.rewards import boxed_answer
from fastmpi.rollout.engine import Engine
from fastmpi.rollout.native import NativeEngine
from fastmpi.rollout.sampling import SamplingParams
from fastmpi.settings import did_you_mean


def evaluate(
    model: ForestModel | str | Path,
    rows: Sequence[Row],
    policies: Mapping[str, Policy] | None = None,
    *,
    with_policy: bool,
    config: EvalConfig | None = None,
    engine: Engine | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> EvalResult:
    """Answers every row and compares what is in `\\boxed{}` with its answer, exactly.

    with_policy: put the row's policy into the prompt; needs `policies`. on_batch: called with the
    number of rows answered so far. ValueError for an unknown policy_id and for no rows.
    """
    config = config or EvalConfig()
    if isinstance(model, (str, Path)):
        model = ForestModel.from_pretrained(model)
    rows = list(rows)[: config.num_rows]
    if not rows:
        raise ValueError("there are no rows to evaluate")
    prompts = render_all(rows, model, policies if with_policy else None, with_policy=with_policy)
    engine = engine or NativeEngine(model)
    texts = _answer(engine, model, prompts, config, on_batch or (lambda done: None))
    items = [_mark(row, text) for row, text in zip(rows, texts, strict=True)]
    tokens = statistics.mean(len(prompt.ids) for prompt in prompts)
    milliseconds = prefill_ms(model, prompts[: config.num_timed_prompts])
    return EvalResult(with_policy, items, tokens, milliseconds)


def render_all(
    rows: Sequence[Row],
    model: ForestModel,
    policies: Mapping[str, Policy] | None,
    *,
    with_policy: bool,
) -> list[Prompt]:
    """The rows' prompts; ValueError where a policy is wanted and unknown."""
    if not with_policy:
        return [render(row, model.processor) for row in rows]
    known = policies or {}
    for row in rows:
        if (name := row["policy_id"]) not in known:
            raise ValueError(
                f"row {row['id']!r}: unknown policy_id {name!r}{did_you_mean(name, known)}"
            )
    return [render(row, model.processor, known[row["policy_id"]]) for row in rows]


def _answer(
    engine: Engine,
    model: ForestModel,
    prompts: Sequence[Prompt],
    config: EvalConfig,
    on_batch: Callable[[int], None],
) -> list[str]:
    params = SamplingParams(
        max_tokens=config.max_completion_length,
        temperature=config.temperature,
        seed=config.seed,
    )
    texts: list[str] = []
    for start in range(0, len(prompts), config.batch_size):
        batch = prompts[start : start + config.batch_size]
        streams = list(range(start, start + len(batch)))
        for responses in engine.generate(batch, 1, params, streams=streams):
            texts.append(model.processor.decode(responses[0].ids))
        on_batch(len(texts))
    return texts


def _mark(row: Row, response: str) -> dict[str, Any]:
    parsed = boxed_answer(response)
    correct = parsed is not None and parsed.strip() == row["answer"].strip()
    kept = {name: row[name] for name in ("id", "policy_id", "prompt", "answer")}
    return {**kept, "response": response, "parsed": parsed, "correct": correct}
