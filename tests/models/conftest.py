"""Tiny model folders of all families, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fastmpi.models.tiny import FAMILIES, tiny_model


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
def load(folders) -> Callable:
    from fastmpi.models.forest_model import ForestModel

    return lambda family, **options: ForestModel.from_pretrained(
        folders[family], **{"probe": False, **options}
    )
