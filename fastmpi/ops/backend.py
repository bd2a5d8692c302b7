"""Which implementation of an op runs: its Triton kernels, or the reference in plain torch."""

from __future__ import annotations

import os

import torch
from torch import Tensor

BACKENDS = ("triton", "reference")
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def choose_backend(backend: str | None, tensor: Tensor) -> str:
    """`backend` if it can run on `tensor`; by default "triton" on CUDA, "reference" elsewhere.

    `ValueError` for an unknown backend, and for "triton" where the kernels cannot run.
    """
    if backend is None:
        on_device = tensor.device.type == "cuda" and not triton_refusal(tensor)
        return "triton" if on_device else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    if backend == "triton" and (refusal := triton_refusal(tensor)):
        raise ValueError(f"backend 'triton' {refusal}")
    return backend


def triton_refusal(tensor: Tensor) -> str:
    """Why the kernels cannot run on `tensor`; empty if they can."""
    if tensor.device.type != "cuda" and not kernels_run_on_cpu():
        return f"needs a CUDA device, not {tensor.device.type!r}"
    if tensor.dtype not in KERNEL_DTYPES:
        return f"takes float32, bfloat16 or float16, not {tensor.dtype}"
    return ""


def kernels_run_on_cpu() -> bool:
    """Whether Triton interprets its kernels, as it does in the tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"
