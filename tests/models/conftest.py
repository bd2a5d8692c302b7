"""Tiny models of all families: made, saved and loaded once a session, copied for each test."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmpi.models.forest_model import ForestModel
from fastmpi.models.tiny import FAMILIES, tiny_model

_loaded: dict[Any, ForestModel] = {}


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in made.items():
        tiny_model(family, seed=7, folder=folder)
    return made


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def load(folders) -> Callable[..., ForestModel]:
    """`load(family, **options of from_pretrained)` -> a ForestModel of the test's own, on the CPU
    also where there is a GPU."""

    def load(family: str, *, dtype: torch.dtype = torch.float32, **options) -> ForestModel:
        options = {"dtype": dtype, "probe": False, "device": "cpu", **options}
        key = (family, *options.items())
        if key not in _loaded:
            _loaded[key] = ForestModel.from_pretrained(folders[family], **options)
        original = _loaded[key]
        backend = original.attention_backend or "auto"
        base = copy.deepcopy(original.base)
        return ForestModel(base, original.processor, attention_backend=backend).eval()

    return load
