"""What is internalised: rules in text and pictures."""

from __future__ import annotations

from fastmpi.policies.policy import Policy, PolicySet

__all__ = ["Policy", "PolicySet"]
