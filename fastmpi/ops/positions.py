"""Positions of every token in its own unshared sample. Twin: `fastmpi.reference.positions`."""

from __future__ import annotations

from fastmpi.reference.positions import linear_positions, mrope_positions

__all__ = ["linear_positions", "mrope_positions"]
