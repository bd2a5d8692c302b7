"""Settings and outcome of an evaluation. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmpi.evaluation.metrics import Figure, share, split
from fastmpi.settings import Settings


@dataclass(kw_only=True)
class EvalConfig(Settings):
    """How a model is asked."""

    batch_size: int = 64
    """Prompts answered together; the answers do not depend on it."""

    max_completion_length: int = 256
    """Most tokens of a response."""

    temperature: float = 0.0
    """0 takes the most likely token; above it, responses are sampled."""

    num_rows: int | None = None
    """Evaluate the first rows only; None: all."""

    num_timed_prompts: int = 16
    """Prompts whose prefill is timed, one at a time; 0: none."""

    seed: int = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_completion_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.temperature < 0 or self.num_timed_prompts < 0:
            raise ValueError("temperature and num_timed_prompts must not be negative")
        if self.num_rows is not None and self.num_rows < 1:
            raise ValueError(f"num_rows must be at least 1, not {self.num_rows}")


@dataclass(kw_only=True)
class EvalInputs(EvalConfig):
    """What an evaluation takes."""

    model: str = "tiny"
    """Folder or hub name of the model; may also stand right after `eval`."""

    test_dataset: str
    """JSONL file of the questions, with their answers."""

    policies: str | None = None
    """JSONL file of the policies; without it the policy stays out of the prompt."""

    output_dir: str | None = None
    """Folder for the answers and the summary; None: only print."""


@dataclass(frozen=True)
class EvalResult:
    """What came out.

    items: per row {"id", "policy_id", "prompt", "response", "parsed", "answer", "correct"}.
    prompt_tokens: mean over the rows, placeholders included. prefill_ms: median over the timed
    prompts of one forward pass with its pictures, NaN where none was timed.
    """

    with_policy: bool
    items: Sequence[Mapping[str, Any]]
    prompt_tokens: float
    prefill_ms: float
    total: Figure = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", share([item["correct"] for item in self.items]))

    @property
    def accuracy(self) -> float:
        return self.total.value

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return self.total.interval

    @property
    def n(self) -> int:
        return self.total.n

    def by_policy(self) -> dict[str, Figure]:
        return self._split("policy_id")

    def by_outcome(self) -> dict[str, Figure]:
        """Per gold answer: shows a model that always gives the same one."""
        return self._split("answer")

    def _split(self, column: str) -> dict[str, Figure]:
        groups = split(self.items, lambda item: item[column])
        return {name: share([i["correct"] for i in items]) for name, items in groups.items()}

    def summary(self) -> dict[str, Any]:
        """Everything but the items, as plain values."""
        return {
            "with_policy": self.with_policy,
            "accuracy": self.total.to_dict(),
            "prompt_tokens": self.prompt_tokens,
            "prefill_ms": self.prefill_ms,
            "by_policy": {name: figure.to_dict() for name, figure in self.by_policy().items()},
            "by_outcome": {name: figure.to_dict() for name, figure in self.by_outcome().items()},
        }

    def line(self) -> str:
        """One line for the terminal."""
        low, high = self.interval
        prompt = "with the policy" if self.with_policy else "without the policy"
        return (
            f"{prompt}: accuracy {self.accuracy:.3f} (95 % {low:.3f} to {high:.3f}, n {self.n}), "
            f"{self.prompt_tokens:.0f} prompt tokens, prefill {self.prefill_ms:.1f} ms"
        )

    def write_items(self, path: str | Path) -> None:
        """One JSON line per row."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(dict(item), ensure_ascii=False) + "\n" for item in self.items)
        path.write_text("".join(lines), encoding="utf-8")
