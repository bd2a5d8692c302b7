"""A step of decoding as an attention problem: its inputs, its work, its exact answer.

Legend: P tokens of a policy that all share, N prompts of L more tokens each, G responses to each,
of R tokens each; B = N G slots, Hq query heads, Hkv key and value heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastmpi.benchmarks.forest_problem import Heads
from fastmpi.benchmarks.harness import Outputs
from fastmpi.ops.decode_attention import DecodeShape, Segment


@dataclass(frozen=True)
class Wave:
    """A policy, perhaps of no tokens, prompts below it, responses below those."""

    policy: int
    prompts: int
    prompt: int
    responses: int
    own: int

    @property
    def slots(self) -> int:
        """B."""
        return self.prompts * self.responses

    @property
    def shared(self) -> int:
        """Tokens that are held once for several slots."""
        return self.policy + self.prompts * self.prompt

    @property
    def tokens(self) -> int:
        """All distinct tokens."""
        return self.shared + self.slots * self.own

    @property
    def seen(self) -> int:
        """Tokens that a slot reads."""
        return self.policy + self.prompt + self.own

    @property
    def segments(self) -> list[Segment]:
        """The policy's, then those of the prompts."""
        policy = [Segment(0, self.policy, range(self.slots))] if self.policy else []
        starts = range(self.policy, self.shared, self.prompt)
        size = self.responses
        below = [range(i * size, (i + 1) * size) for i in range(self.prompts)]
        pairs = zip(starts, below, strict=True)
        return policy + [Segment(start, self.prompt, slots) for start, slots in pairs]

    def paths(self, device: torch.device) -> Tensor:
        """(B, P + L + R) the tokens that each slot reads, in a pool with own ones at its end."""
        slot = torch.arange(self.slots, device=device)[:, None]
        policy = torch.arange(self.policy, device=device).expand(self.slots, -1)
        prompt = torch.arange(self.prompt, device=device) + slot // self.responses * self.prompt
        own = torch.arange(self.own, device=device) + slot * self.own
        return torch.cat([policy, self.policy + prompt, self.shared + own], dim=1)


@dataclass(frozen=True, eq=False)
class DecodeProblem:
    """Inputs drawn for a wave whose responses all have R tokens."""

    wave: Wave
    heads: Heads
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def q(self) -> Tensor:
        """(B, Hq, D)."""
        return self._draw(self.wave.slots, self.heads.query)

    @cached_property
    def pools(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, (Hkv, tokens, D) each."""
        shape = (self.heads.key, self.wave.tokens)
        return self._draw(*shape), self._draw(*shape)

    @property
    def shape(self) -> DecodeShape:
        """What a plan needs to know."""
        heads = self.heads
        sizes = (self.wave.slots, heads.query, heads.key, heads.dim)
        return DecodeShape(*sizes, self.dtype, self.q.device)

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Shared keys and values (Hkv, T, D), own ones (Hkv, B, R, D), and own lengths (B,)."""
        wave = self.wave
        shared = [pool[:, : wave.shared] for pool in self.pools]
        own = [pool[:, wave.shared :].unflatten(1, (wave.slots, wave.own)) for pool in self.pools]
        lengths = torch.full((wave.slots,), wave.own, dtype=torch.int32, device=self.device)
        return shared[0], shared[1], own[0], own[1], lengths

    @property
    def flops(self) -> float:
        """Of two products."""
        return 4.0 * self.heads.dim * self.heads.query * self.wave.slots * self.wave.seen

    def bytes(self, tokens: int) -> float:
        """Of keys and values of `tokens`, q and the result."""
        row = 2 * self.heads.dim * self.dtype.itemsize
        return float(row * (self.heads.key * tokens + self.heads.query * self.wave.slots))

    def exact(self) -> Outputs:
        """The result in float64, slot by slot."""
        group = self.heads.query // self.heads.key
        out = []
        for q, path in zip(self.q.double(), self.wave.paths(self.device), strict=True):
            keys, values = (pool[:, path].double() for pool in self.pools)
            scores = q.unflatten(0, (-1, group)) @ keys.mT * self.heads.dim**-0.5
            out.append((scores.softmax(-1) @ values).flatten(0, 1))
        return {"out": torch.stack(out)}

    def _draw(self, *shape: int) -> Tensor:
        return torch.randn(*shape, self.heads.dim, device=self.device, dtype=self.dtype)
