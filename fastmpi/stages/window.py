"""The responses that a stretch of optimiser steps trains on: a generation window.

Legend: S responses of all processes, whole groups one after the other; M tokens of the responses,
in order. Every process holds all of them, as who trains on which is planned anew for each step.
Unusual: a window holds everything that sampling and scoring made, so a checkpoint can keep
it and a killed run goes on in its middle; prompts are not kept but rendered again from their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmpi.data.samples import Prompt, Sample

_REWARD = "reward."


@dataclass(frozen=True)
class Window:
    """Sampled and scored responses.

    prompts: (S,) the policy-free prompt of each. rows: (S,) int64, the row of the data set.
    policy_aware: (S,) bool, the arm. ids, sampled_logprob: (M,) tokens, and their log-probs under
    the prompt they were sampled with. lengths: (S,) int64. finished: (S,) bool.
    parts: reward function -> (S,) float64, NaN where it does not apply. rewards: (S,) float64,
    their weighted sum. advantages: (S,). old_logprob, ref_logprob: (M,) under the policy-free
    prompt. extra: columns that reward functions logged, for the table of completions only.
    """

    prompts: Sequence[Prompt]
    rows: Tensor
    policy_aware: Tensor
    ids: Tensor
    sampled_logprob: Tensor
    lengths: Tensor
    finished: Tensor
    parts: dict[str, Tensor]
    rewards: Tensor
    advantages: Tensor
    old_logprob: Tensor | None = None
    ref_logprob: Tensor | None = None
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def first_column(self) -> Tensor:
        """(S,) int64: token i of sample s (prompt included) is column first_column[s] + i of the
        (M,) tensors."""
        prompt_lengths = torch.tensor([len(p.ids) for p in self.prompts], dtype=torch.int64)
        return self.lengths.cumsum(0) - self.lengths - prompt_lengths

    def response(self, index: int) -> np.ndarray:
        """(L,) int64 token ids of one response."""
        end = int(self.lengths[: index + 1].sum())
        return self.ids[end - int(self.lengths[index]) : end].numpy()

    def sample(self, index: int) -> Sample:
        """What is trained on: the policy-free prompt and the response, whatever its arm."""
        return Sample.from_prompt(self.prompts[index], self.response(index))

    def samples(self) -> list[Sample]:
        """All samples, in order."""
        return [self.sample(i) for i in range(len(self))]

    def take(self, indices: Sequence[int]) -> Window:
        """The responses of these numbers, in this order."""
        return Window.join([self.part(0, 0), *(self.part(i, i + 1) for i in indices)])

    def columns(self, indices: Sequence[int]) -> Tensor:
        """(m,) int64: where the tokens of these responses lie in the (M,) tensors."""
        ends = self.lengths.cumsum(0)
        spans = [torch.arange(int(ends[i] - self.lengths[i]), int(ends[i])) for i in indices]
        return torch.cat([torch.zeros(0, dtype=torch.int64), *spans])

    def part(self, start: int, stop: int) -> Window:
        """Responses start to stop."""
        first, last = int(self.lengths[:start].sum()), int(self.lengths[:stop].sum())

        def tokens(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[first:last]

        return replace(
            self,
            prompts=self.prompts[start:stop],
            **{name: getattr(self, name)[start:stop] for name in _PER_RESPONSE},
            **{name: tokens(getattr(self, name)) for name in _PER_TOKEN},
            parts={name: values[start:stop] for name, values in self.parts.items()},
            extra={name: values[start:stop] for name, values in self.extra.items()},
        )

    @classmethod
    def join(cls, windows: Sequence[Window]) -> Window:
        """One after the other; columns of `extra` that not all of them have are left out."""
        first = windows[0]
        shared = set.intersection(*(set(window.extra) for window in windows))
        tensors = [name for name in _PER_RESPONSE + _PER_TOKEN if getattr(first, name) is not None]
        return cls(
            prompts=[prompt for window in windows for prompt in window.prompts],
            parts={n: torch.cat([w.parts[n] for w in windows]) for n in first.parts},
            extra={n: [v for w in windows for v in w.extra[n]] for n in sorted(shared)},
            **{n: torch.cat([getattr(w, n) for w in windows]) for n in tensors},
        )

    def tensors(self) -> dict[str, Tensor]:
        """All but prompts and extra, to be kept in a checkpoint."""
        kept = {name: getattr(self, name) for name in _PER_RESPONSE + _PER_TOKEN}
        kept |= {f"{_REWARD}{name}": values for name, values in self.parts.items()}
        return {name: values for name, values in kept.items() if values is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], prompts: Sequence[Prompt]) -> Window:
        """Undo `tensors`."""
        parts = {
            name.removeprefix(_REWARD): values
            for name, values in tensors.items()
            if name.startswith(_REWARD)
        }
        fields = {name: t for name, t in tensors.items() if not name.startswith(_REWARD)}
        return cls(prompts=prompts, parts=parts, **fields)


_PER_RESPONSE = ("rows", "policy_aware", "lengths", "finished", "rewards", "advantages")
_PER_TOKEN = ("ids", "sampled_logprob", "old_logprob", "ref_logprob")
