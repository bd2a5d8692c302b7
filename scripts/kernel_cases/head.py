"""Launches of the LM-head kernels, for the compile gate: dtypes and options as they ship."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def _scores(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Three scores on two rows."""
    hidden, head = torch.ones(4, 16, dtype=dtype), torch.ones(160, 16, dtype=dtype)
    return hidden, head, torch.tensor([0, 0, 2]), torch.tensor([1, 5, 7])


def _token_scores(dtype: torch.dtype, softcap: float | None, weighted: bool) -> None:
    from fastmpi.kernels.token_logprob import token_scores

    hidden, head, rows, targets = _scores(dtype)
    token_scores(
        hidden, head, rows, targets, torch.ones(3) if weighted else None, temperature=1.0,
        softcap=softcap, chunk_rows=None, dtype=dtype,
        dhidden=torch.zeros_like(hidden) if weighted else None,
    )  # fmt: skip


def _token_gradients(dtype: torch.dtype, softcap: float | None, with_entropy: bool) -> None:
    from fastmpi.kernels.token_logprob import token_gradients

    column = torch.ones(3)
    token_gradients(
        *_scores(dtype), column, column if with_entropy else None, column, column, temperature=1.0,
        softcap=softcap, chunk_rows=None, dtype=dtype, dhidden=torch.zeros(4, 16), dhead=None,
    )  # fmt: skip


def _policy_scores(dtype: torch.dtype, softcap: float | None, full: bool) -> None:
    from fastmpi.kernels.policy_head import policy_scores

    column, sequences = torch.ones(3), torch.zeros(3, dtype=torch.int64)
    policy_scores(
        *_scores(dtype), sequences, column, torch.ones(1), column if full else None,
        column if full else None, epsilon=0.2, epsilon_high=0.2, delta=None, beta=0.1,
        temperature=1.0, softcap=softcap, chunk_rows=None, dtype=dtype, dhidden=torch.zeros(4, 16),
        dhead=None,
    )  # fmt: skip


def _cases() -> dict[str, Callable[[], Any]]:
    cases: dict[str, Callable[[], Any]] = {}
    for name, dtype in DTYPES.items():
        for cap, softcap in {"": None, " softcap": 30.0}.items():
            arguments = {"dtype": dtype, "softcap": softcap}
            cases[f"token_logprob {name}{cap}"] = partial(
                _token_scores, weighted=False, **arguments
            )
            cases[f"token_loss {name}{cap}"] = partial(_token_scores, weighted=True, **arguments)
            cases[f"token_logprob backward {name}{cap}"] = partial(
                _token_gradients, with_entropy=True, **arguments
            )
            cases[f"policy_head {name}{cap}"] = partial(_policy_scores, full=True, **arguments)
            cases[f"policy_head first step {name}{cap}"] = partial(
                _policy_scores, full=False, **arguments
            )
    return cases


CASES = _cases()
