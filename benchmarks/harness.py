"""Arms that do the same work, timed in turn in one process.

A bench (`bench_<op>.py`) describes its cases; this module runs one. All arms warm up, then take
turns, forwards and backwards (ABBA), so that whatever drifts in the machine drifts in all of them;
a peer's ratio is the median over rounds of its time over ours in the same round. Every arm's error
against float64 and its peak memory stand beside its time. An arm that cannot run says why; one that
runs out of memory has no ratio.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastmpi.benchmarks.timing import Clock, Sample, clock_of, paired_ratio, spread

OURS = "fastmpi"
OUT_OF_MEMORY = "out of memory"
WARM_UPS = 3
RATIOS = {  # of which times
    "ratio": "ms",
    "wall_ratio": "wall_ms",
    "graph_ratio": "graph_ms",
    "cpu_ratio": "cpu_ms",
}
ROWS_AT_ONCE = 4096  # of a comparison in float64

Outputs = dict[str, Tensor]
Run = Callable[
    [], Outputs
]  # may have `parts`: of its last call, name -> {"ms": ..., "cpu_ms": ...}


class Unavailable(Exception):
    """Why an arm cannot run here, such as "not installed" or "needs a CUDA device"."""


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """``|actual - exact| / |exact|``, Euclidean norms in float64, without a float64 copy."""
    assert actual.shape == exact.shape, f"shapes {tuple(actual.shape)} and {tuple(exact.shape)}"
    total = difference = torch.zeros((), dtype=torch.float64, device=exact.device)
    pairs = zip(_slices(actual.detach()), _slices(exact.detach()), strict=True)
    for part, wanted in pairs:
        difference = difference + (part.double() - wanted.double()).square().sum()
        total = total + wanted.double().square().sum()
    return math.sqrt(difference.item() / total.item()) if total else difference.item() ** 0.5


def _slices(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.reshape(-1, *tensor.shape[1:]).split(ROWS_AT_ONCE)


def mean_absolute_error(name: str) -> Callable[[Outputs, Outputs], float | None]:
    """Mean of ``|actual - exact|`` of the output `name`, for numbers with a unit of their own."""

    def error(outputs: Outputs, exact: Outputs) -> float | None:
        if name not in outputs:
            return None
        return (outputs[name].detach().double() - exact[name].double()).abs().mean().item()

    return error


def first_relative_error(outputs: Outputs, exact: Outputs) -> float | None:
    """The relative error of the first of the exact outputs that the arm has."""
    name = next((name for name in exact if name in outputs), None)
    return None if name is None else relative_error(outputs[name], exact[name])


@dataclass(frozen=True)
class Case:
    """The same work in several arms. Make inputs inside the arms: cases are also only listed."""

    name: str
    arms: Mapping[str, Callable[[], Run]]
    """arms[name]() imports what it needs, may raise `Unavailable`, and returns one run of the arm.
    A run returns its outputs by name. Names of arms of ours start with "fastmpi"."""

    exact: Callable[[], Outputs] | None = None
    """The outputs in float64; an arm may have more, or lack some."""

    error: Callable[[Outputs, Outputs], float | None] = first_relative_error
    """(outputs, exact) -> the error reported first; all relative errors follow it."""

    counts: Mapping[str, float] = field(default_factory=dict)
    """What must be done at least: "flops" and "bytes", for the share of the limit; free keys."""

    graphed: frozenset[str] = frozenset()
    """Arms whose runs a CUDA graph can capture: no synchronisation, no shapes from values."""

    warm_ups: int = WARM_UPS
    """Runs of each arm before it is timed, at least two; long runs need no more."""


def run_case(
    case: Case,
    *,
    device: torch.device,
    runs: int,
    limits: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Times every arm of `case` `runs` times; returns what the file of results says of it.

    limits: measured "flop_per_s" and "bytes_per_s" of the device.
    """
    clock = clock_of(device)
    arms = [_Arm(name) for name in case.arms]
    _warm_up(case, arms, clock)
    _take_turns([arm for arm in arms if not arm.lost], clock, runs)
    return _result(case, arms, limits or {})


@dataclass
class _Arm:
    """An arm on its way through a case."""

    name: str
    run: Run | None = None
    graph: Callable[[], Sample] | None = None
    found: dict[str, Any] = field(default_factory=dict)  # measured once
    samples: list[Sample] = field(default_factory=list)
    parts: list[dict[str, Sample]] = field(default_factory=list)  # of each sample, by name
    lost: str = ""  # why it has no result

    def attempt(self, clock: Clock, action: Callable[[], None]) -> None:
        """`action`, or the reason why the arm has no result: our mistakes raise, a peer's do not.

        Memory is given back, so that no arm fails for what another has left.
        """
        try:
            action()
        except Unavailable as error:
            self.lost = str(error)
        except Exception as error:
            if not _is_out_of_memory(error) and self.name.startswith(OURS):
                raise
            self.lost = OUT_OF_MEMORY if _is_out_of_memory(error) else _said(error)
        if self.lost:
            self.run = self.graph = None
        gc.collect()
        clock.release()

    def warm_up(self, case: Case, clock: Clock, exact: Outputs | None) -> None:
        """Prepares the arm and runs it; the first run is judged, the last one's memory counted."""
        self.run = case.arms[self.name]()
        outputs = self.run()
        errors = judge(case, outputs, exact) if exact is not None else {}
        output_mb = sum(output.nbytes for output in outputs.values()) / 2**20
        del outputs
        for _ in range(case.warm_ups - 2):
            self.run()
        self.found = {"peak_mb": clock.peak_mb(self.run), "output_mb": output_mb, **errors}

    def capture(self, clock: Clock) -> None:
        """Takes the run into a CUDA graph; a peer that cannot be captured keeps its other times."""
        try:
            self.graph = clock.captured(self.run)
        except RuntimeError as error:
            if self.name.startswith(OURS):
                raise
            self.found["graph"] = _said(error)

    def time(self, clock: Clock) -> None:
        """One more sample."""
        sample = clock.time(self.run)
        self.samples.append({**sample, **self.graph()} if self.graph is not None else sample)
        self.parts.append(getattr(self.run, "parts", {}))


def judge(case: Case, outputs: Outputs, exact: Outputs) -> dict[str, Any]:
    """The error of the case, and the relative error of every output that `exact` has too."""
    both = [name for name in exact if name in outputs]
    errors = {name: _plain(relative_error(outputs[name], exact[name])) for name in both}
    return {"error": _plain(case.error(outputs, exact)), "errors": errors}


def _warm_up(case: Case, arms: list[_Arm], clock: Clock) -> None:
    exact = case.exact() if case.exact is not None else None
    for arm in arms:
        arm.attempt(clock, lambda arm=arm: arm.warm_up(case, clock, exact))
        if arm.name in case.graphed and not arm.lost:
            arm.capture(clock)


def _take_turns(arms: list[_Arm], clock: Clock, runs: int) -> None:
    """`runs` samples of each arm, the order reversed in every other round."""
    gc.disable()  # a collection would be charged to whichever arm it falls into
    try:
        for turn in range(runs):
            for arm in arms[:: 1 if turn % 2 == 0 else -1]:
                if not arm.lost:
                    _time_or_lose(arm, clock)
            gc.collect()
    finally:
        gc.enable()


def _time_or_lose(arm: _Arm, clock: Clock) -> None:
    try:
        arm.time(clock)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise  # it ran before, so this is no property of the arm
        arm.lost = OUT_OF_MEMORY
        arm.run = arm.graph = None
        clock.release()


def _result(case: Case, arms: list[_Arm], limits: Mapping[str, float]) -> dict[str, Any]:
    floor = floor_ms(case.counts, limits)
    timed = [arm for arm in arms if not arm.lost]
    full = [arm.name for arm in arms if arm.lost == OUT_OF_MEMORY]
    missing = {arm.name: arm.lost for arm in arms if arm.lost and arm.name not in full}
    return {
        "case": case.name,
        "counts": dict(case.counts),
        "floor_ms": floor,
        "arms": {arm.name: _described(arm, floor) for arm in timed}
        | dict.fromkeys(full, OUT_OF_MEMORY),
        **{name: _ratios(timed, key) for name, key in RATIOS.items()},
        "missing": missing,
    }


def _described(arm: _Arm, floor: float | None) -> dict[str, Any]:
    times = _spreads(arm.samples)
    parts = {name: _spreads([parts[name] for parts in arm.parts]) for name in arm.parts[0]}
    share = None if floor is None else floor / times["ms"]["median"]
    return {**times, **arm.found, "share": share, **({"parts": parts} if parts else {})}


def _spreads(samples: list[Sample]) -> dict[str, dict[str, float]]:
    return {key: spread([sample[key] for sample in samples]) for key in samples[0]}


def floor_ms(counts: Mapping[str, float], limits: Mapping[str, float]) -> float | None:
    """The least time of the counted work at the measured limits; None where either is missing."""
    pairs = (("flops", "flop_per_s"), ("bytes", "bytes_per_s"))
    bounds = [counts[a] / limits[b] for a, b in pairs if a in counts and b in limits]
    return 1e3 * max(bounds) if bounds else None


def _ratios(arms: list[_Arm], key: str) -> dict[str, dict[str, float]]:
    """Each other arm's times over ours, round by round."""
    times = {arm.name: [s[key] for s in arm.samples] for arm in arms if key in arm.samples[0]}
    ours = times.pop(OURS, None)
    return {} if ours is None else {name: paired_ratio(t, ours) for name, t in times.items()}


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    said = str(error).lower()
    full = "out of memory" in said or "can't allocate memory" in said
    return isinstance(error, RuntimeError) and full


def _said(error: Exception) -> str:
    return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _plain(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity."""
    return value if value is None or math.isfinite(value) else str(value)
