"""What a stage was made from and what it cost: `stage.json` beside what its trainer wrote.

Its identity is a hash of the settings, the rows, the policies and the stages before it, so that a
finished stage is found again, and a folder made from something else is not taken for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastmpi import __version__
from fastmpi.assets import tiny_base_path
from fastmpi.files import make_folder, write_whole
from fastmpi.recipe import FILES, StagePlan

RECORD = "stage.json"
# Where things lie and what is shown does not change what a stage makes.
_NOT_MADE_FROM = (
    "output_dir",
    "report_to",
    "disable_tqdm",
    "logging_steps",
    "profile",
    "ddp_timeout",
)


@dataclass(frozen=True)
class DataFiles:
    """The files that a recipe's `data` and `policies` come to."""

    policies: str | None
    train: str | None
    train_cot: str | None
    test: str | None
    override: str | None = None
    override_policies: str | None = None

    def rows(self, name: str) -> str:
        """The path of "train", "train_cot" or "test", or `name` itself, a path."""
        if name not in FILES:
            return name
        path = getattr(self, name)
        if path is None:
            raise ValueError(f"data has no {name!r}, and a stage needs it")
        return str(path)


@dataclass(frozen=True)
class StageStart:
    """What a stage begins with: a model and the identity of what made it."""

    model: str
    identity: str


def resolve_model(name: str) -> str:
    """ "tiny" is the model inside this package; anything else is a folder or hub name."""
    if name != "tiny":
        return name
    path = tiny_base_path()
    if not (path / "config.json").exists():
        raise ValueError(f"the embedded model is missing from {path}")
    return str(path)


@dataclass(frozen=True)
class StageRecord:
    """What `stage.json` says.

    identity: hash of all that the stage was made from. made_from: the same, readable.
    model: the folder of the trained model. cpu_seconds, seconds: of the optimiser steps and the
    rollouts, by the processor's and the wall clock, over all parts of a resumed run.
    """

    identity: str
    made_from: Mapping[str, Any]
    done: bool = False
    model: str = ""
    steps: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, made_from: Mapping[str, Any]) -> StageRecord:
        """The record of a stage that has not run yet."""
        return cls(_digest(made_from), made_from)

    @classmethod
    def read(cls, folder: Path) -> StageRecord | None:
        path = folder / RECORD
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    def write(self, folder: Path) -> None:
        make_folder(folder)
        write_whole(folder / RECORD, json.dumps(asdict(self), indent=1) + "\n")


def made_from_of(plan: StagePlan, start: StageStart, data: DataFiles) -> dict[str, Any]:
    """All that a stage's result depends on, as JSON values."""
    settings = {k: v for k, v in plan.config.to_dict().items() if k not in _NOT_MADE_FROM}
    rows = _file_digest(data.rows(plan.train_dataset))
    policies = _file_digest(data.policies) if data.policies else ""
    return json.loads(
        json.dumps(
            {
                "fastmpi": __version__,
                "stage": plan.kind,
                **settings,
                "reward_funcs": list(plan.reward_funcs),
                "rows": rows,
                "policies": policies,
                "start": start.identity,
            }
        )
    )


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What two folders' origins disagree in, in words."""
    for key, value in wanted.items():
        if found.get(key) != value:
            return f"was made with {key} {found.get(key)!r:.40}, not {value!r:.40}"
    return "was made from something else"


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _file_digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
