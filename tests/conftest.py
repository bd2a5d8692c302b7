"""Settings of every test: one thread (two are slower beside other work), and no network."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_folder(family)`: the folder of a tiny random model, made once a session."""

    @cache
    def make(family: str) -> Path:
        from fastmpi.models.tiny import tiny_model

        folder = tmp_path_factory.mktemp(family)
        tiny_model(family, folder=folder)
        return folder

    return make
