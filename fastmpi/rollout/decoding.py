"""What a batch of responses has so far, step by step, and which of them still run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastmpi.rollout.engine import Response


class Decoding:
    """What B responses have so far; rows of finished ones go on until the next `compact`."""

    def __init__(self, random: Tensor, stop_token_ids: Sequence[int]) -> None:
        self._random = random  # (B, max_tokens)
        self._stop = torch.tensor(list(stop_token_ids), dtype=torch.int64, device=random.device)
        self._tokens = torch.zeros_like(random, dtype=torch.int64)
        self._logprobs = torch.zeros_like(random)
        self._lengths = random.new_full(random.shape[:1], random.shape[1], dtype=torch.int64)
        self._finished = torch.zeros_like(self._lengths, dtype=torch.bool)
        self._rows = torch.arange(len(random), device=random.device)  # responses in the batch
        self._running = torch.ones_like(self._rows, dtype=torch.bool)
        self.num_running = len(random)
        self.num_tokens = 0

    def uniform(self, step: int) -> Tensor:
        return self._random[self._rows, step]

    def add(self, step: int, tokens: Tensor, logprobs: Tensor) -> Tensor:
        """Note one token of each row; returns the tokens."""
        self._tokens[self._rows, step] = tokens
        self._logprobs[self._rows, step] = logprobs.to(self._logprobs.dtype)
        self.num_tokens += self.num_running
        stopped = self._running & torch.isin(tokens, self._stop)
        self._lengths[self._rows[stopped]] = step + 1
        self._finished[self._rows[stopped]] = True
        self._running &= ~stopped
        self.num_running = int(self._running.sum())
        return tokens

    @property
    def any_running(self) -> bool:
        return self.num_running > 0

    @property
    def num_responses(self) -> int:
        return len(self._lengths)

    @property
    def num_finished(self) -> int:
        return self.num_responses - self.num_running

    @property
    def share_finished(self) -> float:
        return 1 - self.num_running / len(self._rows)

    def compact(self) -> Tensor:
        """Forget rows of finished responses; returns the rows that stay."""
        kept = self._running.nonzero()[:, 0]
        self._rows = self._rows[kept]
        self._running = self._running[kept]
        return kept

    def responses(self) -> list[Response]:
        """Numpy copies, cut to their lengths. `ValueError` if the logits were not finite."""
        tokens, logprobs = self._tokens.cpu().numpy(), self._logprobs.float().cpu().numpy()
        lengths, finished = self._lengths.tolist(), self._finished.tolist()
        made = [
            Response(tokens[b, :length].copy(), logprobs[b, :length].copy(), finished[b])
            for b, length in enumerate(lengths)
        ]
        if not all(np.isfinite(response.logprobs).all() for response in made):
            raise ValueError("the model's logits are not finite: its weights have diverged")
        return made
