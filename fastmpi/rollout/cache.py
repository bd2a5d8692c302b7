"""Keys and values while decoding: one copy for each prompt, and what each response added itself.

Legend: B running responses, P prompts, G slots a prompt has (its most running responses), L longest
prompt, t tokens added so far, Hq and Hkv query and key heads, r = Hq / Hkv, D head dimension.

Unusual: the responses of a prompt are folded into the query length, so that attention over the
prompt is one matrix product per prompt and head and no key is copied G times. The scores over the
prompt and over a response's own tokens meet in one softmax; the same as merging two attentions by
log-sum-exp, but fewer passes over memory (on a CPU 0.7 of the time).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmpi.models.attention import AttentionPattern
from fastmpi.reference.token_logprob import score_dtype

_FIRST_CAPACITY = 32


class PromptRecorder:
    """A pattern that lets `inner` attend and keeps each layer's keys and values of chosen rows."""

    def __init__(self, inner: AttentionPattern, rows: Tensor) -> None:  # rows: (P, L)
        self._inner = inner
        self._rows = rows
        self.keys: list[Tensor] = []  # (Hkv, P, L, D) for each layer
        self.values: list[Tensor] = []

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See `AttentionPattern`."""
        assert layer_idx == len(self.keys), "layers come in order"
        self.keys.append(k[0][:, self._rows])
        self.values.append(v[0][:, self._rows])
        return self._inner.attend(layer_idx, q, k, v, scale)


class DecodeCache:
    """The pattern of decoding steps: each response sees its prompt and its own tokens."""

    def __init__(
        self,
        keys: list[Tensor],  # (Hkv, P, L, D) for each layer
        values: list[Tensor],
        lengths: Tensor,  # (P,) prompt lengths
        owner: Tensor,  # (B,) prompt of each response, ascending
    ) -> None:
        self._keys, self._values = keys, values
        self._own_keys: list[Tensor] = []  # (Hkv, B, capacity, D) for each layer
        self._own_values: list[Tensor] = []
        self._length = 0  # own tokens before this step
        padding = torch.arange(keys[0].shape[2], device=lengths.device) >= lengths[:, None]
        self._bias = torch.zeros_like(padding, dtype=keys[0].dtype)  # (P, L)
        self._bias.masked_fill_(padding, -torch.inf)
        self._lay_out(owner)

    def _lay_out(self, owner: Tensor) -> None:
        """Give response b of prompt p the slot `p * G + (its rank among p's)`."""
        counts = torch.bincount(owner, minlength=len(self._bias))
        first = counts.cumsum(0) - counts
        self._owner = owner
        self._num_slots = int(counts.max())
        rank = torch.arange(len(owner), device=owner.device) - first[owner]
        full = bool((counts == self._num_slots).all())
        self._slot = None if full else owner * self._num_slots + rank  # None: slots are rows

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """q (B, Hq, 1, D), k and v (B, Hkv, 1, D) of the newest token -> (B, 1, Hq, D)."""
        num_rows, num_heads, _, dim = q.shape
        prompt_keys, prompt_values = self._keys[layer_idx], self._values[layer_idx]
        own_keys, own_values = self._append(layer_idx, k, v)  # (Hkv, B, t, D)
        q = (q * scale).view(num_rows, k.shape[1], -1, dim).transpose(0, 1)  # (Hkv, B, r, D)
        prompt_scores = self._fold(q) @ prompt_keys.mT + self._bias[:, None]  # (Hkv, P, G*r, L)
        scores = torch.cat([self._unfold(prompt_scores, num_rows), q @ own_keys.mT], -1)
        weights = scores.softmax(-1, dtype=score_dtype(q.dtype)).to(q.dtype)  # (Hkv, B, r, L+t)
        on_prompt, on_own = weights.split([prompt_keys.shape[2], own_keys.shape[2]], -1)
        out = self._unfold(self._fold(on_prompt) @ prompt_values, num_rows) + on_own @ own_values
        return out.transpose(0, 1).reshape(num_rows, 1, num_heads, dim)

    def advance(self) -> None:
        """The step is over: every layer has added one token."""
        self._length += 1

    def keep(self, rows: Tensor) -> None:
        """Drop all responses but `rows` (ascending), and prompts that have none left."""
        left, owner = self._owner[rows].unique(return_inverse=True)
        self._own_keys = [own[:, rows] for own in self._own_keys]
        self._own_values = [own[:, rows] for own in self._own_values]
        if len(left) < len(self._bias):
            self._keys = [keys[:, left] for keys in self._keys]
            self._values = [values[:, left] for values in self._values]
            self._bias = self._bias[left]
        self._lay_out(owner)

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

    def _fold(self, x: Tensor) -> Tensor:
        """(Hkv, B, r, *) by response -> (Hkv, P, G * r, *) by prompt, empty slots 0."""
        if self._slot is not None:
            slots = x.new_zeros(x.shape[0], len(self._bias) * self._num_slots, *x.shape[2:])
            x = slots.index_copy(1, self._slot, x)
        return x.reshape(x.shape[0], len(self._bias), -1, x.shape[3])

    def _unfold(self, x: Tensor, num_rows: int) -> Tensor:
        """The reverse of `_fold`."""
        x = x.view(x.shape[0], len(self._bias) * self._num_slots, -1, x.shape[3])
        return x if self._slot is None else x[:, self._slot]
