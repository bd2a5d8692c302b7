"""`--profile`: where the time of a few optimiser steps goes.

`profile/trace.json` opens in chrome://tracing and in Perfetto; `profile/regions.txt` is a table of
the dearest regions: torch's operations and kernels, and our own, whose names begin with "fastmpi".
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

SKIPPED_STEPS = 2  # the first ones allocate and compile
PROFILED_STEPS = 3
NUM_REGIONS = 10


def region(name: str) -> record_function:
    """A part of a step that a profile shows under its name; nearly free where none is made."""
    return record_function(f"fastmpi: {name}")


def now(device: torch.device) -> float:
    """Seconds, when all that this thread gave `device` is done.

    Not the whole device: that would wait for what another thread samples, and end its capture of a
    graph with an error."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return time.perf_counter()


def peak_gb(device: torch.device) -> float:
    """The most memory so far, in 10^9 bytes: on CUDA what the tensors on `device` took, elsewhere
    what the process was given by the system."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class StepProfiler:
    """Profiles some steps of a run into `folder`, and tells `say` what it found.

    Call `step` after each optimiser step, and `close` where the run ends earlier.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        on_cuda = torch.cuda.is_available()
        self._sort_by = "self_device_time_total" if on_cuda else "self_cpu_time_total"
        self._profile: profile | None = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])],
            schedule=schedule(wait=SKIPPED_STEPS - 1, warmup=1, active=PROFILED_STEPS, repeat=1),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def step(self) -> None:
        if self._profile is not None:
            self._profile.step()

    def close(self) -> None:
        """Ends the profile; of a run that was shorter, what there is of it is written."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, made: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        made.export_chrome_trace(str(self.folder / "trace.json"))
        table = made.key_averages().table(
            sort_by=self._sort_by, row_limit=NUM_REGIONS, max_name_column_width=60
        )
        (self.folder / "regions.txt").write_text(table + "\n", encoding="utf-8")
        self.say(f"{table}\nThe trace is in {self.folder / 'trace.json'}")
