"""`balance_by: seconds`: processes share a step by the seconds that their parts take.

The micro-batches of three steps are timed, after one that warms up, and every process fits the same
cost model to what all of them found. Some steps later, when none is prepared any more that was
planned without it, samples and groups go where the seconds are fewest.

Unusual: what is measured differs from run to run, so the model is written to `cost_model.json` with
the step from which it counts, before that step. A resumed run reads it and takes its steps as they
were taken, bit for bit. Two runs agree to rounding, as they do under any other cut; for the same
bits leave `balance_by` at "tokens".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastmpi.files import write_whole
from fastmpi.models.cost import CostModel, Work, fit, operations
from fastmpi.stages.clock import MicrobatchClock

if TYPE_CHECKING:
    from fastmpi.stages.loop import Trainer

FILE = "cost_model.json"
STEPS = 3


class MeasuredBalance:
    """Of one run. from_step: the first optimiser step (0, 1, ...) that is shared by seconds."""

    def __init__(self, trainer: Trainer, resumed: Path | None) -> None:
        """resumed: the checkpoint that the run goes on from; the file lies beside it."""
        self.trainer = trainer
        self.path = Path(trainer.args.output_dir) / FILE
        self.cost: CostModel | None = None
        self._saved = False
        begin = trainer.state.global_step
        self.measured_at = begin + 1 + STEPS
        # That many steps may have been prepared by then, and one more is being prepared.
        self.from_step = self.measured_at + trainer.args.dataloader_prefetch_factor + 1
        found = trainer.gather_json(self._read(resumed))[0]
        if found is None:
            device = trainer.accelerator.device
            trainer.clock = MicrobatchClock(trainer.model, trainer.features, device)
        else:
            self.from_step, self.cost = found["from_step"], CostModel(**found["seconds"])

    def of_step(self, step: int) -> CostModel | None:
        """What shares step `step`; None: merged tokens. A frozen tower's pictures cost nothing once
        all were seen."""
        if step < self.from_step:
            return None
        assert self.cost is not None, f"step {step} is prepared before step {self.measured_at}"
        seen = not self.trainer.model.trains_vision and step >= self.trainer.steps_per_epoch
        return replace(self.cost, patch=0.0) if seen else self.cost

    def step_done(self) -> None:
        """After each optimiser step, on all processes; measures, and saves what was found."""
        if self.trainer.clock is not None and self.trainer.state.global_step >= self.measured_at:
            self._measured(self.trainer.clock)
        if self.cost is not None and not self._saved:
            self._saved = True
            values = {"from_step": self.from_step, "seconds": asdict(self.cost)}
            if self.trainer.accelerator.is_main_process:
                write_whole(self.path, json.dumps(values, indent=1) + "\n")

    def _measured(self, clock: MicrobatchClock) -> None:
        trainer, first = self.trainer, self.measured_at - STEPS
        trainer.clock, trainer.features.times_itself = None, False
        own = [(t.step, *astuple(t.work), t.seconds) for t in clock.timed if t.step >= first]
        encoding = trainer.features.seconds, trainer.features.patches
        self.cost = self._fit(trainer.gather_json({"timed": own, "encoding": encoding}))

    def _fit(self, found: Sequence[dict[str, Any]]) -> CostModel:
        seconds, patches = np.sum([of_one["encoding"] for of_one in found], axis=0)
        patch = None if self.trainer.model.trains_vision else float(seconds / max(patches, 1))
        unit = operations(self.trainer.model)
        timed = _largest([of_one["timed"] for of_one in found], unit)
        works = [Work(*map(int, row[1:5])) for row in timed]
        return fit(works, [row[5] for row in timed], unit, patch=patch)

    def _read(self, resumed: Path | None) -> Any:
        if resumed is None or not self.trainer.accelerator.is_main_process:
            return None
        path = resumed.parent / FILE
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {"from_step": int(found["from_step"]), "seconds": dict(found["seconds"])}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None


def _largest(timed: Sequence[Sequence[Sequence[float]]], unit: np.ndarray) -> list[Sequence[float]]:
    """Of the micro-batches that the processes run at a time the one with most to do: where weights
    are sharded, all others wait for it and seem to take as long."""
    at_a_time: dict[tuple[int, int], list[Sequence[float]]] = {}
    for of_one in timed:
        number = dict.fromkeys((int(row[0]) for row in of_one), 0)
        for row in of_one:
            step = int(row[0])
            at_a_time.setdefault((step, number[step]), []).append(row)
            number[step] += 1
    return [max(rows, key=lambda row: float(unit @ row[1:5])) for rows in at_a_time.values()]
