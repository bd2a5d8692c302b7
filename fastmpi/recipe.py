"""A recipe: one YAML file from a model and a policy to a model that follows it without seeing it.

    model, policies, data, seed, output_dir     what goes in, where it goes
    cpt, sft, rl, eval                          the settings of the stages, each may be left out
    compare                                     the methods of `fastmpi compare`

`data` names files (`train`, `train_cot`, `test`) or, under `clevr_policy` or `gta_policy`, what to
generate. Paths are relative to the current folder. Unusual: nothing in a recipe can run code.
Reward functions by dotted path need `trust_recipe_code`, and code in a model's folder
`trust_remote_code`, both given by the caller and never by the file.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastmpi.config import CPTConfig, PolicyRolloutConfig, SFTConfig, TrainingConfig
from fastmpi.evaluation.result import EvalConfig
from fastmpi.policies.generate import GENERATORS, data_config
from fastmpi.rewards import BUILT_IN
from fastmpi.settings import Settings, coerce, did_you_mean, read_yaml

if TYPE_CHECKING:
    from fastmpi.policies.generate import DataConfig

STAGES: Mapping[str, type[TrainingConfig]] = {
    "cpt": CPTConfig,
    "sft": SFTConfig,
    "rl": PolicyRolloutConfig,
}
FILES = ("train", "train_cot", "test")
OVERRIDE = ("override", "override_policies")  # of the evaluation under other rules
MadeT = TypeVar("MadeT")
_CALLERS_ONLY = ("trust_recipe_code", "trust_remote_code")


@dataclass(frozen=True)
class StagePlan:
    """One stage to run: its kind, settings, the file of its rows ("train", "train_cot" or a path)
    and, in RL, the names of its reward functions."""

    kind: str
    config: TrainingConfig
    train_dataset: str
    reward_funcs: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Recipe(Settings):
    """The whole file, checked when it is built."""

    model: str = "tiny"
    """Folder or hub name of the model to start from; "tiny" is the one inside this package."""

    data: dict[str, Any]
    """`train`, `train_cot`, `test`: JSONL files; or `clevr_policy` or `gta_policy`: settings of the
    generator."""

    policies: str | None = None
    """JSONL file of the policies; generated data bring their own."""

    seed: int = 0
    """Seed of everything that has no seed of its own."""

    output_dir: str = "runs/recipe"
    """Folder of all that the run writes."""

    cpt: dict[str, Any] | None = None
    """Settings of stage 1, see CPTConfig."""

    sft: dict[str, Any] | None = None
    """Settings of stage 2, see SFTConfig."""

    rl: dict[str, Any] | None = None
    """Settings of stage 3, see PolicyRolloutConfig; and `reward_funcs`."""

    eval: dict[str, Any] = field(default_factory=dict)
    """Settings of the evaluation, see EvalConfig."""

    compare: dict[str, Any] | None = None
    """What `fastmpi compare` compares, see `fastmpi.stages.ladder.Comparison`."""

    def __post_init__(self) -> None:
        self._check_data()
        for kind in STAGES:
            if getattr(self, kind) is not None:
                self.stage(kind)
        _named("eval", lambda: self.eval_config)

    @property
    def eval_config(self) -> EvalConfig:
        return EvalConfig.from_dict({"seed": self.seed, **self.eval})

    def stages(self) -> list[StagePlan]:
        """The stages that the recipe has, in order."""
        return [self.stage(kind) for kind in STAGES if getattr(self, kind) is not None]

    def stage(self, kind: str, changes: Mapping[str, Any] | None = None) -> StagePlan:
        """The plan of one stage, with some settings changed; ValueError names stage and key."""
        values = {"seed": self.seed, **(getattr(self, kind) or {}), **(changes or {})}
        if "output_dir" in values:
            raise ValueError(f"{kind}: output_dir is of the recipe as a whole; leave it out here")
        return _named(kind, lambda: stage_plan(kind, values))

    def generated_data(self) -> DataConfig | None:
        """What to generate into `output_dir/data`; None where the data are files."""
        for kind in GENERATORS:
            if kind in self.data:
                return self._generator(kind)
        return None

    def _generator(self, kind: str) -> DataConfig:
        folder = str(Path(self.output_dir) / "data")
        given = coerce(f"data.{kind}", self.data[kind] or {}, dict)
        # The address in a file that somebody else wrote would get the key of whoever runs it.
        if asks := [key for key in given if str(key).startswith("teacher_")]:
            raise ValueError(
                f"data.{kind}: {asks[0]}: a recipe asks no endpoint; make the data with "
                f"fastmpi data {kind.replace('_', '-')} and name its files"
            )
        settings = {"seed": self.seed, **given, "output_dir": folder}
        return _named(f"data.{kind}", lambda: data_config(kind, settings))

    def _check_data(self) -> None:
        known = (*FILES, *OVERRIDE, *GENERATORS)
        for key in self.data:
            if key not in known:
                raise ValueError(f"data has no {key!r}{did_you_mean(key, known)}")
            if key in (*FILES, *OVERRIDE):
                coerce(f"data.{key}", self.data[key], str)
        for kind in GENERATORS:
            if kind in self.data and len(self.data) > 1:
                raise ValueError(f"data: give {kind} or files, not both")
            if kind in self.data and self.policies is not None:
                raise ValueError(f"policies: data.{kind} brings its own policies")
        self.generated_data()
        if not self.data:
            raise ValueError(f"data is empty: give one of {', '.join(known)}")


def stage_plan(kind: str, values: Mapping[str, Any]) -> StagePlan:
    """A stage from plain values: the fields of its Config, `train_dataset`, and `reward_funcs`."""
    _refuse_trust(values)
    extra = ("train_dataset", "reward_funcs") if kind == "rl" else ("train_dataset",)
    known = [*extra, *(f.name for f in dataclasses.fields(STAGES[kind]))]
    for key in values:
        if key not in known:
            raise ValueError(f"there is no {key!r}{did_you_mean(key, known)}")
    config = STAGES[kind].from_dict({k: v for k, v in values.items() if k not in extra})
    rows = coerce("train_dataset", values.get("train_dataset", default_rows(kind, config)), str)
    named = values.get("reward_funcs", ["exact_answer", "think_format"])
    rewards = tuple(coerce("reward_funcs", named, list[str]))
    if kind == "rl":
        _check_rewards(rewards)
    return StagePlan(kind, config, rows, rewards if kind == "rl" else ())


def _check_rewards(names: tuple[str, ...]) -> None:
    if not names:
        raise ValueError("reward_funcs is empty")
    for name in names:
        if name not in BUILT_IN and not {".", ":"} & set(name):  # which one's own has
            near = did_you_mean(name, BUILT_IN)
            raise ValueError(f"reward_funcs: there is no {name!r}{near}; one's own is a.b or a:b")


def default_rows(kind: str, config: TrainingConfig) -> str:
    """The rows with reasoning where the stage trains on reasoning, else all rows."""
    reasoning = kind == "cpt" or (isinstance(config, SFTConfig) and config.reasoning)
    return "train_cot" if reasoning else "train"


def load_recipe(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    dotted: Mapping[str, Any] | None = None,
) -> Recipe:
    """Read and check a recipe. `overrides` replace top-level keys, `dotted` deeper ones
    ("sft.max_steps": 5). ValueError names the file."""
    values = {**read_yaml(path), **(overrides or {})}
    try:
        for name, value in (dotted or {}).items():
            _set(values, name, value)
        _refuse_trust(values)
        return Recipe.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def find_recipe(name: str, overrides: Mapping[str, Any], dotted: Mapping[str, Any]) -> Recipe:
    """`load_recipe` of a path, or of the name of a recipe inside this package ("demo")."""
    if Path(name).exists() or Path(name).suffix or os.sep in name:
        return load_recipe(name, overrides, dotted)
    shipped = shipped_recipes()
    if name not in shipped:
        near = did_you_mean(name, shipped)
        raise ValueError(f"no recipe {name!r}{near}; shipped: {', '.join(shipped)}")
    return load_recipe(shipped[name], overrides, dotted)


def shipped_recipes() -> dict[str, Path]:
    """Name -> path of the recipes that came with this package or lie beside its source."""
    package = Path(__file__).parent
    folders = [package / "recipes", package.parent / "recipes"]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    """Sets `a.b-c` to `value` in nested mappings."""
    *parents, last = name.replace("-", "_").split(".")
    at: Any = values
    for parent in parents:
        inner = at.get(parent) or {}
        if not isinstance(inner, dict):
            raise ValueError(f"{name}: {parent} is not a group of settings")
        at[parent] = dict(inner)
        at = at[parent]
    at[last] = value


def _refuse_trust(values: Mapping[str, Any]) -> None:
    for key in _CALLERS_ONLY:
        if key in values:
            raise ValueError(f"{key} cannot be set in a file: give it on the command line")


def _named(where: str, make: Callable[[], MadeT]) -> MadeT:
    try:
        return make()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
