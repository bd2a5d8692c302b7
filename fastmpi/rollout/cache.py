"""Keys and values while decoding: one copy for each prompt, and what each response added itself.

Legend: B running responses, P prompts, G slots a prompt has (its most running responses), L longest
prompt, t tokens added so far, Hq and Hkv query and key heads, r = Hq / Hkv, D head dimension.

Unusual: the responses of a prompt are folded into the query length, so that attention over the
prompt is one matrix product per prompt and head and no key is copied G times. The scores over the
prompt and over a response's own tokens meet in one softmax; the same as merging two attentions by
log-sum-exp, but fewer passes over memory (on a CPU 0.7 of the time). What several prompts begin
with (`trunks.py`, the policy above all) is held once for all of them and merged by log-sum-exp.
Prompts lie on shelves of similar length, since some are several times longer than others.
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

    def scores(self, layer_idx: int, q: Tensor) -> Tensor:
        """q (Hkv, B, r, D) -> (Hkv, B, r, L), -inf at padding."""
        scores = self._fold(q) @ self.keys[layer_idx].mT  # (Hkv, P, G * r, L)
        scores.masked_fill_(self._padding[:, None], -torch.inf)
        return self._unfold(scores)

    def mix(self, layer_idx: int, weights: Tensor) -> Tensor:
        """weights (Hkv, B, r, L) -> the values' sums, (Hkv, B, r, D)."""
        return self._unfold(self._fold(weights) @ self.values[layer_idx])

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


class SharedShelf:
    """A shelf of trunks. `rows`: (n,) the running responses below them, in the shelf's order."""

    def __init__(self, shelf: Shelf, rows: Tensor) -> None:
        self.shelf, self.rows = shelf, rows

    def add_to(self, layer_idx: int, q: Tensor, out: Tensor, lse: Tensor) -> None:
        """Merges attention over the trunks into `out` (Hkv, B, r, D), whose log-sum-exp is `lse`
        (Hkv, B, r, 1), both in place."""
        weights, own = softmax_and_lse(self.shelf.scores(layer_idx, q[:, self.rows]), lse.dtype)
        mixed = self.shelf.mix(layer_idx, weights.to(q.dtype))
        before = lse[:, self.rows]
        both = torch.logaddexp(before, own)
        merged = out[:, self.rows] * (before - both).exp() + mixed * (own - both).exp()
        out[:, self.rows] = merged.to(out.dtype)
        lse[:, self.rows] = both

    def keep(self, rows: Tensor, num_rows: int) -> bool:
        """Drop all responses but `rows` of `num_rows`; False when none is left here."""
        place = torch.full((num_rows,), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        left = (place[self.rows] >= 0).nonzero()[:, 0]
        self.rows = place[self.rows[left]]
        if len(left):
            self.shelf.keep(left)
        return len(left) > 0


def softmax_and_lse(
    scores: Tensor, dtype: torch.dtype, *, lse: bool = True
) -> tuple[Tensor, Tensor]:
    """Softmax over the last dimension, and its log-sum-exp (*, 1), empty unless wanted.

    The greatest weight is exp(greatest score - log-sum-exp) and never underflows: reading both
    is cheaper than torch's logsumexp, which takes the exponentials once more.
    """
    weights = scores.softmax(-1, dtype=dtype)
    if not lse:
        return weights, weights[..., :0]
    return weights, scores.amax(-1, keepdim=True).to(dtype) - weights.amax(-1, keepdim=True).log()


class DecodeCache:
    """The pattern of decoding steps: each response sees its prompt and its own tokens."""

    def __init__(self, prompts: list[Shelf], shared: Sequence[SharedShelf] = ()) -> None:
        self._shelves = prompts  # their responses are the batch's rows, shelf after shelf
        self._shared = list(shared)
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
        given = [self._attend_prompts(shelf, layer_idx, q_, own) for shelf, q_, own in parts]
        from_prompts, on_own, lse = (torch.cat(column, 1) for column in zip(*given, strict=True))
        out = from_prompts + on_own @ own_values
        for shared in self._shared:
            shared.add_to(layer_idx, q, out, lse)
        return out.transpose(0, 1).reshape(num_rows, 1, num_heads, dim)

    def _attend_prompts(
        self, shelf: Shelf, layer_idx: int, q: Tensor, own_scores: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q (Hkv, B, r, D), own_scores (Hkv, B, r, t) -> what the prompts give, the weights of own
        tokens, and the log-sum-exp of both, (Hkv, B, r, 1), where something is to be merged."""
        on_prompt = shelf.scores(layer_idx, q)
        scores = torch.cat([on_prompt, own_scores], -1)  # (Hkv, B, r, L + t)
        weights, lse = softmax_and_lse(scores, score_dtype(q.dtype), lse=bool(self._shared))
        sizes = [on_prompt.shape[3], own_scores.shape[3]]
        on_prompt, on_own = weights.to(q.dtype).split(sizes, -1)
        return shelf.mix(layer_idx, on_prompt), on_own, lse

    def advance(self) -> None:
        """The step is over: every layer has added one token."""
        self._length += 1

    def keep(self, rows: Tensor) -> None:
        """Drop all responses but `rows` (ascending) and whatever nobody needs any more."""
        num_rows = sum(len(shelf.owner) for shelf in self._shelves)
        self._shared = [shared for shared in self._shared if shared.keep(rows, num_rows)]
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
