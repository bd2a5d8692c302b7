"""What the tests of kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from triton import knobs
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction


@pytest.fixture
def device() -> torch.device:
    """Where kernels run: a GPU, or the CPU, interpreted."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the Triton kernels that the test launches, as it goes."""
    kind: Any = InterpretedFunction if knobs.runtime.interpret else JITFunction
    run, names = kind.run, []

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        names.append(self.__name__)
        return run(self, *args, **options)

    monkeypatch.setattr(kind, "run", counted)
    return names


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills new tensors with NaN (flags with True), so that a kernel must write all it returns."""

    def filling(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def filled(*args: Any, **options: Any) -> torch.Tensor:
            made = make(*args, **options)
            whole = not made.is_floating_point() and made.dtype != torch.bool
            return made if whole else made.fill_(float("nan"))

        return filled

    monkeypatch.setattr(torch.Tensor, "new_empty", filling(torch.Tensor.new_empty))
    monkeypatch.setattr(torch, "empty_like", filling(torch.empty_like))
