"""Attention over a prefix forest. Twin: `fastmpi.reference.forest_attention`.

Legend: T rows of the forest in depth-first order, Hq query heads, Hkv key and value heads, D head
dimension. Row q sees row k iff `k <= q < subtree_end[k]`: k lies on q's own path.

Unusual: what depends on the forest alone is a *plan*, made once a batch and used by every layer.
Each backend is a module `attention_<name>` with `refusal`, `prepare` and `attend`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmpi.ops import attention_flash, attention_flex, attention_sdpa, attention_triton
from fastmpi.ops.tensor_checks import check_tensor
from fastmpi.reference.forest_attention import forest_attention as reference_forest_attention

_MODULES: dict[str, ModuleType] = {
    "triton": attention_triton,
    "sdpa": attention_sdpa,
    "flex": attention_flex,
    "flash": attention_flash,
}
BACKENDS = (*_MODULES, "reference")


@dataclass(frozen=True, eq=False)
class ForestPlan:
    """What one backend prepared for one forest: its own, or nothing."""

    subtree_end: Tensor
    backend: str
    prepared: Any


def forest_attention(
    q: Tensor,  # (T, Hq, D)
    k: Tensor,  # (T, Hkv, D)
    v: Tensor,  # (T, Hkv, D)
    subtree_end: Tensor,  # (T,) int32
    *,
    scale: float | None = None,
    backend: str | None = None,
    plan: ForestPlan | None = None,
    deterministic: bool | None = None,
) -> Tensor:
    """`softmax(scale * q @ k.T + log(mask)) @ v` for each head, `mask[q, k] = k <= q < end[k]`.

    Without the (T, T) matrix, forward and backward. Query head h reads key and value head
    `h // (Hq // Hkv)`. Returns (T, Hq, D) in q's dtype; `scale` is `D ** -0.5` unless given.

    backend: "triton" or "flex" (CUDA), "flash" (16 bits on CUDA, or the CPU), "sdpa" (any device),
    "reference", or None for triton on CUDA where it can take the inputs and sdpa elsewhere. plan:
    of `plan_forest` for this forest and backend; made here if None. deterministic: gradients repeat
    bit for bit (triton only; by default as `torch.use_deterministic_algorithms` says).
    `ValueError` for shapes, dtypes or devices that do not fit and for a backend that is unknown or
    cannot run here, with the reason.
    """
    _check_inputs(q, k, v, subtree_end)
    if plan is None:
        plan = plan_forest(subtree_end, backend or default_backend(q))
    elif plan.subtree_end is not subtree_end or backend not in (None, plan.backend):
        raise ValueError("the plan was made for another forest or another backend")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if deterministic and plan.backend != "triton":
        raise ValueError(
            f"backend {plan.backend!r} does not take deterministic: use "
            "torch.use_deterministic_algorithms"
        )
    if plan.backend == "reference":
        return reference_forest_attention(q, k, v, subtree_end, scale=scale)
    _check_backend(plan.backend, q)
    if plan.backend == "triton":
        if deterministic is None:
            deterministic = torch.are_deterministic_algorithms_enabled()
        return attention_triton.attend(q, k, v, plan.prepared, scale, deterministic)
    return _MODULES[plan.backend].attend(q, k, v, plan.prepared, scale)


def default_backend(q: Tensor) -> str:
    """The backend that serves q: "triton" on CUDA where it can take it, "sdpa" elsewhere."""
    refused = attention_triton.refusal(q.device, q.dtype, q.shape[-1])
    return "sdpa" if refused or q.device.type != "cuda" else "triton"


def plan_forest(
    subtree_end: Tensor, backend: str, *, unread: np.ndarray | None = None
) -> ForestPlan:
    """Prepares `backend` for one forest. `ValueError` for a bad forest or backend.

    unread: (T,) bool, rows whose output nobody reads; "sdpa" leaves it 0, the others make it.
    """
    _check_forest(subtree_end)
    if backend not in BACKENDS:
        raise ValueError(f"unknown attention backend {backend!r}; known: {', '.join(BACKENDS)}")
    if backend == "sdpa":
        return ForestPlan(subtree_end, backend, attention_sdpa.prepare(subtree_end, unread))
    prepared = None if backend == "reference" else _MODULES[backend].prepare(subtree_end)
    return ForestPlan(subtree_end, backend, prepared)


def _check_backend(backend: str, q: Tensor) -> None:
    if refusal := _MODULES[backend].refusal(q.device, q.dtype, q.shape[-1]):
        raise ValueError(f"backend {backend!r} {refusal}")


def _check_inputs(q: Tensor, k: Tensor, v: Tensor, subtree_end: Tensor) -> None:
    for name, value in {"q": q, "k": k, "v": v, "subtree_end": subtree_end}.items():
        check_tensor(name, value)
    if not (q.ndim == k.ndim == v.ndim == 3) or k.shape != v.shape:
        shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        raise ValueError(f"q is (T, Hq, D), k and v are (T, Hkv, D), not {shapes}")
    if not all(k.shape[1:]):
        raise ValueError(f"k and v {tuple(k.shape)} have no heads, or heads without numbers")
    if q.shape[0] != k.shape[0] or q.shape[2] != k.shape[2] or q.shape[1] % k.shape[1]:
        raise ValueError(f"q {tuple(q.shape)} does not fit k and v {tuple(k.shape)}")
    if not q.dtype.is_floating_point or not (q.dtype == k.dtype == v.dtype):
        raise ValueError(f"q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}: need one float")
    if subtree_end.shape != q.shape[:1]:
        raise ValueError(f"subtree_end is ({q.shape[0]},), not {tuple(subtree_end.shape)}")
    if len({x.device for x in (q, k, v, subtree_end)}) > 1:
        raise ValueError("q, k, v and subtree_end are on different devices")


def _check_forest(subtree_end: Tensor) -> None:
    if subtree_end.ndim != 1 or subtree_end.dtype != torch.int32:
        shape = tuple(subtree_end.shape)
        raise ValueError(f"subtree_end is (T,) int32, not {shape} {subtree_end.dtype}")
    total = len(subtree_end)
    rows = torch.arange(total, device=subtree_end.device)
    if not bool(((subtree_end > rows) & (subtree_end <= total)).all()):
        raise ValueError("subtree_end[k] lies after k and at most at T")
