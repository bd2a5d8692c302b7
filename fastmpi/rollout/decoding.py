"""What the responses of the batch have so far, on the device.

Legend: S slots, B of them in the batch (the first), T most tokens of a response.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Slots:
    """Rows of a batch, each with one response; nothing here waits for the device but `take`.

    tokens: (S,) the newest token of each. places: (S,) how many of its tokens were read before it.
    stopped: (S,) whether a stop token came. A slot whose response ended goes on until it is given
    to another, over its own last places.
    """

    def __init__(
        self, num_slots: int, max_tokens: int, stop_token_ids: Sequence[int], device: torch.device
    ) -> None:
        self.tokens = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self.places = torch.zeros_like(self.tokens)
        self.stopped = torch.zeros_like(self.tokens, dtype=torch.bool)
        self._first = torch.zeros_like(self.tokens)  # position of a response's first token
        self._written = self.tokens.new_zeros(num_slots, max_tokens)
        self._logprobs = self._written.float()
        self._random = self._written.double()
        self._stop = torch.tensor(list(stop_token_ids), dtype=torch.int64, device=device)
        self._last = max_tokens - 1

    def start(self, slots: Tensor, positions: Tensor, random: np.ndarray) -> Tensor:
        """New responses in `slots` (K,), random (K, T). Gives what draws their first tokens."""
        self._random[slots] = torch.from_numpy(random).to(self._random.device)
        self._first[slots] = positions
        self.places[slots] = -1
        return self._random[slots, 0]

    def started(self, slots: Tensor, tokens: Tensor, logprobs: Tensor) -> None:
        """The first tokens of the responses in `slots`."""
        self.places[slots] = 0
        self.tokens[slots] = tokens
        self._written[slots, 0] = tokens
        self._logprobs[slots, 0] = logprobs.to(self._logprobs.dtype)
        self.stopped[slots] = self._stops(tokens)

    def positions(self, num_rows: int) -> Tensor:
        """(3, B) of the newest tokens."""
        return (self._first[:num_rows] + self.places[:num_rows]).expand(3, -1)

    def uniform(self, num_rows: int) -> Tensor:
        """(B,) the numbers that draw the tokens after the newest."""
        return self._random[:num_rows].gather(1, self._next(num_rows))[:, 0]

    def add(self, tokens: Tensor, logprobs: Tensor) -> None:
        """One token more for each of the B rows."""
        count = len(tokens)
        index = self._next(count)
        self.tokens[:count] = tokens
        self._written[:count].scatter_(1, index, tokens[:, None])
        logprobs = logprobs.to(self._logprobs.dtype)
        self._logprobs[:count].scatter_(1, index, logprobs[:, None])
        self.stopped[:count] |= self._stops(tokens)
        # a row that ended writes its last place again and again
        self.places[:count] = index[:, 0].clamp(max=max(self._last - 1, 0))

    def _next(self, num_rows: int) -> Tensor:
        return self.places[:num_rows, None] + 1

    def _stops(self, tokens: Tensor) -> Tensor:
        return (tokens[:, None] == self._stop).any(-1)

    def take(self, slots: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and log-probs of `slots`, (K, T) each, as far as they are written.

        These slots go on from their first place, so that they see little until they are given away.
        """
        rows = list(slots)
        self.places[rows] = 0
        return self._written[rows].cpu().numpy(), self._logprobs[rows].cpu().numpy()

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """The responses of slots `sources` go to the slots `targets`."""
        for values in (
            self.tokens,
            self.places,
            self.stopped,
            self._first,
            self._written,
            self._logprobs,
            self._random,
        ):
            values[list(targets)] = values[list(sources)]
