"""The built-in engine: transformers' text tower over one memory of keys and values.

Unusual: distinct prompts are read as a forest, so that prompts which begin alike (the policy, the
picture) run that beginning once; then every response decodes against the one copy of its prompt's
keys and values, and all prompts of a policy against one copy of that. Prompts are merged by their
tokens and pictures here, and only here: groups are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from fastmpi.data.images import Image
from fastmpi.data.samples import Prompt
from fastmpi.models.features import ImageFeatures
from fastmpi.models.forest_model import ForestModel
from fastmpi.models.sizes import TextShape
from fastmpi.rollout.cache import DecodeCache, count_parts
from fastmpi.rollout.continuous import ContinuousBatch
from fastmpi.rollout.engine import Response
from fastmpi.rollout.plan import GIB, Plan, make_plan
from fastmpi.rollout.pool import KeyValuePool, token_bytes
from fastmpi.rollout.sampling import Sampler, SamplingParams, uniforms
from fastmpi.rollout.segments import Request, lay_out, make_requests

# progress(responses finished, responses in all, tokens so far)
Progress = Callable[[int, int, int], None]


class NativeEngine:
    """Samples with the model that is being trained, in its own process.

    memory_gib: GiB for keys and values, of which as many responses and prompts are held as fit;
    allocated at the first call and kept. None: what `max_responses` need, freed after each call.
    max_responses: written together at most. max_prompt_tokens: read together at most (a prompt is
    never split). min_shared_tokens: from how many tokens on the common beginning of several prompts
    is held once for all of them. None of these changes a response. features: where the features of
    pictures come from, a cache shared with training for instance; None from it, or no such
    function: encoded here. progress: called after every decoding step.
    """

    def __init__(
        self,
        model: ForestModel,
        *,
        memory_gib: float | None = None,
        max_prompt_tokens: int = 65_536,
        max_responses: int = 1_024,
        min_shared_tokens: int = 64,
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
        self._kept: KeyValuePool | None = None

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
            with _evaluating(self.model), torch.no_grad():
                batch = self._batch(requests, params, streams)
                for ended in batch.run():
                    written.update(ended)
                    if self.progress is not None:
                        self.progress(len(written), sum(counts), batch.num_tokens)
        return [[written[p, i] for i in range(count)] for p, count in enumerate(counts)]

    def _batch(
        self, requests: list[Request], params: SamplingParams, streams: Sequence[int]
    ) -> ContinuousBatch:
        processor = self.model.processor
        on_cpu = self.model.device.type == "cpu"
        requests = lay_out(requests, processor, self.min_shared_tokens, pad=on_cpu)
        plan = self.plan(requests, params.max_tokens)
        stop = params.stop_token_ids
        return ContinuousBatch(
            self.model,
            self._cache(plan, requests),
            plan,
            requests,
            Sampler(params, self.model.head, self.model.softcap, processor.forbidden_token_ids),
            processor.eos_token_ids if stop is None else stop,
            random=lambda at: uniforms(params.seed, streams[at[0]], at[1], params.max_tokens),
            features=self._features,
            max_prompt_tokens=self.max_prompt_tokens,
        )

    def plan(self, requests: Sequence[Request], max_tokens: int) -> Plan:
        """How the memory is divided between the prompts and responses of one call."""
        return make_plan(
            requests,
            max_tokens,
            max_responses=self.max_responses,
            num_tokens=self._num_tokens(),
            token_bytes=self._token_bytes,
        )

    @property
    def _token_bytes(self) -> int:
        return token_bytes(TextShape.of(self.model.base.config), self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """That of keys and values."""
        device = self.model.device.type
        enabled = torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if enabled else self.model.dtype

    def _num_tokens(self) -> int | None:
        """Tokens that the stated memory holds."""
        return None if self.memory_gib is None else int(self.memory_gib * GIB) // self._token_bytes

    def _cache(self, plan: Plan, requests: Sequence[Request]) -> DecodeCache:
        heads = TextShape.of(self.model.base.config).heads
        parts = count_parts(requests)
        return DecodeCache(self._pool(plan), heads, plan.num_slots, plan.capacity, parts)

    def _pool(self, plan: Plan) -> KeyValuePool:
        dtype, device = self._dtype, self.model.device
        kept = self._kept
        if kept and kept.num_tokens == plan.num_tokens and kept.storage.dtype == dtype:
            if kept.storage.device == device:
                return kept
        self._kept = None  # first, so that there are never two
        text = TextShape.of(self.model.base.config)
        pool = KeyValuePool(text, plan.num_tokens, dtype, device)
        if self.memory_gib is not None:
            self._kept = pool
        return pool

    def _features(self, images: list[Image]) -> ImageFeatures:
        # not in inference mode: its tensors, kept in a cache, could not be trained with
        given = None if self.features is None else self.features(images)
        return self.model.encode_images(images) if given is None else given


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
