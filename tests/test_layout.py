"""The shape of the tree: imports go down only, and what must stay light or absent does."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastmpi

REPOSITORY = Path(__file__).parents[1]
PACKAGE = Path(fastmpi.__file__).parent

# A module may import its own layer and those below it.
LAYERS = [
    {"kernels", "_C", "reference"},
    {"ops"},
    {"tool_calls"},
    {"rewards", "config", "settings", "checkpoint", "tracking", "files", "environment", "assets"}
    | {"bench", "endpoint", "endpoint_cache"},
    {"models", "data", "policies"},
    {"rollout", "evaluation", "report"},
    {"recipe"},
    {"stages"},
    {"benchmarks"},
    {"cli", "commands", "flags", "__main__"},
]
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that run only when the file is the program."""
    for child in ast.iter_child_nodes(node):
        if not is_main_guard(child):
            yield child
            yield from walk(child)


def imported_modules(path: Path) -> Iterator[str]:
    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield module
            if module == "fastmpi":
                yield from (f"fastmpi.{alias.name}" for alias in node.names)


def units_used(path: Path) -> set[str]:
    """Top-level parts of the package that a module imports, its own among them."""
    names = {name.split(".")[1] for name in imported_modules(path) if name.startswith("fastmpi.")}
    return names - {"__version__"}


def test_every_module_has_a_layer() -> None:
    assert {unit_of(path) for path in MODULES} - LEVEL.keys() == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    level = LEVEL[unit_of(path)]
    upward = {unit for unit in units_used(path) if LEVEL[unit] > level}
    assert not upward, f"{path.name} imports {upward}"
    if unit_of(path) not in ("ops", "kernels"):  # kernels import each other
        assert not units_used(path) & {"_C", "kernels"}, "only ops imports native code"


def in_a_new_process(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


HEAVY = "sorted(sys.modules.keys() & {'torch', 'transformers', 'datasets', 'triton', 'peft'})"


def test_import_fastmpi_is_light() -> None:
    assert in_a_new_process(f"import sys, fastmpi; print({HEAVY})") == "[]"


def test_report_imports_no_torch() -> None:
    modules = sorted(p.stem for p in (PACKAGE / "report").glob("*.py") if p.stem != "__init__")
    imports = ", ".join(f"fastmpi.report.{name}" for name in modules)
    assert in_a_new_process(f"import sys, fastmpi.report, {imports}; print({HEAVY})") == "[]"


def test_every_export_exists() -> None:
    for name in fastmpi.__all__:
        assert getattr(fastmpi, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Polcy'"):
        fastmpi.Polcy  # noqa: B018


@pytest.mark.skipif(not (REPOSITORY / "kernels").exists(), reason="needs the source tree")
def test_kernels_is_no_package_at_the_top() -> None:
    """It would shadow Hugging Face's `kernels`, which transformers imports."""
    assert not (REPOSITORY / "kernels" / "__init__.py").exists()
    assert (REPOSITORY / "fastmpi" / "kernels" / "__init__.py").exists()
