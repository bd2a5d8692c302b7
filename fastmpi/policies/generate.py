"""Data sets by their settings: which generator a recipe's `data` names, and how it is run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from fastmpi.policies.clevr_data import ClevrPolicyConfig
    from fastmpi.policies.gta.data import GTAPolicyConfig

DataConfig: TypeAlias = "ClevrPolicyConfig | GTAPolicyConfig"

# Module and name of the settings; the module's `generate` writes the data set.
GENERATORS: Mapping[str, tuple[str, str]] = {
    "clevr_policy": ("fastmpi.policies.clevr_data", "ClevrPolicyConfig"),
    "gta_policy": ("fastmpi.policies.gta.data", "GTAPolicyConfig"),
}


def data_config(kind: str, settings: Mapping[str, Any]) -> DataConfig:
    """The settings of data set `kind`; ValueError for an unknown key or a bad value."""
    module, name = GENERATORS[kind]
    found: DataConfig = getattr(importlib.import_module(module), name).from_dict(settings)
    return found


def generate(config: DataConfig) -> Path:
    """Write the data set that `config` describes to its `output_dir`, and return that folder."""
    made: Path = importlib.import_module(type(config).__module__).generate(config)
    return made
