"""What the tests of kernels share."""

from __future__ import annotations

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
