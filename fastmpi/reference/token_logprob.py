"""Log-probability and entropy of chosen tokens, in plain torch.

Unusual: a row of hidden states may be scored against many targets (a prompt's last token predicts
the first token of every response), so logits are made once per *distinct* row. Rows go through the
head in chunks that are recomputed in the backward pass, so no (T, V) tensor exists when V is large.
Logits are float32 (float64 for float64 input): rounding them to bfloat16 would cost about 0.01 nats
a token.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits that one chunk may hold: 256 MB in float32. Small models fit one chunk and recompute
# nothing.
CHUNK_LOGITS = 1 << 26


class TokenLoss(NamedTuple):
    """The loss, with gradient, and what it was made of, detached."""

    loss: Tensor  # scalar: -(weights * logprob).sum()
    logprob: Tensor  # (M,)
    entropy: Tensor  # (M,)


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of logits and of everything derived from them."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values of ``dtype``, in the precision of logits; gradients pass without being rounded."""
    exact = values.to(score_dtype(dtype))
    if values.dtype == dtype:
        return exact
    return exact + (values.detach().to(dtype).to(exact.dtype) - exact.detach())


def head_logits(
    hidden: Tensor,  # (N, H)
    head: Tensor,  # (V, H)
    temperature: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """``softcap * tanh(hidden @ head.T / softcap) / temperature``, (N, V)."""
    with torch.autocast(hidden.device.type, enabled=False):  # it would round them to bfloat16
        return shaped_logits(hidden @ head.T, temperature, softcap)


def shaped_logits(logits: Tensor, temperature: float = 1.0, softcap: float | None = None) -> Tensor:
    """``softcap * tanh(logits / softcap) / temperature``."""
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / temperature if temperature != 1.0 else logits


def _score_chunk(
    hidden: Tensor,  # (U, H) distinct rows
    head: Tensor,  # (V, H)
    row: Tensor,  # (M,) index into the distinct rows
    targets: Tensor,  # (M,)
    temperature: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    logp = head_logits(hidden, head, temperature, softcap).log_softmax(-1)  # (U, V)
    entropy = -(logp.exp() * logp).sum(-1)  # (U,)
    return logp[row, targets], entropy[row]


def _score_chunk_again_in_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return checkpoint(_score_chunk, *arguments, use_reentrant=False, preserve_rng_state=False)


def token_logprob(
    hidden: Tensor,  # (T, H)
    head: Tensor,  # (V, H)
    rows: Tensor,  # (M,)
    targets: Tensor,  # (M,)
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_rows: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """``log_softmax(hidden[rows] @ head.T / temperature)[targets]``, and entropies.

    The operands of the product are rounded to ``dtype``, by default that of ``hidden``.
    """
    head = rounded(head, dtype or hidden.dtype)
    distinct, row = rows.unique(return_inverse=True)
    chosen = rounded(hidden[distinct], dtype or hidden.dtype)  # (U, H)
    chunk_rows = chunk_rows or max(1, CHUNK_LOGITS // head.shape[0])
    if len(distinct) <= chunk_rows:
        return _score_chunk(chosen, head, row, targets, temperature, softcap)

    order = row.argsort(stable=True)  # scores of one chunk lie together
    row, targets = row[order], targets[order]
    starts = torch.arange(0, len(distinct), chunk_rows, device=row.device)
    sizes = torch.bincount(row // chunk_rows, minlength=len(starts)).tolist()
    chunks = zip(
        chosen.split(chunk_rows), starts, row.split(sizes), targets.split(sizes), strict=True
    )
    scored = [
        _score_chunk_again_in_backward(
            chunk, head, chunk_row - start, chunk_targets, temperature, softcap
        )
        for chunk, start, chunk_row, chunk_targets in chunks
    ]
    unsort = order.argsort()
    logprob, entropy = (torch.cat(column)[unsort] for column in zip(*scored, strict=True))
    return logprob, entropy


def token_loss(
    hidden: Tensor,  # (T, H)
    head: Tensor,  # (V, H)
    rows: Tensor,  # (M,)
    targets: Tensor,  # (M,)
    weights: Tensor,  # (M,)
    **options: Any,
) -> TokenLoss:
    """Weighted negative log-likelihood; the options are those of `token_logprob`."""
    logprob, entropy = token_logprob(hidden, head, rows, targets, **options)
    loss = -(weights.to(logprob.dtype) * logprob).sum()
    return TokenLoss(loss, logprob.detach(), entropy.detach())
