"""A prompt with equal branches as an attention problem: its inputs, its work, its exact answer.

Legend: P rows of the prompt, G branches of R rows, T = P + G R rows of the forest, L = P + R rows
of a sample that repeats the prompt, Hq query heads, Hkv key and value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastmpi.benchmarks.harness import Outputs

Turn = Callable[[str, Tensor], Tensor]

EXACT_ROWS = 1024  # queries at once in float64


@dataclass(frozen=True)
class Heads:
    """The attention of a model."""

    model: str
    query: int
    key: int
    dim: int


@dataclass(frozen=True)
class Tree:
    """A prompt of P rows and G branches of R rows below it."""

    prompt: int
    branches: int
    length: int

    @property
    def rows(self) -> int:
        """T."""
        return self.prompt + self.branches * self.length

    @property
    def sample(self) -> int:
        """L."""
        return self.prompt + self.length

    @property
    def visible_pairs(self) -> int:
        """(query, key) pairs that the forest rule lets see each other."""
        below = self.length * self.prompt + _causal_pairs(self.length)
        return _causal_pairs(self.prompt) + self.branches * below

    @property
    def repeated_pairs(self) -> int:
        """The same if every sample repeats the prompt."""
        return self.branches * _causal_pairs(self.sample)

    @property
    def causal_rows(self) -> int:
        """Length of the single causal row that has as many visible pairs, nearly."""
        return round((2 * self.visible_pairs) ** 0.5)

    def subtree_end(self, device: torch.device) -> Tensor:
        """(T,) int32."""
        branch_ends = torch.arange(self.sample, self.rows + 1, self.length, device=device)
        prompt = torch.full((self.prompt,), self.rows, device=device)
        return torch.cat([prompt, branch_ends.repeat_interleave(self.length)]).to(torch.int32)

    def paths(self, device: torch.device) -> Tensor:
        """(G, L) rows of the forest that each sample consists of."""
        prompt = torch.arange(self.prompt, device=device).expand(self.branches, -1)
        own = torch.arange(self.prompt, self.rows, device=device).view(self.branches, -1)
        return torch.cat([prompt, own], dim=1)

    def blocks(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and all keys that any of them sees, piece by piece: each row comes once."""
        rows = torch.arange(self.rows, device=device)
        for piece in rows[: self.prompt].split(EXACT_ROWS):
            yield piece, rows[: piece[-1] + 1]
        for branch in rows[self.prompt :].split(self.length):
            for piece in branch.split(EXACT_ROWS):
                yield piece, torch.cat([rows[: self.prompt], rows[branch[0] : piece[-1] + 1]])


def _causal_pairs(rows: int) -> int:
    return rows * (rows + 1) // 2


@dataclass(frozen=True, eq=False)
class Problem:
    """Inputs drawn for a tree, and how results are judged: on the heads of the first key head."""

    tree: Tree
    heads: Heads
    backward: bool
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q (T, Hq, D), k and v (T, Hkv, D), and the gradient of the result (T, Hq, D)."""
        query, key = self.heads.query, self.heads.key
        return self.draw(query), self.draw(key), self.draw(key), self.draw(query)

    @property
    def scale(self) -> float:
        return self.heads.dim**-0.5

    @property
    def group(self) -> int:
        """Query heads of one key head."""
        return self.heads.query // self.heads.key

    def draw(self, heads: int, rows: int | None = None) -> Tensor:
        """(rows, heads, D), normal; T rows unless told."""
        shape = (rows or self.tree.rows, heads, self.heads.dim)
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def flops(self, pairs: int) -> float:
        """Forward two products; backward five, since the scores are made again."""
        forward = 4.0 * self.heads.dim * self.heads.query * pairs
        return forward * (3.5 if self.backward else 1)

    def exact(self) -> Outputs:
        """out, dq, dk, dv of the judged heads in float64, sample by sample."""
        q, k, v, grad = (x.double() for x in self.judged(*self.tensors))
        k, v = (x.expand(-1, self.group, -1) for x in (k, v))
        found = {name: torch.zeros_like(q) for name in ("out", "dq", "dk", "dv")}
        for rows, keys in self.tree.blocks(self.device):
            weights = torch.einsum("qhd,khd->hqk", q[rows], k[keys]).mul_(self.scale)
            weights = weights.masked_fill_(keys > rows[:, None], float("-inf")).softmax(-1)
            found["out"][rows] = torch.einsum("hqk,khd->qhd", weights, v[keys])
            if not self.backward:
                continue
            slope = torch.einsum("qhd,khd->hqk", grad[rows], v[keys])
            slope -= (weights * slope).sum(-1, keepdim=True)
            slope *= weights * self.scale
            found["dq"][rows] = torch.einsum("hqk,khd->qhd", slope, k[keys])
            found["dk"].index_add_(0, keys, torch.einsum("hqk,qhd->khd", slope, q[rows]))
            found["dv"].index_add_(0, keys, torch.einsum("hqk,qhd->khd", weights, grad[rows]))
        if not self.backward:
            return {"out": found["out"]}
        return found | {name: found[name].sum(1, keepdim=True) for name in ("dk", "dv")}

    def judged(self, *tensors: Tensor) -> Iterator[Tensor]:
        """The heads of the first key head: all its query heads, or itself. tensors: (T, H, D)."""
        for x in tensors:
            yield x[:, : self.group if x.shape[1] == self.heads.query else 1]


class Judged(dict[str, Tensor]):
    """Outputs of a run as the arm has them; asked for one by name, it is brought into the forest's
    rows and cut to the judged heads, outside the run's time.

    turn: (name, tensor as the arm has it) -> (T, H, D).
    """

    def __init__(self, problem: Problem, results: tuple[Tensor, ...], turn: Turn) -> None:
        super().__init__(zip(("out", "dq", "dk", "dv"), results, strict=False))
        self.problem, self.turn = problem, turn

    def __getitem__(self, name: str) -> Tensor:
        return next(self.problem.judged(self.turn(name, super().__getitem__(name))))


def worst_error(outputs: Outputs, exact: Outputs) -> float | None:
    """Largest difference over the largest exact value, of whichever output it is worst in."""
    differences = (
        (outputs[name].double() - exact[name]).abs().max() / exact[name].abs().max()
        for name in exact
        if name in outputs
    )
    errors = torch.tensor([difference.item() for difference in differences])
    return errors.max().item() if len(errors) else None  # NaN is the largest
