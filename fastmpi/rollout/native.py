"""The built-in engine: transformers' text tower, one forest of prompts, one cache per prompt.

Unusual: all distinct prompts of a wave are prefilled as one forest, so that prompts which begin
alike (the policy, the picture) run that beginning once; then every response decodes against the
one copy of its prompt's keys and values, and all prompts of a policy against one copy of that.
Prompts are merged by their tokens and pictures here, and only here: groups are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from fastmpi.data.images import Image
from fastmpi.data.samples import Prompt
from fastmpi.models.features import ImageFeatures
from fastmpi.models.forest_model import ForestModel
from fastmpi.rollout.decoding import Decoding
from fastmpi.rollout.engine import Response
from fastmpi.rollout.prefill import Prefill, prefill
from fastmpi.rollout.sampling import Sampler, SamplingParams, uniforms

# Finished responses leave the batch when they are at least this share of it.
_COMPACT_SHARE = 0.25

# progress(responses finished, responses in all, tokens so far)
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True, eq=False)
class _Request:
    """A distinct prompt and who asked for it: (index of the prompt, index of the response)."""

    prompt: Prompt
    members: list[tuple[int, int]]


class NativeEngine:
    """Samples with the model that is being trained, in its own process.

    max_prompt_tokens, max_responses: what one wave holds at most (a prompt is never split); they
    bound memory and never change a response. min_shared_tokens: from how many tokens on the common
    beginning of several prompts is held once for all of them. features: where the features of
    pictures come from, a cache shared with training for instance; None from it, or no such
    function: encoded here. progress: called after every decoding step.
    """

    def __init__(
        self,
        model: ForestModel,
        *,
        max_prompt_tokens: int = 65_536,
        max_responses: int = 1_024,
        min_shared_tokens: int = 64,
        features: Callable[[Sequence[Image]], ImageFeatures | None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.features = features
        self.max_prompt_tokens = max_prompt_tokens
        self.max_responses = max_responses
        self.min_shared_tokens = min_shared_tokens
        self.progress = progress

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
        """
        counts = _per_prompt(num_responses, len(prompts))
        streams = range(len(prompts)) if streams is None else streams
        _check(prompts, counts, streams)
        results: list[list[Response]] = [[] for _ in prompts]
        with _evaluating(self.model), torch.no_grad():
            sampler = self._sampler(params)
            done = _Done(sum(counts), self.progress)
            for wave in self._waves(_distinct(prompts, counts)):
                # not in inference mode: its tensors, kept in a cache, could not be trained with
                features = self._features([i for request in wave for i in request.prompt.images])
                with torch.inference_mode():
                    read = self._prefill(wave, features)
                    members = [member for at in read.order for member in wave[at].members]
                    random = [
                        uniforms(params.seed, streams[p], i, params.max_tokens) for p, i in members
                    ]
                    responses = self._decode(read, params, sampler, np.stack(random), done)
                for (prompt, _), response in zip(members, responses, strict=True):
                    results[prompt].append(response)
        return results

    def _features(self, images: list[Image]) -> ImageFeatures:
        given = None if self.features is None else self.features(images)
        return self.model.encode_images(images) if given is None else given

    def _sampler(self, params: SamplingParams) -> Sampler:
        forbidden = self.model.processor.forbidden_token_ids
        return Sampler(params, self.model.head, self.model.softcap, forbidden)

    def _waves(self, requests: list[_Request]) -> Iterator[list[_Request]]:
        wave: list[_Request] = []
        tokens = responses = 0
        for request in requests:
            tokens += len(request.prompt.ids)
            responses += len(request.members)
            if wave and (tokens > self.max_prompt_tokens or responses > self.max_responses):
                yield wave
                wave, tokens, responses = [], len(request.prompt.ids), len(request.members)
            wave.append(request)
        if wave:
            yield wave

    def _prefill(self, wave: list[_Request], features: ImageFeatures) -> Prefill:
        prompts = [request.prompt for request in wave]
        counts = [len(request.members) for request in wave]
        return prefill(
            self.model, prompts, counts, features, min_shared_tokens=self.min_shared_tokens
        )

    def _decode(
        self,
        read: Prefill,
        params: SamplingParams,
        sampler: Sampler,
        random: np.ndarray,  # (B, max_tokens)
        done: _Done,
    ) -> list[Response]:
        """Responses of one wave, in the order of `read`."""
        hidden, positions, cache = read.hidden, read.positions, read.cache
        stop_token_ids = params.stop_token_ids
        if stop_token_ids is None:
            stop_token_ids = self.model.processor.eos_token_ids
        state = Decoding(torch.from_numpy(random).to(hidden.device), stop_token_ids)
        for step in range(params.max_tokens):
            tokens = state.add(step, *sampler(hidden, state.uniform(step)))
            done.report(state)
            if step + 1 == params.max_tokens or not state.any_running:
                break
            if state.share_finished >= _COMPACT_SHARE:
                kept = state.compact()
                cache.keep(kept)
                tokens, positions = tokens[kept], positions[kept]
            hidden = self.model.decode(tokens, (positions + step).expand(3, -1), cache)
            cache.advance()
        done.add(state)
        return state.responses()


@dataclass
class _Done:
    """Sums over waves, for the progress callback."""

    total: int
    progress: Progress | None
    finished: int = 0
    tokens: int = 0

    def report(self, state: Decoding) -> None:
        if self.progress is not None:
            finished = self.finished + state.num_finished
            self.progress(finished, self.total, self.tokens + state.num_tokens)

    def add(self, state: Decoding) -> None:
        self.finished += state.num_responses
        self.tokens += state.num_tokens


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


def _distinct(prompts: Sequence[Prompt], counts: list[int]) -> list[_Request]:
    requests: dict[tuple[bytes, tuple[str, ...]], _Request] = {}
    for index, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        if count:
            key = (prompt.ids.tobytes(), tuple(image.key for image in prompt.images))
            request = requests.setdefault(key, _Request(prompt, []))
            request.members.extend((index, i) for i in range(count))
    return list(requests.values())


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
