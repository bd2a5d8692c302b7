"""The built-in engine: transformers' text tower over one memory of keys and values.

Unusual: distinct prompts are read as a forest, so that prompts which begin alike (the policy, the
picture) run that beginning once; then every response decodes against the one copy of its prompt's
keys and values, and all prompts of a policy against one copy of that. Prompts are merged by their
tokens and pictures here, and only here: groups are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from fastmpi.data.images import Image
from fastmpi.data.samples import Prompt
from fastmpi.models.features import ImageFeatures
from fastmpi.models.forest_model import ForestModel
from fastmpi.models.sizes import TextShape
from fastmpi.rollout.cache import DecodeCache, count_parts
from fastmpi.rollout.continuous import ContinuousBatch
from fastmpi.rollout.decoding import Slots
from fastmpi.rollout.engine import Response
from fastmpi.rollout.plan import GIB, Plan, make_plan
from fastmpi.rollout.pool import KeyValuePool, token_bytes
from fastmpi.rollout.sampling import Sampler, SamplingParams, uniforms
from fastmpi.rollout.segments import Request, lay_out, make_requests
from fastmpi.rollout.stepping import Decoder, weights_key

# progress(responses finished, responses in all, tokens so far)
Progress = Callable[[int, int, int], None]


class NativeEngine:
    """Samples with the model that is being trained, in its own process.

    memory_gib: GiB for keys and values, in which as many responses and prompts are held as fit;
    allocated at the first call and kept. Beside them lies what `models.memory.rollout_memory`
    counts: a step's logits and partial results, which graphs keep too, and while prompts are read
    their forward pass. None: what `max_responses` need, on CUDA half of what is free at most, and
    nothing is kept.
    max_responses: written together at most. max_prompt_tokens: read together at most (a prompt is
    never split). min_shared_tokens: from how many tokens on the common beginning of several prompts
    is held once for all of them. cuda_graphs: with memory_gib, steps on CUDA are captured and
    replayed; not for a model whose forward pass gathers its weights. None of these changes a
    response. features: where the features of pictures come from, a cache shared with training for
    instance; None from it, or no such function: encoded here. progress: called after every step.
    """

    def __init__(
        self,
        model: ForestModel,
        *,
        memory_gib: float | None = None,
        max_prompt_tokens: int = 65_536,
        max_responses: int = 1_024,
        min_shared_tokens: int = 64,
        cuda_graphs: bool = True,
        features: Callable[[Sequence[Image]], ImageFeatures | None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        if memory_gib is not None and not memory_gib > 0:
            raise ValueError(f"memory_gib must be above 0, got {memory_gib}")
        self.model = model
        self.features = features
        self.memory_gib = memory_gib
        self.max_prompt_tokens = max_prompt_tokens
        self.max_responses = max_responses
        self.min_shared_tokens = min_shared_tokens
        self.progress = progress
        self.cuda_graphs = cuda_graphs
        self._kept: tuple[tuple[object, ...], Decoder] | None = None

    def generate(
        self,
        prompts: Sequence[Prompt],
        num_responses: int | Sequence[int],
        params: SamplingParams,
        *,
        streams: Sequence[int] | None = None,
    ) -> list[list[Response]]:
        """See `Engine`.

        Runs in evaluation mode and returns numpy arrays, so that nothing of it enters autograd.
        `ValueError` for a prompt that does not fit into the memory with one response.
        """
        counts = _per_prompt(num_responses, len(prompts))
        streams = range(len(prompts)) if streams is None else streams
        _check(prompts, counts, streams)
        written: dict[tuple[int, int], Response] = {}
        requests = make_requests(prompts, counts)
        if requests:
            with _evaluating(self.model), torch.no_grad(), self._forgetting():
                batch = self._batch(requests, params, streams)
                for ended in batch.run():
                    written.update(ended)
                    if self.progress is not None:
                        self.progress(len(written), sum(counts), batch.num_tokens)
        return [[written[p, i] for i in range(count)] for p, count in enumerate(counts)]

    def _batch(
        self, requests: list[Request], params: SamplingParams, streams: Sequence[int]
    ) -> ContinuousBatch:
        pad = self.model.device.type == "cpu"
        requests = lay_out(requests, self.model.processor, self.min_shared_tokens, pad=pad)
        plan = self.plan(requests, params.max_tokens)
        if params.stop_token_ids is None:
            params = replace(params, stop_token_ids=tuple(self.model.processor.eos_token_ids))
        assert params.stop_token_ids is not None
        return ContinuousBatch(
            self._decoder(plan, count_parts(requests), params),
            plan,
            requests,
            params.stop_token_ids,
            random=lambda at: uniforms(params.seed, streams[at[0]], at[1], params.max_tokens),
            features=self._features,
            max_prompt_tokens=self.max_prompt_tokens,
        )

    def plan(self, requests: Sequence[Request], max_tokens: int) -> Plan:
        """How the memory is divided between the prompts and responses of one call."""

        def planned(num_tokens: int | None) -> Plan:
            return make_plan(
                requests,
                max_tokens,
                max_responses=self.max_responses,
                num_tokens=num_tokens,
                token_bytes=self._token_bytes,
            )

        if self.memory_gib is not None:
            return planned(int(self.memory_gib * GIB) // self._token_bytes)
        plan, free = planned(None), _free_bytes(self.model.device)
        if free is not None and plan.num_tokens * self._token_bytes > free // 2:
            return planned(free // 2 // self._token_bytes)
        return plan

    @property
    def _token_bytes(self) -> int:
        return token_bytes(TextShape.of(self.model.base.config), self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """That of keys and values."""
        device = self.model.device.type
        enabled = torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if enabled else self.model.dtype

    def _decoder(self, plan: Plan, parts: int, params: SamplingParams) -> Decoder:
        """The last call's, with its graphs, if nothing that it depends on has changed."""
        if self.memory_gib is None:
            return self._new_decoder(plan, parts, params)
        key: tuple[object, ...] = (plan, self._dtype, parts, replace(params, seed=0))
        if self.cuda_graphs:
            key = (*key, *weights_key(self.model))
            if self._kept is not None and self._kept[1].asynchronous and self._kept[0] == key:
                return self._kept[1]
        self._kept = (key, self._new_decoder(plan, parts, params))
        return self._kept[1]

    def _new_decoder(self, plan: Plan, parts: int, params: SamplingParams) -> Decoder:
        model, heads = self.model, TextShape.of(self.model.base.config).heads
        cache = DecodeCache(self._pool(plan), heads, plan.num_slots, plan.capacity, parts)
        slots = Slots(plan.num_slots, params.max_tokens, params.stop_token_ids or (), model.device)
        forbidden = model.processor.forbidden_token_ids
        sampler = Sampler(params, model.head, model.softcap, forbidden)
        graphs = self.cuda_graphs and self.memory_gib is not None
        return Decoder(model, cache, slots, sampler, cuda_graphs=graphs)

    def _pool(self, plan: Plan) -> KeyValuePool:
        wanted = (plan.num_tokens, self._dtype, self.model.device)
        kept = None if self._kept is None else self._kept[1].cache.pool
        self._kept = None  # first, so that there are never two
        if kept is not None and (kept.num_tokens, kept.dtype, kept.device) == wanted:
            return kept
        del kept
        return KeyValuePool(TextShape.of(self.model.base.config), *wanted)

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """A failure may leave what is not finite in the memory: the next call makes it anew."""
        try:
            yield
        except BaseException:
            self._kept = None
            raise

    def _features(self, images: list[Image]) -> ImageFeatures:
        # not in inference mode: its tensors, kept in a cache, could not be trained with
        given = None if self.features is None else self.features(images)
        return self.model.encode_images(images) if given is None else given


def _free_bytes(device: torch.device) -> int | None:
    """Of a GPU, with what torch holds and does not use; None for the CPU."""
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + int(unused)


def _per_prompt(num_responses: int | Sequence[int], num_prompts: int) -> list[int]:
    if isinstance(num_responses, int):
        return [num_responses] * num_prompts
    return list(num_responses)


def _check(prompts: Sequence[Prompt], counts: list[int], streams: Sequence[int]) -> None:
    if len(counts) != len(prompts) or len(streams) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts, {len(counts)} num_responses and {len(streams)} streams"
        )
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        if len(prompt.ids) == 0:
            raise ValueError(f"prompt {index} is empty")
        if count < 0:
            raise ValueError(f"prompt {index}: num_responses must not be negative, got {count}")


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
