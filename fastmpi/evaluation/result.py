"""Settings and outcome of an evaluation. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastmpi.config.checks import check_at_least, check_choices
from fastmpi.evaluation.folder import SUITES
from fastmpi.evaluation.harness_tasks import HarnessSettings
from fastmpi.evaluation.judge import JudgeSettings
from fastmpi.evaluation.metrics import Figure, share, split
from fastmpi.settings import Settings, did_you_mean

EVALUATED = ("prompt", "answer", "policy_id")  # columns that rows need
FLAGS = {
    "test": "--test-dataset",
    "policies": "--policies",
    "override": "--override-dataset",
    "override_policies": "--override-policies",
}
NEEDS = {  # suite -> files that it needs
    "task": ("test",),
    "in-context": ("test", "policies"),
    "override": ("override", "override_policies"),
    "referral": ("test", "policies"),
    "branching": ("test", "policies"),
    "forgetting": (),
    "efficiency": ("test", "policies"),
}


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

    suites: list[str] | None = None
    """What to measure: task, in-context, override, referral, branching, forgetting, efficiency;
    None: task, and in-context where there are policies."""

    override_context: Literal["block", "whole"] = "block"
    """In the override suite a block of changed rules stands alone, or after the whole policy, for
    a model that has not learnt it. An override that is a whole policy stays as it is."""

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision; auto: on a GPU the one that the weights are saved in, else fp32."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_at_least(self, 1, "batch_size", "max_completion_length")
        check_at_least(self, 0, "num_timed_prompts", "seed")
        if self.temperature and not 1e-4 <= self.temperature <= 10_000:  # logits over it are finite
            raise ValueError(f"temperature must be 0 or in [0.0001, 10000], not {self.temperature}")
        if self.num_rows is not None:
            check_at_least(self, 1, "num_rows")
        for name in self.suites or ():
            if name not in SUITES:
                near = did_you_mean(name, SUITES)
                raise ValueError(f"there is no suite {name!r}{near}; there are {', '.join(SUITES)}")
        if self.suites == []:
            raise ValueError(f"suites is empty: give some of {', '.join(SUITES)}")

    def chosen(self, files: Iterable[str]) -> list[str]:
        """The suites to measure with these files ("test", "policies", "override",
        "override_policies"), in order; `ValueError` names the flag of one that a suite lacks."""
        default = ["task", "in-context"] if "policies" in files else ["task"]
        wanted = default if self.suites is None else self.suites
        for name in (chosen := [name for name in SUITES if name in wanted]):
            for file in NEEDS[name]:
                if file not in files:
                    key = file if file == "policies" else f"data.{file}"
                    raise ValueError(f"the suite {name} needs {FLAGS[file]} (in a recipe, {key})")
        if "override" in chosen and self.override_context == "whole" and "policies" not in files:
            raise ValueError("override_context: whole needs --policies")
        return chosen


@dataclass(kw_only=True)
class EvalInputs(HarnessSettings, JudgeSettings, EvalConfig):
    """What an evaluation takes."""

    model: str = "tiny"
    """Folder or hub name of the model; may also stand right after `eval`."""

    data_dir: str | None = None
    """Data folder: whichever of the four files below is not given is taken from it, if there."""

    test_dataset: str | None = None
    """JSONL file of the questions, with their answers (test.jsonl)."""

    policies: str | None = None
    """JSONL file of the policies (policies.jsonl)."""

    override_dataset: str | None = None
    """JSONL file of the questions under other rules, with their answers (override.jsonl)."""

    override_policies: str | None = None
    """JSONL file of the other rules, under the old names (override_policies.jsonl)."""

    output_dir: str | None = None
    """Folder for the answers and the summary, continued where it is there; None: only print."""

    label: str | None = None
    """Name of the model in tables; None: the model as it was given."""

    def check(self) -> list[str]:
        """The suites to measure; `ValueError` for whatever would stop them later."""
        if self.judge() is not None and self.output_dir is None:
            raise ValueError("--judge-model needs --output-dir, where the paid replies are kept")
        self.harness_tasks()
        return self.chosen(self.files())

    def files(self) -> dict[str, str]:
        """Paths by name ("test", "policies", "override", "override_policies"), of those given."""
        given = {name: getattr(self, flag[2:].replace("-", "_")) for name, flag in FLAGS.items()}
        if self.data_dir is not None:
            folder = Path(self.data_dir)
            if not folder.is_dir():
                raise ValueError(f"--data-dir: there is no folder {self.data_dir}")
            there = {name: folder / f"{name}.jsonl" for name in FLAGS}
            given = {
                n: path or (there[n] if there[n].is_file() else None) for n, path in given.items()
            }
        return {name: str(path) for name, path in given.items() if path is not None}


@dataclass(frozen=True)
class EvalResult:
    """What came out.

    items: one per row, see `folder.py`.
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
