"""Clocks, and what is made of their readings.

On CUDA a run lies between two events, after the L2 cache was overwritten and the device was idle,
so that no arm finds its inputs cached by the arm before it, and the gaps between its launches
count. A CUDA graph of many copies has no such gaps: its replay is the time of the kernels alone.
On the CPU the wall clock runs; the process's own CPU time stands beside it, because neighbours on
a shared machine stretch the first and not the second.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

GRAPH_COPIES = 20  # runs in one graph: its launch is shared among them
RESAMPLES = 2000
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")

Sample = dict[str, float]  # milliseconds by name; "ms" is the one that ratios are made of


class CpuClock:
    """Wall time and CPU time of a run. torch keeps no account of the CPU's memory; Linux tells what
    the whole process holds at most."""

    def time(self, run: Callable[[], Any]) -> Sample:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"ms": 1e3 * wall, "cpu_ms": 1e3 * cpu}

    def peak_mb(self, run: Callable[[], Any]) -> float | None:
        """Most resident memory during a run above that before it, in MiB; None but on Linux."""
        self.release()
        try:
            CLEAR_REFS.write_text("5")  # the high-water mark falls to what is resident
        except OSError:
            run()
            return None
        before = _resident_kb("VmRSS")
        run()
        return (_resident_kb("VmHWM") - before) / 1024

    def release(self) -> None:
        """What was freed goes back to the system: else the next run would be given it."""
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

    def captured(self, run: Callable[[], Any]) -> None:
        """No graphs on the CPU."""
        return None


def _resident_kb(name: str) -> int:
    """A number of this process's status."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class CudaClock:
    """Device time and wall time of a run that starts on an idle device with a cold L2 cache."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.flush = torch.empty(2 * cache, dtype=torch.uint8, device=device)

    def time(self, run: Callable[[], Any]) -> Sample:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda.synchronize(self.device)
        wall = time.perf_counter()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize(self.device)
        wall = time.perf_counter() - wall
        return {"ms": start.elapsed_time(end), "wall_ms": 1e3 * wall}

    def peak_mb(self, run: Callable[[], Any]) -> float:
        """Most memory that a run holds above what was allocated before it, in MiB."""
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        run()
        torch.cuda.synchronize(self.device)
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def release(self) -> None:
        """Cached memory goes back, so that no arm fails for what another has left."""
        torch.cuda.empty_cache()

    def captured(self, run: Callable[[], Any]) -> Callable[[], Sample]:
        """A clock of the kernels of `run`: `GRAPH_COPIES` of it in one graph, cache warm."""
        aside = torch.cuda.Stream(self.device)
        aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(aside):  # autograd remembers streams: capture must not meet another
            run()
        torch.cuda.current_stream(self.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=aside):
            for _ in range(GRAPH_COPIES):
                run()
        graph.replay()
        return lambda: {"graph_ms": self.time(graph.replay)["ms"] / GRAPH_COPIES}


Clock = CpuClock | CudaClock


def clock_of(device: torch.device) -> Clock:
    """The clock for runs on `device`."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, and the bounds of the middle three fifths."""
    p20, median, p80 = np.percentile(values, [20, 50, 80])
    return {"p20": float(p20), "median": float(median), "p80": float(p80)}


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Median of the ratios of runs of one round, with its 95 % bootstrap interval."""
    ratios = np.asarray(theirs) / np.asarray(ours)
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}


def measure_limits(device: torch.device, runs: int = 20) -> dict[str, float]:
    """Bytes per second of a large copy, read and written, and bf16 FLOP/s of a large product."""
    if device.type != "cuda":
        return {}
    clock = CudaClock(device)
    source = torch.randn(2**28, device=device)  # 1 GiB
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    copy = _median_seconds(clock, lambda: target.copy_(source), runs)
    product = _median_seconds(clock, lambda: a @ b, runs)
    return {"bytes_per_s": 2 * source.nbytes / copy, "flop_per_s": 2 * 8192**3 / product}


def _median_seconds(clock: CudaClock, run: Callable[[], Any], runs: int) -> float:
    readings = [clock.time(run)["ms"] for _ in range(runs + 3)]
    return spread(readings[3:])["median"] / 1e3
