"""Compiles every kernel as it is shipped for GPUs that need not be there, and says what came out.

    python scripts/compile_kernels.py --json table.json
    python scripts/compile_kernels.py --check docs/kernels.md    or --write, after a change
    compute-sanitizer python scripts/compile_kernels.py --launch

The ops' own launchers run, on small CPU tensors, under a driver that compiles and never launches:
what is compiled is what a GPU would run, so no second list of signatures can grow stale. For each
kernel and architecture: registers, stack (spills), shared memory against its limit, and the
tensor-core instructions in the machine code.
"""

from __future__ import annotations

import argparse
import json
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

SHARED_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}  # bytes a program may have
BEGIN, END = "<!-- kernels -->", "<!-- /kernels -->"  # around the table in the documentation
JITTED = re.compile(r"@triton\.jit(?:\([^)]*\))?\ndef (\w+)\(")
TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA|IMMA)\b")


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture. spills: bytes of stack a thread."""

    case: str
    kernel: str
    arch: int
    warps: int
    registers: int
    spills: int
    shared: int
    tensor_core: str
    has_dot: bool

    def complaints(self) -> list[str]:
        """What is wrong with it; empty if nothing is."""
        found = []
        if self.spills:
            found.append(f"spills {self.spills} bytes")
        if self.shared > SHARED_LIMIT[self.arch]:
            found.append(f"needs {self.shared} bytes of shared memory")
        if self.has_dot and not self.tensor_core:
            found.append("multiplies without tensor cores")
        return found


class CompileOnlyDriver:
    """What Triton asks of a driver before it launches, for a GPU that is not there."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_device(self) -> int:
        return self.target.arch  # the key of each kernel's cache

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def compile_only(arch: int) -> Iterator[list[tuple[str, Any]]]:
    """Inside, launching a kernel compiles it for `arch` and adds it to the list."""
    compiled: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_without_launch(
        self: Any, *args: Any, grid: Any, warmup: bool, **options: Any
    ) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        compiled.append((self.__name__, kernel))
        return kernel

    driver.set_active(CompileOnlyDriver(arch))
    with (
        mock.patch.object(JITFunction, "run", compile_without_launch),
        mock.patch("fastmpi.ops.backend.kernels_run_on_cpu", return_value=True),
    ):
        yield compiled


def inspect(case: str, name: str, kernel: Any, arch: int) -> Compiled:
    """Reads registers, spills and instructions off the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        code = _run(knobs.nvidia.nvdisasm.path, "-c", file.name)
    numbers = dict(re.findall(r"\b(REG|STACK):(\d+)", usage))
    return Compiled(
        case=case,
        kernel=name,
        arch=arch,
        warps=kernel.metadata.num_warps,
        registers=int(numbers["REG"]),
        spills=int(numbers["STACK"]),
        shared=kernel.metadata.shared,
        tensor_core="/".join(sorted(set(TENSOR_CORE.findall(code)))),
        has_dot="tt.dot" in kernel.asm["ttir"],
    )


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compile_all(arches: list[int], only: str = "") -> list[Compiled]:
    """Every case for every architecture; kernels that several cases share, once."""
    found: dict[tuple[str, str, int], Compiled] = {}
    for arch in arches:
        for case, launch in cases().items():
            if only not in case:
                continue
            with compile_only(arch) as compiled:
                launch()
            for name, kernel in compiled:
                key = (case, name, arch)
                if key not in found:
                    found[key] = inspect(case, name, kernel, arch)
    return list(found.values())


def cases() -> dict[str, Callable[[], Any]]:
    """Launches of all shipped kernels: the `CASES` of every file in `kernel_cases/`."""
    found: dict[str, Callable[[], Any]] = {}
    for file in sorted(Path(__file__).with_name("kernel_cases").glob("*.py")):
        found |= runpy.run_path(str(file))["CASES"]
    return found


def shipped() -> set[str]:
    """The names of all kernels: jitted functions that a launcher in their file gives a grid."""
    files = Path(__file__).parents[1].joinpath("kernels").glob("*.py")
    texts = [file.read_text() for file in files]
    return {name for text in texts for name in JITTED.findall(text) if f"{name}[" in text}


def launch_all(only: str = "") -> None:
    """Runs every case on this machine's GPU, for a memory checker to watch."""
    torch.set_default_device("cuda")
    for name, launch in cases().items():
        if only in name:
            launch()
            torch.cuda.synchronize()
            print(name)


def markdown(table: list[Compiled]) -> str:
    """The table as it stands in the documentation: a row for all cases that compile alike."""
    kernels: dict[tuple[str, str], list[Compiled]] = {}
    for row in table:
        kernels.setdefault((row.case, row.kernel), []).append(row)
    rows: dict[tuple[str, str], list[str]] = {}
    for (case, kernel), found in kernels.items():
        rows.setdefault((kernel, _cells(found)), []).append(case)
    lines = [
        "| kernel | warps | registers | shared memory, kB | tensor cores | in |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| `{kernel}` | {cells} | {', '.join(c)} |" for (kernel, cells), c in rows.items()]
    return "\n".join(lines)


def _cells(found: list[Compiled]) -> str:
    """One kernel's columns, one value where all architectures agree."""
    columns = (
        [str(row.warps) for row in found],
        [str(row.registers) for row in found],
        [f"{row.shared / 1024:.0f}" for row in found],
        [row.tensor_core or "-" for row in found],
    )
    return " | ".join(v[0] if len(set(v)) == 1 else " / ".join(v) for v in columns)


def with_table(document: str, table: str) -> str:
    """`document` with what stands between its two markers replaced by `table`."""
    before, rest = document.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> int:
    """Compiles, prints the table, and fails if a kernel is not fit to ship."""
    args = _arguments()
    if args.launch:
        launch_all(args.only)
        return 0
    table = compile_all(args.arch, args.only)
    for row in table:
        complaints = "; ".join(row.complaints())
        print(
            f"{row.case:32} {row.kernel:32} sm_{row.arch:<4} {row.warps} warps  "
            f"{row.registers:3} registers  {row.spills:4} spilled  {row.shared:6} B shared  "
            f"{row.tensor_core or '-':8} {complaints}"
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in table], indent=1) + "\n")
    fit = not any(row.complaints() for row in table)
    return int(not all([fit, _complete(table, args), _documented(table, args)]))


def _complete(table: list[Compiled], args: argparse.Namespace) -> bool:
    missing = set() if args.only else shipped() - {row.kernel for row in table}
    for name in sorted(missing):
        print(f"no case in {Path(__file__).with_name('kernel_cases')} launches {name}")
    return not missing


def _documented(table: list[Compiled], args: argparse.Namespace) -> bool:
    """Writes the table into a document, or checks that it stands there."""
    if args.write:
        args.write.write_text(with_table(args.write.read_text(), markdown(table)))
    if args.check and with_table(text := args.check.read_text(), markdown(table)) != text:
        print(f"{args.check} has another table: run this with --write {args.check}")
        return False
    return True


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", default=sorted(SHARED_LIMIT))
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", type=Path, help="file for the table")
    parser.add_argument("--write", type=Path, help="document whose table is replaced")
    parser.add_argument("--check", type=Path, help="document whose table must be this one")
    parser.add_argument("--launch", action="store_true", help="run them on the GPU that is here")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
