"""Ops execute no more instructions than they used to: a gate that noise cannot move.

`python tests/native/test_instructions.py` counts anew and writes instructions.json. Counts hold for
one compiler, C library and set of vector instructions; elsewhere the test is skipped.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmpi import _C

HERE = Path(__file__).parent
BASELINE = HERE / "instructions.json"
TOLERANCE = 0.05
SIMD = "avx2"  # the widest that valgrind runs,
WIDE = {"avx2", "avx512"}  # on processors whose choice is one of these
SETTINGS = {"FASTMPI_SIMD": SIMD, "OPENBLAS_NUM_THREADS": "1"}

sys.path.insert(0, str(HERE))


def machine() -> dict[str, str]:
    """What the counts depend on besides the code."""
    extension = Path(_C.__file__).read_bytes()
    compilers = re.findall(rb"GCC: \([^)]*\) [\d.]+|clang version [\d.]+", extension)
    return {
        "compiler": compilers[0].decode() if compilers else "unknown",
        "libc": " ".join(platform.libc_ver()),
        "machine": platform.machine(),
        "simd": SIMD if _C.image_kernels() in WIDE else _C.image_kernels(),
    }


def count(folder: Path) -> dict[str, int]:
    """Instructions of each op, from the installed extension."""
    from count_instructions import ops

    callgrind = ["valgrind", "--tool=callgrind", "--dump-before=getppid"]
    script = [sys.executable, "-S", str(HERE / "count_instructions.py"), _C.__file__]
    packages = str(Path(np.__file__).parents[1])
    subprocess.run(
        [*callgrind, f"--callgrind-out-file={folder}/c", *script],
        env={**os.environ, "PYTHONPATH": packages, "PYTHONHASHSEED": "0", **SETTINGS},
        check=True,
        capture_output=True,
    )
    totals = [_total(folder / f"c.{part}") for part in range(1, 2 * len(ops(_C)) + 1)]
    return dict(zip(ops(_C), totals[1::2], strict=True))  # what ends at a second edge


def _total(dump: Path) -> int:
    match = re.search(r"^(?:totals|summary): (\d+)", dump.read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1])


def _describe(name: str, before: int, now: int) -> str:
    return f"{name}: {before:,} -> {now:,} ({now / before - 1:+.1%})"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_no_op_executes_more_instructions(tmp_path: Path) -> None:
    baseline: dict[str, Any] = json.loads(BASELINE.read_text())
    here = machine()
    if here != baseline["machine"]:
        pytest.skip(f"counted on {baseline['machine']}, and this is {here}")
    now, before = count(tmp_path), baseline["instructions"]
    assert now.keys() == before.keys(), "count anew: python tests/native/test_instructions.py"
    worse = [n for n in now if now[n] > before[n] * (1 + TOLERANCE)]
    assert not worse, "\n".join(_describe(n, before[n], now[n]) for n in worse)
    better = [n for n in now if now[n] < before[n] * (1 - TOLERANCE)]
    assert not better, "count anew, to keep it: python tests/native/test_instructions.py\n" + (
        "\n".join(_describe(n, before[n], now[n]) for n in better)
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        counted = {"machine": machine(), "instructions": count(Path(scratch))}
    BASELINE.write_text(json.dumps(counted, indent=2) + "\n")
