"""What this installation can do: versions, devices, and every backend with the reason it is out.

The one place that catches failed imports: elsewhere a missing package is an error at the point of
use, here it is the answer.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

PACKAGES = ("fastmpi", "torch", "triton", "transformers", "accelerate", "datasets", "peft", "numpy",
            "pillow", "safetensors", "flash-attn", "tensorboard", "wandb")  # fmt: skip


@dataclass(frozen=True)
class Backend:
    """One way to do something. reason: why it cannot be used, empty where it can."""

    part: str
    name: str
    use: str
    reason: str = ""

    @property
    def available(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Environment:
    versions: dict[str, str]
    devices: list[str]
    backends: list[Backend]

    def to_dict(self) -> dict[str, object]:
        """Plain values, as `fastmpi env --json` prints them."""
        backends = [{**vars(b), "available": b.available} for b in self.backends]
        return {"versions": self.versions, "devices": self.devices, "backends": backends}


def versions() -> dict[str, str]:
    """Python and every package of interest that is installed; reads metadata, imports nothing."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment() -> Environment:
    """Looks at this machine; takes some seconds, since it imports what it reports on."""
    return Environment(versions(), devices(), backends())


def devices() -> list[str]:
    """The CPU with its cores, and every CUDA device with memory and compute capability."""
    import torch

    cores = len(os.sched_getaffinity(0))
    found = [f"cpu: {cores} cores, {torch.get_num_threads()} torch threads"]
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = device.total_memory / 2**30
        found.append(
            f"cuda:{index}: {device.name}, {memory:.0f} GiB, compute capability "
            f"{device.major}.{device.minor}"
        )
    return found


def backends() -> list[Backend]:
    """Every backend that the library can use."""
    cuda = _no_cuda()
    return [
        Backend("packing", "compiled", "images, tokens, forests, positions, bins",
                _missing("fastmpi._C")),
        Backend("kernels", "triton", "CUDA: head, attention, advantages, patches",
                cuda or _missing("triton")),
        Backend("kernels", "reference", "any device; the judge of the others"),
        Backend("attention", "triton", "CUDA, the default there", cuda or _missing("triton")),
        Backend("attention", "sdpa", "any device, the CPU's default"),
        Backend("attention", "flex", "CUDA", cuda or _missing("triton")),
        Backend("attention", "flash", "any device; flash-attn if it is installed, else torch's"),
        Backend("rollout", "native", "any device"),
        Backend("training", "LoRA", "use_peft", _missing("peft", "fastmpi[lora]")),
        Backend("tracking", "metrics.jsonl", "always"),
        Backend("tracking", "tensorboard", "report_to",
                _missing("tensorboard", "fastmpi[tensorboard]")),
        Backend("tracking", "wandb", "report_to", _missing("wandb", "fastmpi[wandb]")),
        Backend("data", "embedded model", "model: tiny", _no_tiny_base()),
    ]  # fmt: skip


def environment_tables(found: Environment) -> list[Table]:
    """Versions, devices and backends for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    packages = Table("package", "version", title="Versions", title_justify="left")
    for name, version in found.versions.items():
        packages.add_row(name, version)
    machines = Table("device", title="Devices", title_justify="left")
    for device in found.devices:
        machines.add_row(escape(device))
    ways = Table("part", "backend", "use", "available", title="Backends", title_justify="left")
    for backend in found.backends:
        state = "yes" if backend.available else f"no: {backend.reason}"
        ways.add_row(backend.part, backend.name, backend.use, escape(state))
    return [packages, machines, ways]


def _missing(module: str, install: str = "") -> str:
    """Why `module` cannot be imported, empty if it can."""
    hint = f"; pip install {install}" if install else ""
    return _reason(lambda: importlib.import_module(module), hint)


def _reason(attempt: Callable[[], object], hint: str) -> str:
    try:
        attempt()
    except Exception as error:  # whatever an import of a foreign package may raise
        return f"{' '.join(str(error).split()) or type(error).__name__}{hint}"
    return ""


def _no_cuda() -> str:
    import torch

    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return "no CUDA device is visible"


def _no_tiny_base() -> str:
    from fastmpi.assets import tiny_base_path

    path = tiny_base_path()
    return "" if (path / "config.json").exists() else f"not found in {path}"
