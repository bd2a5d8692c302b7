"""From logits to tokens.

Unusual: a token is drawn by inverting the cumulative distribution at one uniform number, and the
uniforms of a response come from a counter-based generator keyed by (seed, stream, response). So a
response does not change with the batch that it is sampled in, and no generator state needs saving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastmpi.reference.token_logprob import score_dtype, shaped_logits

_PIECE = 256  # tokens


@dataclass(frozen=True)
class SamplingParams:
    """How to sample.

    max_tokens: longest response, stop token included. temperature: 0 is greedy. top_p, top_k: 1 and
    0 are off; top-k first, then top-p, as in transformers and vLLM. stop_token_ids: None means the
    model's own end-of-turn tokens. forbidden_token_ids: never sampled, beside the model's
    placeholders, which never are.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_token_ids: tuple[int, ...] | None = None
    forbidden_token_ids: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or above, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (off) or above, got {self.top_k}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must lie in [0, 2**64), got {self.seed}")


def uniforms(seed: int, stream: int, response: int, count: int) -> np.ndarray:
    """(count,) float64 in [0, 1): the numbers of one response, one a token."""
    return np.random.Generator(bits_of(seed, stream, response)).random(count)


def bits_of(seed: int, stream: int, response: int) -> np.random.Philox:
    """The random bits of one response."""
    key = np.array([seed, stream], dtype=np.uint64)  # a list of large numbers would become floats
    return np.random.Philox(key=key, counter=[0, response, 0, 0])


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """``logits`` (B, V) with -inf below the `top_k` largest of each row."""
    smallest = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """``logits`` (B, V) with -inf outside the fewest likeliest tokens of mass `top_p` or more."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    mass_before = probabilities.cumsum(-1) - probabilities
    ordered = ordered.masked_fill(mass_before >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def invert_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """(B,) the first token whose cumulative share of `weights` (B, V) exceeds `uniform` (B,)
    float64 in [0, 1).

    A token of weight 0 adds nothing to the sum before it, so it is never the first. The sums of
    pieces of the vocabulary are searched first, so that only one piece is summed token by token.
    """
    size = weights.shape[-1]
    whole = size // _PIECE * _PIECE
    sums = weights[:, :whole].unflatten(-1, (-1, _PIECE)).sum(-1) if whole else weights[:, :0]
    sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], -1).double()
    ends = sums.cumsum(-1)
    points = uniform[:, None] * ends[:, -1:]  # rounds to less than the total, as uniform < 1
    piece = torch.searchsorted(ends, points, right=True).clamp_(max=sums.shape[-1] - 1)
    index = piece * _PIECE + torch.arange(_PIECE, device=weights.device)
    inside = weights.gather(-1, index.clamp(max=size - 1)).double()
    inside = inside.masked_fill_(index >= size, 0).cumsum(-1)
    points = points - (ends - sums).gather(-1, piece)
    # the sum of a piece was rounded: its own tokens end where they end
    below = inside[:, -1:].nextafter(torch.zeros_like(points))
    place = torch.searchsorted(inside, points.clamp(min=0).minimum(below), right=True)
    return (piece * _PIECE + place)[:, 0].clamp(max=size - 1)  # NaN: see ContinuousBatch


def logits_held(top_k: int, top_p: float) -> int:
    """How many tensors as large as the logits (B, V) a draw holds at once: logits and weights, and
    what sorts and masks them."""
    return 2 + 2 * (top_k > 0) + 6 * (top_p < 1)


class Sampler:
    """Draws the next token of every row from the hidden state of the last one."""

    def __init__(
        self,
        params: SamplingParams,
        head: Tensor,  # (V, H)
        softcap: float | None,
        forbidden_token_ids: Sequence[int],
    ) -> None:
        vocabulary = head.shape[0]
        forbidden = sorted({*forbidden_token_ids, *params.forbidden_token_ids})
        if any(not 0 <= token < vocabulary for token in params.forbidden_token_ids):
            raise ValueError(f"forbidden_token_ids must lie in [0, {vocabulary})")
        forbidden = [token for token in forbidden if token < vocabulary]
        if len(forbidden) == vocabulary:
            raise ValueError("every token is forbidden")
        self._params = params
        self._head = head.detach()
        if not head.is_cuda:  # CUDA multiplies 16-bit operands into float32, the CPU does not
            self._head = self._head.to(score_dtype(head.dtype))
        self._softcap = softcap
        self._forbidden = torch.tensor(forbidden, dtype=torch.int64, device=head.device)

    def __call__(self, hidden: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B,) and their log-probs (B,) from hidden states (B, H) and uniforms (B,)."""
        params = self._params
        logits = shaped_logits(self._product(hidden), params.temperature or 1.0, self._softcap)
        forbidden = logits[:, self._forbidden].logsumexp(-1)
        logits = logits.index_fill_(-1, self._forbidden, -torch.inf)
        greatest, likeliest = logits.max(-1, keepdim=True)
        weights = (logits - greatest).exp_()  # the one pass of exponentials
        allowed = greatest[:, 0] + weights.sum(-1).log()
        tokens = (
            likeliest[:, 0] if params.temperature == 0 else self._draw(logits, weights, uniform)
        )
        chosen = logits.gather(-1, tokens[:, None])[:, 0]
        return tokens, chosen - torch.logaddexp(allowed, forbidden)

    def _product(self, hidden: Tensor) -> Tensor:
        """(B, V) logits, in float32 at least."""
        hidden = hidden.to(self._head.dtype)
        with torch.autocast(hidden.device.type, enabled=False):  # it would round them to bfloat16
            if self._head.element_size() == 2:
                return torch.mm(hidden, self._head.T, out_dtype=torch.float32)
            return hidden @ self._head.T

    def _draw(self, logits: Tensor, weights: Tensor, uniform: Tensor) -> Tensor:
        if self._params.top_k:
            logits = keep_top_k(logits, self._params.top_k)
        if self._params.top_p < 1:
            logits = keep_top_p(logits, self._params.top_p)
        if self._params.top_k or self._params.top_p < 1:
            weights = weights.masked_fill(logits == -torch.inf, 0)
        return invert_cdf(weights, uniform)
