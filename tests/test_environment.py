"""`fastmpi env`: what is there, and why the rest is not."""

from __future__ import annotations

import io

import torch
from rich.console import Console

from fastmpi import environment as env


def test_versions_are_of_what_is_installed():
    found = env.versions()
    assert found["torch"] == torch.__version__ and "python" in found and "no-such" not in found


def test_every_backend_is_available_or_says_why():
    found = env.environment()
    names = {backend.name: backend for backend in found.backends}
    assert names["sdpa"].available and names["metrics.jsonl"].available
    if not torch.cuda.is_available():
        assert "CUDA" in names["flex"].reason and "CUDA" in names["triton"].reason
    assert found.devices[0].startswith("cpu: ")
    assert found.to_dict()["backends"][0]["available"] in (True, False)


def test_every_attention_backend_is_listed():
    from fastmpi.ops.forest_attention import BACKENDS

    listed = {backend.name for backend in env.backends() if backend.part == "attention"}
    assert listed | {"reference"} == set(BACKENDS)


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(env.__dict__, "PACKAGES", ("no-such-package",))
    assert list(env.versions()) == ["python"]
    reason = env._missing("no_such_package", "fastmpi[extra]")
    assert reason == "No module named 'no_such_package'; pip install fastmpi[extra]"


def test_tables_show_brackets_as_they_are():
    backend = env.Backend("training", "LoRA", "use_peft", "not here; pip install fastmpi[lora]")
    found = env.Environment({"torch": "2"}, ["cpu"], [backend])
    console = Console(file=io.StringIO(), width=120)
    for table in env.environment_tables(found):
        console.print(table)
    assert "no: not here; pip install fastmpi[lora]" in console.file.getvalue()
