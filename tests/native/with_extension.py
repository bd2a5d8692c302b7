"""`python with_extension.py PATH ...`: pytest with another build of fastmpi._C, by its path.

Sanitized builds run slowly and would report what others' code does, so torch stays out: a test
that imports it, or transformers, is skipped.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

ABSENT = ["torch", "transformers"]


def load_extension(path: Path) -> None:
    """From now on `from fastmpi import _C` finds this one."""
    spec = importlib.util.spec_from_file_location("fastmpi._C", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["fastmpi._C"] = module


class WithoutTorch:
    def pytest_configure(self) -> None:
        from hypothesis import settings

        sys.modules.update(dict.fromkeys(ABSENT))  # type: ignore[arg-type]
        settings.register_profile("sanitized", deadline=None)
        settings.load_profile("sanitized")

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self) -> Generator[None, Any, Any]:
        try:
            return (yield)
        except ModuleNotFoundError as error:
            if str(error.name).split(".")[0] not in ABSENT:
                raise
            pytest.skip(f"{error.name} is not imported beside a sanitizer")


if __name__ == "__main__":
    load_extension(Path(sys.argv[1]).resolve())
    sys.exit(pytest.main(["--noconftest", *sys.argv[2:]], plugins=[WithoutTorch()]))
