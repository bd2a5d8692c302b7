"""Which samples share a micro-batch. Twin: `fastmpi.reference.bins`."""

from __future__ import annotations

from fastmpi.reference.bins import plan_microbatches

__all__ = ["plan_microbatches"]
