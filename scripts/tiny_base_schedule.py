"""What the tiny base is trained on, step by step, and how fast: phases, cycles, and the schedule
that walks through them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from tiny_base_gta import GTATasks
from tiny_base_tasks import Tasks

from fastmpi.data.samples import Sample

# Rows a step; those about tools are twice as long.
ROWS = {"describe": 32, "objects": 32, "trace": 32, "follow": 32}
ROWS |= {"tests": 24, "recite": 24, "routes": 20, "calls": 20}


@dataclass(frozen=True)
class Phase:
    """What is trained until the running accuracies exceed `until`."""

    shares: Mapping[str, float]  # of batches, by kind
    trace_depths: tuple[int, ...]
    follow_depths: tuple[int, ...]
    pictured: float  # share of the trees that show some values in pictures
    num_tools: tuple[int, int]
    until: Mapping[str, float] = field(default_factory=dict)


READ = Phase(
    {"trace": 0.4, "tests": 0.3, "routes": 0.25, "objects": 0.05},
    *((1, 2), (), 0.0, (1, 2)),
    {"leaf": 0.9, "tests": 0.85},
)
SEE = Phase(
    {"describe": 0.4, "objects": 0.06, "trace": 0.1, "follow": 0.14, "tests": 0.05, "routes": 0.25},
    *((2,), (2,), 0.5, (1, 3)),
)
ROUTE = Phase(
    {
        "describe": 0.17,
        "objects": 0.03,
        "trace": 0.05,
        "follow": 0.2,
        "tests": 0.03,
        "routes": 0.52,
    },
    *((2,), (2,), 0.4, (1, 3)),
    {"version": 0.8},
)
CALL = Phase(
    {"describe": 0.13, "objects": 0.03, "trace": 0.05, "follow": 0.34, "tests": 0.02}
    | {"routes": 0.15, "calls": 0.28},
    *((2, 3), (2, 2, 3), 0.4, (3, 6)),
)
RECITE = Phase(
    {"describe": 0.1, "objects": 0.02, "trace": 0.04, "follow": 0.2, "tests": 0.04}
    | {"recite": 0.4, "calls": 0.2},
    *((2,), (2,), 0.4, (3, 6)),
)
ALL = Phase(
    {"describe": 0.12, "objects": 0.02, "trace": 0.03, "follow": 0.3, "tests": 0.03}
    | {"recite": 0.12, "routes": 0.04, "calls": 0.34},
    *((2, 3), (2, 2, 3), 0.4, (4, 6)),
)


@dataclass(frozen=True)
class CycleSettings:
    """Phases one after another, in `steps` steps; the last takes what is left of them."""

    phases: tuple[Phase, ...]
    steps: int
    learning_rate: float
    plateau: int  # steps before the learning rate falls
    horizon: int  # steps after which it would be nothing


CYCLES = (
    CycleSettings((READ, SEE), 1200, 2e-3, 1200, 2400),
    CycleSettings((ROUTE, CALL), 1600, 2e-3, 910, 2600),
    CycleSettings((RECITE,), 1000, 1.8e-3, 500, 1800),
    CycleSettings((ALL,), 1200, 1.6e-3, 200, 1200),
)
WARMUP_STEPS = 60


class Schedule:
    """What each step trains on, and how fast."""

    def __init__(self, settings: CycleSettings, seed: int) -> None:
        self.settings = settings
        self.rng = np.random.default_rng(seed + 1)
        self.running: dict[str, float] = {}
        self.number = 0

    @property
    def phase(self) -> Phase:
        return self.settings.phases[self.number]

    def scale(self, step: int) -> float:
        """Of the learning rate: warm-up, a plateau, linear decay to nothing."""
        plateau, horizon = self.settings.plateau, self.settings.horizon
        return min((step + 1) / WARMUP_STEPS, (horizon - step) / (horizon - plateau), 1.0)

    def draw(self, tasks: Tasks, tools: GTATasks) -> tuple[str, list[Sample]]:
        """The next batch and its kind."""
        phase = self.phase
        kind = str(self.rng.choice(list(phase.shares), p=list(phase.shares.values())))
        if kind in ("tests", "recite", "routes", "calls"):
            # One size a batch: rows of similar length.
            size = int(self.rng.integers(phase.num_tools[0], phase.num_tools[1] + 1))
            return kind, tools.batch(kind, ROWS[kind], (size, size))
        depths = {"trace": phase.trace_depths, "follow": phase.follow_depths}.get(kind, (0,))
        depth = int(self.rng.choice(depths))
        return kind, tasks.batch(kind, ROWS[kind], depth, phase.pictured if depth == 2 else 0.0)

    def observe(self, accuracies: dict[str, float]) -> None:
        for name, value in accuracies.items():
            old = self.running.get(name, 0.0)
            self.running[name] = 0.9 * old + 0.1 * value
        until = self.phase.until
        if until and all(self.running.get(name, 0.0) > least for name, least in until.items()):
            self.number += 1
