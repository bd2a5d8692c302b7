"""What the stages train on: token ids, pictures, and a loss weight per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastmpi.data.images import Image


@dataclass(frozen=True, eq=False)
class Prompt:
    """A chat up to the assistant's turn.

    ids: (L,) int64, every picture already expanded to its placeholder tokens.
    images: in the order of their placeholder runs.
    """

    ids: np.ndarray
    images: tuple[Image, ...] = ()


class LazyPrompt(Prompt):
    """A prompt that `make` makes when it is first looked at; most never are where another process
    holds what was sampled from it."""

    def __init__(self, make: Callable[[], Prompt]) -> None:
        object.__setattr__(self, "_make", make)

    @cached_property
    def _made(self) -> Prompt:
        return self._make()

    _make: Callable[[], Prompt]

    @property
    def ids(self) -> np.ndarray:  # type: ignore[override]
        return self._made.ids

    @property
    def images(self) -> tuple[Image, ...]:  # type: ignore[override]
        return self._made.images


@dataclass(frozen=True, eq=False)
class Sample:
    """One sequence to train on.

    ids: (L,) int64, pictures expanded. images: in the order of their runs.
    weights: (L,) float32; `weights[i]` weighs the loss of predicting `ids[i]` from the tokens
        before it, so `weights[0]` is 0.
    """

    ids: np.ndarray
    images: tuple[Image, ...]
    weights: np.ndarray

    def __post_init__(self) -> None:
        assert self.ids.shape == self.weights.shape, (self.ids.shape, self.weights.shape)
        assert len(self.ids) == 0 or self.weights[0] == 0, "nothing predicts a first token"

    @classmethod
    def from_prompt(
        cls, prompt: Prompt, response_ids: np.ndarray, *, response_weight: float = 1.0
    ) -> Sample:
        """`prompt` with weight 0, then the response with `response_weight` a token."""
        weights = np.zeros(len(prompt.ids) + len(response_ids), dtype=np.float32)
        weights[len(prompt.ids) :] = response_weight
        return cls(np.concatenate([prompt.ids, response_ids]), prompt.images, weights)

    @classmethod
    def all_text(cls, prompt: Prompt, response_ids: np.ndarray, image_token_id: int) -> Sample:
        """Weight 1 on every token but picture placeholders and the first (VM-CPT)."""
        ids = np.concatenate([prompt.ids, response_ids])
        weights = (ids != image_token_id).astype(np.float32)
        weights[0] = 0.0
        return cls(ids, prompt.images, weights)
