"""What an engine takes and returns: `native.py` is one, a server behind an API may be another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastmpi.data.samples import Prompt
from fastmpi.rollout.sampling import SamplingParams


@dataclass(frozen=True, eq=False)
class Response:
    """What the model wrote.

    ids: (L,) int64, with the stop token if it came. logprobs: (L,) float32, of each token under the
    sampling temperature (1 for greedy) and the whole vocabulary: before top-k, top-p and forbidden
    tokens, so that they compare with a training forward. finished: False if `max_tokens` cut it.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    finished: bool


class Engine(Protocol):
    """Samples responses to prompts."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        num_responses: int | Sequence[int],
        params: SamplingParams,
        *,
        streams: Sequence[int] | None = None,
    ) -> list[list[Response]]:
        """`num_responses` to each prompt (one number, or one per prompt), in the prompts' order.

        `streams` names each prompt's random stream; by default its index. Response i of a prompt
        depends on (weights, prompt, params, stream, i) alone, not on what is generated beside it.
        """
        ...
