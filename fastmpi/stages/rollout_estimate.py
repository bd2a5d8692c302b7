"""What a window of responses will hold and count, before there is one: every response has the
same stated length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Prompt
from fastmpi.models.flops import visible_pairs
from fastmpi.models.memory import RolloutMemory, rollout_memory
from fastmpi.models.sizes import Precision, TextShape
from fastmpi.rollout.cache import shelves
from fastmpi.rollout.native import NativeEngine
from fastmpi.rollout.trunks import find_trunks

if TYPE_CHECKING:
    from fastmpi.models.forest_model import ForestModel


@dataclass(frozen=True)
class RolloutEstimate:
    """One window of responses. prompt_tokens: of all prompts; merged_prompt_tokens: of the forest
    that they are read as. responses, tokens: of a window. memory: of its largest wave."""

    prompt_tokens: int
    merged_prompt_tokens: int
    responses: int
    tokens: int
    memory: RolloutMemory


def rollout_estimate(
    trainer: Any, text: TextShape, precision: Precision, response_tokens: int
) -> tuple[RolloutEstimate, float]:
    """Of the first window of an RL trainer, and the operations that sampling it takes."""
    args, model = trainer.args, trainer.model
    drawn = trainer.sampler.draw(0).prompts
    counts = {"policy_free": args.num_generations, "policy_aware": args.policy_generations}
    asked = [(prompt, counts[arm]) for arm, prompts in drawn.items() for prompt in prompts]
    asked = [(prompt, count) for prompt, count in asked if count]
    distinct = {(p.ids.tobytes(), *(i.key for i in p.images)): p for p, _ in asked}
    batch = ForestBatch.from_prompts(list(distinct.values()), model.processor)
    responses = sum(count for _, count in asked)
    estimate = RolloutEstimate(
        prompt_tokens=batch.num_unshared_tokens,
        merged_prompt_tokens=batch.num_tokens,
        responses=responses,
        tokens=responses * response_tokens,
        memory=_wave(asked, model, text, precision, response_tokens),
    )
    lengths = sum(len(prompt.ids) * count for prompt, count in asked)
    flops = _sampling_flops(batch, text, model.head.numel(), responses, lengths, response_tokens)
    return estimate, flops


def _sampling_flops(
    prompts: ForestBatch, text: TextShape, head: int, responses: int, lengths: int, length: int
) -> float:
    """Forward only: prompts once, then every token of every response. head: its weights. lengths:
    of the prompts of all responses, summed; length: of a response."""
    tokens = responses * length
    pairs = visible_pairs(prompts.subtree_end) + lengths * length + tokens * (length + 1) // 2
    linears = 2.0 * text.linear_parameters * (prompts.num_tokens + tokens)
    attention = 4.0 * pairs * text.query * text.layers
    return float(linears + attention + 2.0 * tokens * head)


def _wave(
    asked: Sequence[tuple[Prompt, int]],
    model: ForestModel,
    text: TextShape,
    precision: Precision,
    response_tokens: int,
) -> RolloutMemory:
    """Memory of as many of the prompts as the built-in engine samples together."""
    engine = NativeEngine(model)
    wave: list[tuple[Prompt, int]] = []
    tokens = responses = 0
    for prompt, count in asked:
        tokens, responses = tokens + len(prompt.ids), responses + count
        full = tokens > engine.max_prompt_tokens or responses > engine.max_responses
        if wave and full:
            break
        wave.append((prompt, count))
    batch = ForestBatch.from_prompts([prompt for prompt, _ in wave], model.processor)
    ends = batch.offsets[1:].tolist()
    paths = np.split(batch.flat_index.numpy(), ends[:-1])
    return rollout_memory(
        text,
        precision,
        forest_rows=batch.num_tokens,
        held_rows=held_rows(paths, engine.min_shared_tokens),
        prompt_lengths=[len(prompt.ids) for prompt, count in wave for _ in range(count)],
        response_tokens=response_tokens,
    )


def held_rows(paths: Sequence[np.ndarray], min_shared_tokens: int) -> int:
    """Rows of keys and values that the engine keeps of prompts whose paths through their forest are
    `paths`: trunks once, and each prompt's own part padded to its shelf."""
    trunks = find_trunks(paths, min_shared_tokens)
    distinct = {path.tobytes(): number for number, path in enumerate(paths)}
    own = {number: len(paths[number]) for number in distinct.values()}
    for trunk in trunks:
        for number in trunk.prompts:
            if number in own:
                own[number] -= len(trunk.rows)
    lengths = sorted(own.values())
    padded = sum((stop - start) * lengths[stop - 1] for start, stop in shelves(lengths))
    return padded + sum(len(trunk.rows) for trunk in trunks)
