"""What a report shows, as plain data: the page and the terminal table read nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class MethodRow:
    """One line of the comparison.

    Accuracies and their 95 % intervals are fractions from 0 to 1. ``prompt_tokens`` and
    ``prefill_ms`` describe the prompt the method is used with: the in-context row carries the
    policy, every other row does not. ``cpu_seconds`` is the training of all stages of the row.
    """

    method: str
    accuracy: float
    accuracy_with_policy: float
    n: int
    prompt_tokens: float
    prefill_ms: float
    cpu_seconds: float
    interval: tuple[float, float] | None = None
    interval_with_policy: tuple[float, float] | None = None
    stages: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Curve:
    """One line of a chart: ``points`` are (step, value), in order of the steps."""

    name: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    title: str
    y_label: str
    curves: Sequence[Curve]
    x_label: str = "step"


@dataclass(frozen=True)
class StageCurves:
    """The charts of one trained stage, under one heading."""

    title: str
    charts: Sequence[Chart]
    note: str = ""


@dataclass(frozen=True)
class TreeNode:
    """A node of a decision tree: two children, or none for an outcome."""

    label: str
    detail: str = ""
    yes: TreeNode | None = None
    no: TreeNode | None = None
    reachable: bool = True


@dataclass(frozen=True)
class PolicyPicture:
    """One policy: its name, its tree, and the text the model is given."""

    name: str
    tree: TreeNode | None
    text: str


@dataclass(frozen=True)
class ResponseMark:
    method: str
    response: str
    parsed: str | None
    correct: bool


@dataclass(frozen=True)
class SceneSample:
    """A test row and what each method said to it; ``image`` is the bytes of a PNG or JPEG file."""

    image: bytes | None
    prompt: str
    answer: str
    responses: Sequence[ResponseMark]
    policy_id: str = ""


@dataclass(frozen=True)
class Report:
    """A whole page. ``fixed_answer`` is the accuracy of always giving the most frequent answer of
    each policy, which needs no look at the picture."""

    title: str
    rows: Sequence[MethodRow]
    summary: str = ""
    findings: Sequence[str] = ()
    stages: Sequence[StageCurves] = ()
    policies: Sequence[PolicyPicture] = ()
    samples: Sequence[SceneSample] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    fixed_answer: float | None = None
