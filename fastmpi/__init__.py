"""fastmpi: multimodal policy internalization by prefix forests.

`import fastmpi` is light: the names below load their module, and torch with it, at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "CPTConfig": "fastmpi.config",
    "CPTTrainer": "fastmpi.stages.cpt",
    "ForestModel": "fastmpi.models.forest_model",
    "Policy": "fastmpi.policies",
    "PolicyRolloutConfig": "fastmpi.config",
    "PolicyRolloutTrainer": "fastmpi.stages.rl",
    "PolicySet": "fastmpi.policies",
    "Processor": "fastmpi.data.processor",
    "SFTConfig": "fastmpi.config",
    "SFTTrainer": "fastmpi.stages.sft",
    "run": "fastmpi.stages.chain",
}

__all__ = [
    "CPTConfig",
    "CPTTrainer",
    "ForestModel",
    "Policy",
    "PolicyRolloutConfig",
    "PolicyRolloutTrainer",
    "PolicySet",
    "Processor",
    "SFTConfig",
    "SFTTrainer",
    "__version__",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fastmpi' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from fastmpi.config import CPTConfig, PolicyRolloutConfig, SFTConfig
    from fastmpi.data.processor import Processor
    from fastmpi.models.forest_model import ForestModel
    from fastmpi.policies import Policy, PolicySet
    from fastmpi.stages.chain import run
    from fastmpi.stages.cpt import CPTTrainer
    from fastmpi.stages.rl import PolicyRolloutTrainer
    from fastmpi.stages.sft import SFTTrainer
