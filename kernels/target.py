"""The GPU that kernels are compiled for."""

from __future__ import annotations

from triton import knobs
from triton.runtime.driver import driver


def architecture() -> int:
    """Its compute capability, 90 for 9.0; 0 where Triton interprets its kernels."""
    if knobs.runtime.interpret:
        return 0
    return driver.active.get_current_target().arch
