"""What vLLM is asked for a response, in this process or on a server, and what its answer becomes.

Written against vLLM 0.33. One request is one response with a seed of its own, so that a response
does not depend on how vLLM numbers the outputs of a request; vLLM's prefix cache keeps what the
requests of a prompt share, the policy and the pictures too. The seed fixes the random numbers.
vLLM's logits may differ in their last bits with the batch, and then tokens may too, unless
VLLM_BATCH_INVARIANT=1 is set.

Log-probs: a `Response` holds those at the sampling temperature over the whole vocabulary. vLLM
gives them before the temperature ("raw_logprobs") or after temperature, forbidden tokens, top-k
and top-p ("processed_logprobs"). At temperature 1 the former are ours, whatever else is set; at
another one the latter are, but for the mass of forbidden tokens, as long as top-k and top-p are
off. What remains is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmpi.data.processor import Processor
from fastmpi.data.samples import Prompt
from fastmpi.rollout.engine import Response
from fastmpi.rollout.sampling import SamplingParams, bits_of

_FORBIDDEN_BIAS = -100.0  # added to a logit; the server takes no less
_MAX_FORBIDDEN = 1024
_NO_LOGPROB = -9999.0  # what a server sends instead of NaN and -inf


@dataclass(frozen=True, eq=False)
class Request:
    """One response to ask for. number: of the prompt. ids: one placeholder a picture, which vLLM
    expands itself."""

    number: int
    prompt: Prompt
    ids: list[int]
    seed: int


def logprobs_mode(temperature: float) -> str:
    """vLLM's mode whose log-probs are those of `Response` at `temperature`."""
    return "raw_logprobs" if temperature in (0, 1) else "processed_logprobs"


def check_params(params: SamplingParams, mode: str) -> None:
    """`ValueError` for what vLLM cannot sample, or not give our log-probs of under `mode`."""
    temperature, truncated = params.temperature, params.top_p < 1 or params.top_k > 0
    if temperature > 2 or 0 < temperature < 0.01:
        raise ValueError(f"vLLM takes temperature 0 or one in [0.01, 2], not {temperature}")
    if mode == "raw_logprobs" and temperature not in (0, 1):
        raise ValueError(
            f"temperature {temperature}: this engine gives log-probs before the temperature "
            "(logprobs_mode raw_logprobs)"
        )
    if mode == "processed_logprobs" and temperature and truncated:
        raise ValueError(
            f"top_p or top_k with temperature {temperature}: vLLM's log-probs are then those "
            "within the truncated tokens; take temperature 1, or neither of the two"
        )


def make_requests(
    prompts: Sequence[Prompt],
    num_responses: int | Sequence[int],
    params: SamplingParams,
    streams: Sequence[int] | None,
    processor: Processor,
) -> list[Request]:
    """One for each response, all of a prompt one after the other; arguments of `Engine.generate`.
    `ValueError` where they are not as many as prompts."""
    counts = [num_responses] * len(prompts) if isinstance(num_responses, int) else num_responses
    streams = range(len(prompts)) if streams is None else streams
    if any(prompt.images for prompt in prompts) and isinstance(processor.pixel_rule, str):
        raise ValueError(
            f"vLLM cannot be given the pictures of training: {processor.pixel_rule}, so they are "
            "kept as floats; sample with the model itself"
        )
    return [
        Request(number, prompt, ids, response_seed(params.seed, stream, response))
        for number, (prompt, count, stream) in enumerate(zip(prompts, counts, streams, strict=True))
        for ids in [collapse(prompt, processor.image_token_id)]
        for response in range(count)
    ]


def collapse(prompt: Prompt, image_token_id: int) -> list[int]:
    """The prompt's ids with one placeholder for each picture."""
    ids, images = prompt.ids.tolist(), iter(prompt.images)
    kept, at = [], 0
    while at < len(ids):
        kept.append(ids[at])
        at += next(images).num_tokens if ids[at] == image_token_id else 1
    return kept


def response_seed(seed: int, stream: int, response: int) -> int:
    """In [0, 2**63), of one response; from the bits that `sampling.uniforms` reads."""
    return int(bits_of(seed, stream, response).random_raw()) >> 1


def sampling_values(params: SamplingParams, processor: Processor, seed: int) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams. All that a server has defaults for is named.

    Forbidden tokens get a bias of -100 on their logit, which takes any id, unlike words; `answer`
    makes sure of it. vLLM's own end-of-turn tokens are ignored: ours are all that stop.
    """
    forbidden = {*processor.forbidden_token_ids, *params.forbidden_token_ids}
    if len(forbidden) > _MAX_FORBIDDEN:
        raise ValueError(f"vLLM forbids {_MAX_FORBIDDEN} tokens at most, not {len(forbidden)}")
    return {
        "n": 1,
        "seed": seed,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_tokens": params.max_tokens,
        "stop_token_ids": list(stop_ids(params, processor)),
        "ignore_eos": True,
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
        "logit_bias": dict.fromkeys(sorted(forbidden), _FORBIDDEN_BIAS),
    }


def stop_ids(params: SamplingParams, processor: Processor) -> tuple[int, ...]:
    """The tokens that end a response."""
    return processor.eos_token_ids if params.stop_token_ids is None else params.stop_token_ids


def answer(
    request: Request,
    params: SamplingParams,
    processor: Processor,
    *,
    prompt_ids: Sequence[int],
    ids: Sequence[int],
    logprobs: Sequence[float],
    finish_reason: str | None,
) -> Response:
    """What vLLM sent back, checked. prompt_ids: the prompt as vLLM read it.

    `RuntimeError` for an answer that training could not use.
    """
    if list(prompt_ids) != request.prompt.ids.tolist():
        raise RuntimeError(
            f"prompt {request.number}: vLLM read {len(prompt_ids)} tokens where training has "
            f"{len(request.prompt.ids)}; its tokenizer or image processor has other settings"
        )
    if finish_reason not in ("stop", "length"):
        raise RuntimeError(f"prompt {request.number}: vLLM ended a response by {finish_reason!r}")
    forbidden = {*processor.forbidden_token_ids, *params.forbidden_token_ids}
    if found := forbidden.intersection(ids):
        raise RuntimeError(f"prompt {request.number}: vLLM sampled {min(found)}, a forbidden token")
    scores = np.asarray(logprobs, dtype=np.float32)
    if len(scores) != len(ids) or not (np.isfinite(scores) & (scores > _NO_LOGPROB)).all():
        raise RuntimeError(
            f"prompt {request.number}: vLLM has no finite log-prob for every token that it sampled"
        )
    return Response(np.asarray(ids, dtype=np.int64), scores, finish_reason == "stop")


def by_prompt(
    requests: Sequence[Request], responses: Sequence[Response], num_prompts: int
) -> list[list[Response]]:
    """The responses of each prompt."""
    results: list[list[Response]] = [[] for _ in range(num_prompts)]
    for request, response in zip(requests, responses, strict=True):
        results[request.number].append(response)
    return results
