"""What a file of results says beside its numbers: the machine, the versions, the commit."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch", "triton", "transformers", "numpy", "trl", "liger-kernel", "cut-cross-entropy",
    "prefix-grouper", "flash-attn", "flash-attn-4",
)  # fmt: skip
SAME = ("bench", "device", "commit", "versions", "runs")  # of the parts of one file
GPU_FIELDS = ("driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")


def new_record(bench: str, device: torch.device, runs: int) -> dict[str, Any]:
    """A file of results without cases."""
    return {
        "bench": bench,
        "device": device_name(device),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(device),
        "runs": runs,
        "limits": {},
        "cases": [],
        "missing": {},
    }


def kept_cases(path: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases that a file of an earlier run has, so that a bench can be measured in parts.

    `ValueError` unless it says the same of bench, device, commit, versions and runs.
    """
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = [key for key in SAME if found[key] != record[key]]
        cases: list[dict[str, Any]] = found["cases"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no file of results; name another") from None
    if differing:
        raise ValueError(f"{path} was measured with another {differing[0]}; name another file")
    return cases


def add_case(record: dict[str, Any], case: dict[str, Any]) -> None:
    """One more case, in place of an older one of its name; `missing` is what ran in no case."""
    record["cases"] = [done for done in record["cases"] if done["case"] != case["case"]] + [case]
    ran = {arm for done in record["cases"] for arm in done["arms"]}
    reasons = {arm: why for done in record["cases"] for arm, why in done["missing"].items()}
    record["missing"] = {arm: why for arm, why in reasons.items() if arm not in ran}


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes beside `path` and renames, so that a run cut short leaves a whole file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(aside, path)


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Python, CUDA, and what is installed of the packages that take part."""
    found = {"python": platform.python_version()}
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, str]:
    """Threads of the CPU; driver, clocks and power limit of the GPU as nvidia-smi tells them."""
    if device.type != "cuda":
        return {"threads": str(torch.get_num_threads())}
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = f"--query-gpu={','.join(GPU_FIELDS)}"
    told = _said(["nvidia-smi", f"--id={uuid}", query, "--format=csv,noheader"])
    if not told:
        return {}
    return dict(zip(GPU_FIELDS, (value.strip() for value in told.split(",")), strict=False))


def commit() -> str:
    """The commit of the checkout that this file lies in, else the installed version."""
    folder = Path(__file__).resolve().parent
    if (folder.parent / ".git").exists():
        changed = _said(["git", "-C", str(folder), "status", "--porcelain", "-uno"])
        found = _said(["git", "-C", str(folder), "rev-parse", "HEAD"])
        return found + ("+changes" if changed else "") if found else "unknown"
    return f"fastmpi {importlib.metadata.version('fastmpi')}"


def _said(words: list[str]) -> str:
    """What a command prints; empty where it is missing or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
