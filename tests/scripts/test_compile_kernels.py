"""The compile gate: what it compiles for GPUs that are not here, and what it complains of."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "scripts" / "compile_kernels.py"
KERNELS = """
import torch
import triton
import triton.language as tl


@triton.jit
def product_kernel(a, b, c, N: tl.constexpr):
    rows = tl.arange(0, N)
    at = rows[:, None] * N + rows[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at)))


def launch(size, warps):
    a = torch.zeros(size, size, dtype=torch.bfloat16)
    c = torch.zeros(size, size)
    product_kernel[(1,)](a, a, c, N=size, num_warps=warps)


CASES = {"small": lambda: launch(64, 4), "too large for one warp": lambda: launch(128, 1)}
"""


@pytest.fixture(scope="module")
def gate():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def table(gate, tmp_path_factory):
    """Two kernels of our own, compiled for sm_90 by a process that does not interpret."""
    folder = tmp_path_factory.mktemp("gate")
    scripts = folder / "scripts"
    (scripts / "kernel_cases").mkdir(parents=True)
    (scripts / "kernel_cases" / "cases.py").write_text(KERNELS)
    (folder / "kernels").mkdir()
    (folder / "kernels" / "more.py").write_text(
        "@triton.jit\ndef forgotten(x):\n    pass\n\nforgotten[(1,)](x)\n"
        "@triton.jit\ndef inlined(x):\n    pass\n"
    )
    copy = scripts / SCRIPT.name
    copy.write_text(SCRIPT.read_text())
    command = [sys.executable, str(copy), "--arch", "90", "--json", str(folder / "table.json")]
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "launches forgotten" in done.stdout and "inlined" not in done.stdout
    rows = json.loads((folder / "table.json").read_text())
    return {row["case"]: gate["Compiled"](**row) for row in rows}


def test_a_kernel_that_fits_has_no_complaints(table):
    row = table["small"]
    assert row.has_dot and row.tensor_core and row.registers and not row.spills
    assert row.complaints() == []


def test_spills_are_found(table):
    assert any("spills" in complaint for complaint in table["too large for one warp"].complaints())


def test_complaints(gate, table):
    row = asdict(table["small"])
    too_much = gate["Compiled"](**row | {"shared": 240_000})
    no_cores = gate["Compiled"](**row | {"tensor_core": ""})
    assert too_much.complaints() == ["needs 240000 bytes of shared memory"]
    assert no_cores.complaints() == ["multiplies without tensor cores"]


def test_the_table_is_written_between_its_markers(gate, table):
    document = f"# Kernels\n\n{gate['BEGIN']}\nold\n{gate['END']}\nmore\n"
    written = gate["with_table"](document, gate["markdown"]([table["small"]]))
    assert "old" not in written and written.endswith("more\n")
    assert "| `product_kernel` | 4 |" in written and "| small |" in written
    assert gate["with_table"](written, gate["markdown"]([table["small"]])) == written
