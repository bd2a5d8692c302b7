"""Inputs of the benches of the head, and what comes out of them in float64.

Legend: T tokens, one score each; V vocabulary; H width; S responses of `length` tokens.
Unusual: hidden states lean toward the head's row of their target by an amount drawn evenly, so that
targets lie between unlikely and almost certain, as they do in training; of plain noise every
distribution would be flat, and what filters or rounds small probabilities would look wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmpi.benchmarks.harness import Outputs

EPSILON = 0.2
LOGIT_STD = 2.5
MAX_LEAN = 20.0  # nats on the target's logit; the others sum to about log(V) + 3
ROWS_AT_ONCE = 256  # of the float64 products


@dataclass(frozen=True)
class HeadShape:
    num_tokens: int
    vocabulary: int
    width: int
    trained: bool
    dtype: torch.dtype = torch.bfloat16
    length: int = 512

    @property
    def name(self) -> str:
        short = {torch.bfloat16: "bf16", torch.float32: "fp32"}[self.dtype]
        return f"T={self.num_tokens} V={self.vocabulary} H={self.width} {short}"

    @property
    def head_name(self) -> str:
        return f"{'trained' if self.trained else 'frozen'} {self.name}"

    def counts(self, products: int) -> dict[str, float]:
        """FLOPs of that many products of the head, and bytes of its inputs and gradients."""
        product = 2 * self.num_tokens * self.vocabulary * self.width
        head, hidden = self.vocabulary * self.width, self.num_tokens * self.width
        values = head + hidden + hidden * (products > 1) + head * (products > 2)
        return {"flops": products * product, "bytes": values * self.dtype.itemsize}


@dataclass(frozen=True)
class HeadInputs:
    hidden: Tensor  # (T, H), a leaf that wants its gradient
    head: Tensor  # (V, H), a leaf; wants its gradient if it is trained
    targets: Tensor  # (T,)
    sequences: Tensor  # (T,) the response of each token
    weights: Tensor  # (T,) 1 / T: the mean over tokens
    advantages: Tensor  # (S,)
    old_logprob: Tensor  # (T,)
    length: int

    @property
    def rows(self) -> Tensor:
        return torch.arange(len(self.hidden), device=self.hidden.device)

    def gradients(self, loss: Tensor) -> Outputs:
        """d loss / d hidden, and d loss / d head if the head is trained."""
        leaves = {"dhidden": self.hidden, "dhead": self.head}
        wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        found = torch.autograd.grad(loss, list(wanted.values()))
        return dict(zip(wanted, found, strict=True))

    def by_response(self, values: Tensor) -> Tensor:
        """(T, ...) as (S, length, ...)."""
        return values.view(-1, self.length, *values.shape[1:])


def make_inputs(shape: HeadShape, device: torch.device) -> HeadInputs:
    """Random inputs, the same for every call."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    head = normal(shape.vocabulary, shape.width) * (LOGIT_STD / shape.width**0.5)
    total = shape.num_tokens
    targets = torch.randint(shape.vocabulary, (total,), generator=generator, device=device)
    lean = MAX_LEAN * torch.rand(total, 1, generator=generator, device=device)
    toward = head[targets]
    hidden = normal(total, shape.width) + lean * toward / toward.square().sum(-1, keepdim=True)
    hidden, head = hidden.to(shape.dtype).requires_grad_(), head.to(shape.dtype)
    exact = exact_outputs(hidden.detach(), head, targets)["logprob"]
    return HeadInputs(
        hidden=hidden,
        head=head.requires_grad_(shape.trained),
        targets=targets,
        sequences=torch.arange(total, device=device) // shape.length,
        weights=torch.full((total,), 1 / total, device=device),
        advantages=normal(total // shape.length),
        old_logprob=exact.float() + 0.1 * normal(total),  # so that some ratios are clipped
        length=shape.length,
    )


@torch.no_grad()
def exact_outputs(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    slope: Callable[[Tensor, slice], Tensor] | None = None,
    *,
    trained: bool = False,
) -> Outputs:
    """Log-probs and gradients in float64, a few rows at a time.

    slope: (log-probs of some rows, those rows) -> derivative of the loss by each of them.
    """
    head = head.double()
    logprob = torch.empty(len(hidden), dtype=torch.float64, device=hidden.device)
    gradients = {"dhidden": torch.empty_like(hidden, dtype=torch.float64)} if slope else {}
    if trained:
        gradients["dhead"] = torch.zeros_like(head)
    for start in range(0, len(hidden), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        inputs, target = hidden[part].double(), targets[part, None]
        log_softmax = torch.log_softmax(inputs @ head.T, -1)
        logprob[part] = log_softmax.gather(1, target)[:, 0]
        if slope is None:
            continue
        by_logprob = slope(logprob[part], part)[:, None]
        by_logits = log_softmax.exp_().mul_(-by_logprob).scatter_add_(1, target, by_logprob)
        gradients["dhidden"][part] = by_logits @ head
        if trained:
            gradients["dhead"].addmm_(by_logits.T, inputs)
    return {"logprob": logprob, **gradients}


def clipped_loss(logprob: Tensor, inputs: HeadInputs) -> Tensor:
    """The mean over tokens of the clipped objective, as trainers write it on (S, length)."""
    ratio = torch.exp(inputs.by_response(logprob - inputs.old_logprob))
    return -clipped_objective(ratio, inputs.advantages[:, None]).mean()


def clipped_objective(ratio: Tensor, advantage: Tensor) -> Tensor:
    """``min(ratio A, clip(ratio) A)``."""
    clipped = ratio.clamp(1 - EPSILON, 1 + EPSILON)
    return torch.minimum(ratio * advantage, clipped * advantage)


def clipped_slope(inputs: HeadInputs) -> Callable[[Tensor, slice], Tensor]:
    """The derivative of `clipped_loss` by the log-probs of some rows, in float64."""

    def slope(logprob: Tensor, part: slice) -> Tensor:
        with torch.enable_grad():
            logprob = logprob.clone().requires_grad_()
            ratio = torch.exp(logprob - inputs.old_logprob[part].double())
            advantage = inputs.advantages.double()[inputs.sequences[part]]
            objective = clipped_objective(ratio, advantage)
            loss = -objective.sum() / len(inputs.hidden)
        return torch.autograd.grad(loss, logprob)[0]

    return slope
