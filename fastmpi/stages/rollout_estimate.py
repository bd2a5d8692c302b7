"""What a window of responses will hold and count, before there is one: every response has the
same stated length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastmpi.data.batch import ForestBatch
from fastmpi.data.samples import Prompt
from fastmpi.models.flops import visible_pairs
from fastmpi.models.memory import RolloutMemory, rollout_memory
from fastmpi.models.sizes import Precision, TextShape
from fastmpi.ops.decode_attention import PART_TOKENS
from fastmpi.rollout.cache import count_parts
from fastmpi.rollout.native import NativeEngine
from fastmpi.rollout.plan import make_plan
from fastmpi.rollout.sampling import logits_held
from fastmpi.rollout.segments import lay_out, make_requests

if TYPE_CHECKING:
    from fastmpi.models.forest_model import ForestModel


@dataclass(frozen=True)
class RolloutEstimate:
    """One window of responses. prompt_tokens: of all prompts; merged_prompt_tokens: of the forest
    that they are read as. responses, tokens: of a window. memory: of the built-in engine."""

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
        memory=_memory(asked, model, text, precision, args),
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


def _memory(
    asked: Sequence[tuple[Prompt, int]],
    model: ForestModel,
    text: TextShape,
    precision: Precision,
    args: Any,
) -> RolloutMemory:
    """Memory of the built-in engine, which makes room for the longest responses."""
    engine = NativeEngine(model)
    requests = make_requests(*zip(*asked, strict=True))
    requests = lay_out(requests, model.processor, engine.min_shared_tokens)
    token_bytes = text.key_value_bytes(precision)
    stated = args.kept_rollout_bytes
    plan = make_plan(
        requests,
        args.max_completion_length,
        max_responses=engine.max_responses,
        num_tokens=stated // token_bytes if stated else None,
        token_bytes=token_bytes,
    )
    lengths = [len(request.prompt.ids) for request in requests for _ in request.members]
    segments = {segment for request in requests for segment in request.segments}
    return rollout_memory(
        text,
        precision,
        held_tokens=plan.num_tokens,
        read_tokens=min(sum(segment.length for segment in segments), engine.max_prompt_tokens),
        prompt_lengths=lengths[: plan.num_slots],
        response_tokens=args.max_completion_length,
        parts=count_parts(requests) + -(-plan.capacity // PART_TOKENS),
        logits_held=logits_held(args.top_k, args.top_p),
    )
