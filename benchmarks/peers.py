"""Peers are optional: imported inside the arm that needs them, absent with a reason."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from fastmpi.benchmarks.harness import Unavailable


def load(module: str) -> ModuleType:
    """Imports `module` of a peer; `Unavailable` says what is missing."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise Unavailable("not installed")
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"cannot be imported: {' '.join(str(error).split())}") from error


def load_cuda(module: str, device: torch.device) -> ModuleType:
    """`load` for a peer that runs on CUDA alone."""
    found = load(module)
    need_cuda(device)
    return found


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled for the shapes of its case, however many cases came before."""
    torch._dynamo.config.recompile_limit = 256  # beyond it, Dynamo would run it eagerly
    return torch.compile(function, dynamic=False)


def need_cuda(device: torch.device) -> None:
    """`Unavailable` unless the arm runs on CUDA."""
    if device.type != "cuda":
        raise Unavailable("needs a CUDA device")
