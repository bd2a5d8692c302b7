"""Settings of every test: one thread (two are slower beside other work), and no network."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("FASTMPI_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


# Without a GPU, Triton interprets the kernels, on CPU tensors; it asks when they are imported.
if not _gpu():
    os.environ["TRITON_INTERPRET"] = "1"

# A shared machine may stop a test for longer than any deadline.
settings.register_profile("fastmpi", deadline=None)
settings.load_profile("fastmpi")


def pytest_sessionstart(session: pytest.Session) -> None:
    """CI tests the wheel: FASTMPI_EXPECT_INSTALLED refuses to test the source tree instead."""
    import fastmpi

    package = Path(fastmpi.__file__).resolve()
    site_packages = Path(sysconfig.get_path("platlib")).resolve()
    if os.environ.get("FASTMPI_EXPECT_INSTALLED") and site_packages not in package.parents:
        pytest.exit(f"expected fastmpi in {site_packages}, imported {package}", returncode=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is none."""
    marked = [item for item in items if "gpu" in item.keywords]
    if marked and not _gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Memory that a test had on the GPU goes back: other processes test there too."""
    if "gpu" in item.keywords and _gpu():
        import torch

        torch.cuda.empty_cache()


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
