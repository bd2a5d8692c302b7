"""Samples -> prefix forest -> one flat sequence. Twin: `fastmpi.reference.forest`."""

from __future__ import annotations

from fastmpi.reference.forest import ForestLayout, build_forest

__all__ = ["ForestLayout", "build_forest"]
