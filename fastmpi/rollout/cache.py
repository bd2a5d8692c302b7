"""Keys and values while decoding: one copy for each prompt, and what each response added itself.

Legend: B running responses, P prompts, G slots a prompt has (its most running responses), L longest
prompt, t tokens added so far, Hq and Hkv query and key heads, r = Hq / Hkv, D head dimension.

Unusual: the responses of a prompt are folded into the query length, so that attention over the
prompt is one matrix product per prompt and head and no key is copied G times. The scores over the
prompt and over a response's own tokens meet in one softmax; the same as merging two attentions by
log-sum-exp, but fewer passes over memory (on a CPU 0.7 of the time). Prompts lie on shelves of
similar length, since the policy-aware ones are several times longer than the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastmpi.models.attention import AttentionPattern
from fastmpi.reference.token_logprob import score_dtype

_FIRST_CAPACITY = 32
_LONGEST_OVER_SHORTEST = 1.5


def shelves(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cuts ascending prompt lengths into (start, stop) ranges in which little is padding."""
    start = 0
    for index, length in enumerate(lengths):
        if length > _LONGEST_OVER_SHORTEST * lengths[start]:
            yield start, index
            start = index
    if lengths:
        yield start, len(lengths)


class PromptRecorder:
    """A pattern that lets `inner` attend and keeps each layer's keys and values of the prompts."""

    def __init__(self, inner: AttentionPattern, prompts: list[Shelf]) -> None:
        self._inner = inner
        self._shelves = prompts

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See `AttentionPattern`."""
        for shelf in self._shelves:
            assert layer_idx == len(shelf.keys), "layers come in order"
            shelf.keys.append(k[0][:, shelf.rows])
            shelf.values.append(v[0][:, shelf.rows])
        return self._inner.attend(layer_idx, q, k, v, scale)


class Shelf:
    """Prompts of similar length, padded, and their running responses."""

    def __init__(self, rows: Tensor, lengths: Tensor, owner: Tensor) -> None:
        """rows: (P, L) of the forest. lengths: (P,). owner: (B,) prompt of each, ascending."""
        self.rows = rows
        self.keys: list[Tensor] = []  # (Hkv, P, L, D) for each layer
        self.values: list[Tensor] = []
        self._padding = torch.arange(rows.shape[1], device=rows.device) >= lengths[:, None]
        self._seat(owner)

    def _seat(self, owner: Tensor) -> None:
        """Give response b of prompt p the slot `p * G + (its rank among p's)`."""
        counts = torch.bincount(owner, minlength=len(self._padding))
        first = counts.cumsum(0) - counts
        rank = torch.arange(len(owner), device=owner.device) - first[owner]
        self.owner = owner
        self._num_slots = int(counts.max())
        full = bool((counts == self._num_slots).all())
        self._slot = None if full else owner * self._num_slots + rank  # None: slots are rows

    def attend(self, layer_idx: int, q: Tensor, own_scores: Tensor) -> tuple[Tensor, Tensor]:
        """q (Hkv, B, r, D), own_scores (Hkv, B, r, t) -> what the prompts give, weights of own."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        scores = self._fold(q) @ keys.mT  # (Hkv, P, G * r, L)
        scores.masked_fill_(self._padding[:, None], -torch.inf)
        scores = torch.cat([self._unfold(scores), own_scores], -1)  # (Hkv, B, r, L + t)
        weights = scores.softmax(-1, dtype=score_dtype(q.dtype)).to(q.dtype)
        on_prompt, on_own = weights.split([keys.shape[2], own_scores.shape[3]], -1)
        return self._unfold(self._fold(on_prompt) @ values), on_own

    def keep(self, rows: Tensor) -> None:
        """Drop all responses but `rows` (ascending), and prompts that have none left."""
        left, owner = self.owner[rows].unique(return_inverse=True)
        if len(left) < len(self._padding):
            self.keys = [keys[:, left] for keys in self.keys]
            self.values = [values[:, left] for values in self.values]
            self._padding = self._padding[left]
        self._seat(owner)

    def _fold(self, x: Tensor) -> Tensor:
        """(Hkv, B, r, *) by response -> (Hkv, P, G * r, *) by prompt, empty slots 0."""
        if self._slot is not None:
            slots = x.new_zeros(x.shape[0], len(self._padding) * self._num_slots, *x.shape[2:])
            x = slots.index_copy(1, self._slot, x)
        return x.reshape(x.shape[0], len(self._padding), -1, x.shape[3])

    def _unfold(self, x: Tensor) -> Tensor:
        """The reverse of `_fold`."""
        num_slots = len(self._padding) * self._num_slots
        x = x.view(x.shape[0], num_slots, -1, x.shape[3])
        return x if self._slot is None else x[:, self._slot]


class DecodeCache:
    """The pattern of decoding steps: each response sees its prompt and its own tokens."""

    def __init__(self, prompts: list[Shelf]) -> None:
        self._shelves = prompts  # their responses are the batch's rows, shelf after shelf
        self._own_keys: list[Tensor] = []  # (Hkv, B, capacity, D) for each layer
        self._own_values: list[Tensor] = []
        self._length = 0  # own tokens before this step

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q (B, Hq, 1, D), k and v (B, Hkv, 1, D) of the newest token -> (B, 1, Hq, D)."""
        num_rows, num_heads, _, dim = q.shape
        q = (q * scale).view(num_rows, k.shape[1], -1, dim).transpose(0, 1)  # (Hkv, B, r, D)
        own_keys, own_values = self._append(layer_idx, k, v)  # (Hkv, B, t, D)
        own_scores = q @ own_keys.mT
        sizes = [len(shelf.owner) for shelf in self._shelves]
        parts = zip(self._shelves, q.split(sizes, 1), own_scores.split(sizes, 1), strict=True)
        given = [shelf.attend(layer_idx, q_, own) for shelf, q_, own in parts]
        from_prompts, on_own = (torch.cat(column, 1) for column in zip(*given, strict=True))
        out = from_prompts + on_own @ own_values
        return out.transpose(0, 1).reshape(num_rows, 1, num_heads, dim)

    def advance(self) -> None:
        """The step is over: every layer has added one token."""
        self._length += 1

    def keep(self, rows: Tensor) -> None:
        """Drop all responses but `rows` (ascending) and whatever nobody needs any more."""
        self._own_keys = [own[:, rows] for own in self._own_keys]
        self._own_values = [own[:, rows] for own in self._own_values]
        start, kept = 0, []
        for shelf in self._shelves:
            stop = start + len(shelf.owner)
            inside = rows[(rows >= start) & (rows < stop)] - start
            if len(inside):
                shelf.keep(inside)
                kept.append(shelf)
            start = stop
        self._shelves = kept

    def _append(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the newest token's (B, Hkv, 1, D) and return all own ones, (Hkv, B, t, D)."""
        if layer_idx == len(self._own_keys):  # the first step
            shape = (k.shape[1], k.shape[0], _FIRST_CAPACITY, k.shape[3])
            self._own_keys.append(k.new_empty(shape))
            self._own_values.append(v.new_empty(shape))
        both = []
        for buffers, new in ((self._own_keys, k), (self._own_values, v)):
            if self._length == buffers[layer_idx].shape[2]:
                old = buffers[layer_idx]
                buffers[layer_idx] = torch.cat([old, torch.empty_like(old)], 2)
            buffers[layer_idx][:, :, self._length] = new[:, :, 0].transpose(0, 1)
            both.append(buffers[layer_idx][:, :, : self._length + 1])
        return both[0], both[1]
