"""Reads what runs left on disk: evaluations, and the stages that were trained before them.

    evaluation/  see `fastmpi.evaluation.folder`
    comparison/  config.yaml  stages/<chain>/{stage.json,metrics.jsonl}  eval/<chain>/, evaluations
    run/         config.yaml  <stage>/{stage.json,metrics.jsonl}         eval/, an evaluation

A file that is missing or damaged is a `ValueError` that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastmpi.evaluation.folder import SUMMARY, EvaluationFolder, Figures, SuiteSummary, read_json
from fastmpi.evaluation.metrics import Item
from fastmpi.settings import read_yaml
from fastmpi.tracking import read_metrics

STAGES = ("cpt", "sft", "rl")
Chain = tuple[str, ...]
LONGEST = 4000  # characters of a response that are kept in memory; pages show fewer


@dataclass(frozen=True)
class Training:
    """One trained stage. `chain` ends with it; `lines` are those of its `metrics.jsonl`."""

    chain: Chain
    kind: str
    steps: int
    cpu_seconds: float
    seconds: float
    lines: Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Evaluation:
    """One row of the page: what one model came to.

    `label` is unique on the page. `trainings` are the stages that made it, None where that is not
    known; `matches` is the label of the run whose seconds they were given, as a control.
    """

    label: str
    folder: EvaluationFolder
    run: Mapping[str, Any]
    suites: Mapping[str, SuiteSummary]
    note: str = ""
    trainings: Sequence[Training] | None = None
    matches: str = ""
    _items: dict[str, list[Item]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def untrained(self) -> bool:
        return self.trainings is not None and not self.trainings

    @property
    def cpu_seconds(self) -> float | None:
        """Of training, all stages together; None where that is not known."""
        if self.trainings is None:
            return None
        return sum(training.cpu_seconds for training in self.trainings)

    def figures(self, suite: str) -> Figures:
        """The figures of a suite by name; none where it did not run."""
        return self.suites[suite].figures if suite in self.suites else {}

    def items(self, arm: str) -> list[Item]:
        """Every answer of an arm, long responses cut; none where it was not asked."""
        if arm not in self._items:
            asked = arm in self.folder.arms()
            self._items[arm] = [_short(i) for i in self.folder.items(arm)] if asked else []
        return self._items[arm]

    def file(self, name: str) -> Path | None:
        """The data set's file "test" or "policies", where it is known and still there."""
        path = self.folder.data_path(name)
        return path.resolve() if path is not None and path.is_file() else None


@dataclass(frozen=True)
class Run:
    """One folder: its evaluations in their order, and all stages that were trained for them."""

    folder: Path
    title: str
    evaluations: Sequence[Evaluation]
    trainings: Sequence[Training] = ()


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """All folders; where two evaluations have one label, the names of their folders go before,
    with as many of the folders above them as tell them apart."""
    if not folders:
        raise ValueError("report needs a run: fastmpi report RUN...")
    runs = [read_run(folder) for folder in folders]
    if not _repeated(runs):
        return runs
    paths = [run.folder.absolute().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-length:]).replace("//", "/") for path in paths]
        named = [_prefixed(run, name) for run, name in zip(runs, names, strict=True)]
        if not _repeated(named):
            return named
    raise ValueError(f"two runs are called {_repeated(named)!r}: is a folder given twice?")


def read_run(folder: str | Path) -> Run:
    """One folder of `eval`, `run` or `compare`."""
    folder = Path(folder)
    if EvaluationFolder.is_one(folder):
        evaluation = _evaluation(folder)
        return Run(folder, evaluation.label, [evaluation])
    if not (folder / "config.yaml").is_file():
        raise ValueError(
            f"{folder} is no folder of `fastmpi eval` (run.json), `run` or `compare` (config.yaml)"
        )
    config = read_yaml(folder / "config.yaml")
    return _comparison(folder, config) if config.get("compare") else _chain(folder)


def _comparison(folder: Path, config: Mapping[str, Any]) -> Run:
    compare = config["compare"]
    chains = {method: tuple(chain) for method, chain in compare["methods"].items()}
    trainings = {chain: _training(folder, chain) for chain in _beginnings(chains.values())}
    variants, notes = compare.get("variants") or {}, compare.get("notes") or {}
    evaluations = []
    for method, chain in chains.items():
        evaluations.append(
            replace(
                _evaluation(folder / "eval" / ("+".join(chain) or "base")),
                label=method,
                note=str(notes.get(method, "")),
                trainings=[trainings[beginning] for beginning in _beginnings([chain])],
                matches=_target(variants, chain),
            )
        )
    return Run(folder, compare.get("title", folder.name), evaluations, list(trainings.values()))


def _target(variants: Mapping[str, Any], chain: Chain) -> str:
    """The method whose seconds a stage of the chain was given; "" for none."""
    targets = (variants.get(stage, {}).get("match_seconds_of") for stage in chain)
    return str(next(filter(None, targets), ""))


def _beginnings(chains: Iterable[Chain]) -> list[Chain]:
    """Every distinct beginning of the chains, the shorter ones first."""
    found = [chain[:length] for chain in chains for length in range(1, len(chain) + 1)]
    return list(dict.fromkeys(found))


def _chain(folder: Path) -> Run:
    found = tuple(name for name in STAGES if (folder / name / "stage.json").is_file())
    trainings = [_stage(folder / chain[-1], chain) for chain in _beginnings([found])]
    evaluation = replace(_evaluation(folder / "eval"), label=folder.name, trainings=trainings)
    return Run(folder, folder.name, [evaluation], trainings)


def _repeated(runs: Sequence[Run]) -> str:
    """A label that two evaluations have; "" where there is none."""
    labels = [e.label for run in runs for e in run.evaluations]
    return next((label for label in labels if labels.count(label) > 1), "")


def _prefixed(run: Run, name: str) -> Run:
    if len(run.evaluations) == 1:
        return replace(run, evaluations=[replace(run.evaluations[0], label=name)])
    evaluations = []
    for e in run.evaluations:
        matches = f"{name}: {e.matches}" if e.matches else ""
        evaluations.append(replace(e, label=f"{name}: {e.label}", matches=matches))
    return replace(run, evaluations=evaluations)


def _training(folder: Path, chain: Chain) -> Training:
    return _stage(folder / "stages" / "+".join(chain), chain)


def _stage(folder: Path, chain: Chain) -> Training:
    record = read_json(folder / "stage.json")
    try:
        kind, steps = str(record["made_from"]["stage"]), int(record["steps"])
        cpu_seconds, seconds = float(record["cpu_seconds"]), float(record["seconds"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'stage.json'}: missing {error}") from None
    return Training(chain, kind, steps, cpu_seconds, seconds, read_metrics(folder))


def _evaluation(path: Path) -> Evaluation:
    folder = EvaluationFolder(path)
    if not (path / SUMMARY).is_file():
        raise ValueError(f"{path / SUMMARY} is missing: has this evaluation ended?")
    return Evaluation(folder.label, folder, folder.run, folder.summary())


def _short(item: dict[str, Any]) -> Item:
    response = str(item["response"])
    return {**item, "response": response[:LONGEST], "response_length": len(response)}
