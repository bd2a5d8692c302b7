"""GTAPolicy data sets: a tool policy, and a row for each gold call of many dialogs.

`build` makes a data set in memory, `generate` writes one:

    policies.jsonl           the policy, with its rules
    train.jsonl              requests and gold calls
    train_cot.jsonl          the same with reasoning, written back from the gold call by the rules,
                             or by a stronger model (`gta_teacher`)
    test.jsonl               rows of other dialogs, with other pictures
    override_policies.jsonl  a block of changed rules under the same name
    override.jsonl           the test rows with the calls that these ask for
    image/                   the pictures, under the names that the calls use
    meta.json                the settings and what came of them

Dialogs come from a GTA folder (`gta_dir`, see `gta_folder`), or are made up offline
(`gta_generator`); the tiny world has queries of its own (`gta_tiny`). The sizes default to the
paper's 451 + 106 (§3 of arXiv 2510.09474). Everything follows from the seed, but for reasoning that
a teacher writes (`gta_teacher`).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image

from fastmpi.data.images import load_image, resolve_path
from fastmpi.policies.clevr_rows import spread, without_reasoning
from fastmpi.policies.files import new_folder, write_rows
from fastmpi.policies.gta.dialogs import Dialog, Dialogs, PictureSource
from fastmpi.policies.gta.folder import read_gta
from fastmpi.policies.gta.generator import DialogSource
from fastmpi.policies.gta.policy import GTAPolicy, gta_policy, swapped_versions
from fastmpi.policies.gta.profiles import ProfileSource
from fastmpi.policies.gta.rows import Row, dialog_rows, overridden
from fastmpi.policies.gta.split import split_dialogs
from fastmpi.policies.gta.teacher import TeacherSettings, taught
from fastmpi.policies.gta.tiny_data import tiny_rows
from fastmpi.policies.policy import PolicySet

PAPER_NUM_TRAIN, PAPER_NUM_TEST = 451, 106
# Where things lie and what they cost does not change what is made.
_NOT_MADE_FROM = ("output_dir", "teacher_cache", "teacher_prompt_price", "teacher_completion_price")


@dataclass(frozen=True)
class GTAPolicyConfig(TeacherSettings):
    """What `fastmpi data gta-policy` makes."""

    output_dir: str = "gta-policy"
    """New folder for the data set."""
    world: Literal["full", "tiny"] = "full"
    """The paper's 14 tools and 20 rules, or a small random policy for the embedded model."""
    policy_file: str | None = None
    """JSON file of another policy, as `GTAPolicy.to_json` gives it; by default the paper's."""
    gta_dir: str | None = None
    """A GTA folder to take dialogs and pictures from; by default they are made up and drawn."""
    num_train: int = PAPER_NUM_TRAIN
    """Training rows. With gta_dir: what is not test is training, and this is only for the share."""
    num_test: int = PAPER_NUM_TEST
    """Test rows. Where the folder has other than num_train + num_test calls: the same share."""
    num_cot: int | None = None
    """Training rows that also come with reasoning; by default all."""
    seed: int = 0
    """Decides everything."""

    def __post_init__(self) -> None:
        if self.world not in ("full", "tiny"):
            raise ValueError("world is one of full, tiny")
        for name in ("num_train", "num_test"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("num_cot", "seed"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.gta_dir is not None and self.world == "tiny":
            raise ValueError("gta_dir: the tiny world has queries of its own")
        if self.policy_file is not None and self.world == "tiny":
            raise ValueError("policy_file: the tiny world draws a policy that its model can read")
        if self.teacher_model is not None and self.world == "tiny":
            raise ValueError("teacher_model: the tiny world has few words, and a teacher any")
        if self.gta_dir is None and (self.num_cot or 0) > self.num_train:
            raise ValueError(f"num_cot = {self.num_cot}, of {self.num_train} training rows")


@dataclass(frozen=True)
class GTAPolicyData:
    """A data set in memory. Rows name their pictures; `picture` gives them.

    notes: what the source had that a user should know of.
    """

    config: GTAPolicyConfig
    policy: GTAPolicy
    policies: PolicySet
    train: list[Row]
    train_cot: list[Row]
    test: list[Row]
    override_policies: PolicySet
    override: list[Row]
    pictures: Mapping[str, PictureSource]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def picture(self, name: str) -> PIL.Image.Image:
        """The picture that rows call `name`, read or drawn."""
        source = self.pictures[name]
        return load_image(source) if isinstance(source, Path) else source()

    def with_pictures(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with their pictures in them, ready for a trainer."""
        return [{**row, "images": [self.picture(name) for name in row["images"]]} for row in rows]


@dataclass(frozen=True)
class _Source:
    """What a data set is made of: a policy, and rows with reasoning."""

    policy: GTAPolicy
    train: list[Row]
    test: list[Row]
    pictures: Mapping[str, PictureSource]
    notes: Mapping[str, Any] = field(default_factory=dict)


def build(config: GTAPolicyConfig) -> GTAPolicyData:
    """Make the data set, all by rules; nothing is written, and no picture drawn."""
    source = _tiny(config) if config.world == "tiny" else _full(config)
    num_cot = len(source.train) if config.num_cot is None else config.num_cot
    if num_cot > len(source.train):
        raise ValueError(f"num_cot = {num_cot}, of {len(source.train)} training rows")
    test = [without_reasoning(row) for row in source.test]
    block, changed = source.policy.override(swapped_versions(source.policy))
    shown = {name for row in [*source.train, *test] for name in row["images"]}
    return GTAPolicyData(
        config,
        source.policy,
        PolicySet.from_policies([source.policy.to_policy()]),
        train=[without_reasoning(row) for row in source.train],
        train_cot=_chosen(_rng(config, 5), source.train, num_cot),
        test=test,
        override_policies=PolicySet.from_policies([changed.to_policy(block)]),
        override=overridden(test, changed),
        pictures={name: draw for name, draw in source.pictures.items() if name in shown},
        notes=source.notes,
    )


def generate(config: GTAPolicyConfig) -> Path:
    """Write the data set to `config.output_dir` and return that folder.

    `ValueError` where it exists and is not empty. The folder appears only when it is complete. A
    teacher is asked first, if the settings name one; see `gta_teacher.taught` for what it raises.
    """
    return new_folder(config.output_dir, lambda folder: write(retold(build(config)), folder))


def retold(data: GTAPolicyData) -> GTAPolicyData:
    """With the reasoning of the teacher that the settings name, if they name one.

    Rows that it wrote nothing usable for leave train_cot, and the notes say which.
    """
    if (endpoint := data.config.teacher()) is None:
        return data
    cache = data.config.teacher_cache or f"{Path(data.config.output_dir)}.teacher.jsonl"
    made = taught(data.train_cot, data.policies, data.picture, endpoint, cache=cache)
    notes = {**data.notes, "teacher_dropped": dict(made.dropped)}
    return replace(data, train_cot=made.rows, notes=notes)


def write(data: GTAPolicyData, folder: Path) -> None:
    """Write every file of the data set into an existing folder."""
    for name, source in data.pictures.items():
        path = resolve_path(name, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, Path):
            shutil.copyfile(source, path)
        else:
            source().save(path)
    data.policies.to_jsonl(folder / "policies.jsonl")
    data.override_policies.to_jsonl(folder / "override_policies.jsonl")
    for split in ("train", "train_cot", "test", "override"):
        write_rows(folder / f"{split}.jsonl", getattr(data, split))
    (folder / "meta.json").write_text(json.dumps(summary(data), indent=2), encoding="utf-8")


def summary(data: GTAPolicyData) -> dict[str, Any]:
    """The settings, the sizes, and how often each name is called and each rule decides."""
    settings = {k: v for k, v in data.config.to_dict().items() if k not in _NOT_MADE_FROM}
    rows = {name: getattr(data, name) for name in ("train", "train_cot", "test", "override")}
    splits = {name: rows[name] for name in ("train", "test")}
    return {
        "settings": settings,
        "num_rows": {name: len(value) for name, value in rows.items()},
        "num_dialogs": {k: len({row["dialog"] for row in v}) for k, v in splits.items()},
        "names": {k: _counts(_name(row) for row in v) for k, v in splits.items()},
        "rules": {k: _counts(row["rule"] for row in v) for k, v in splits.items()},
        **data.notes,
    }


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _name(row: Row) -> str:
    return str(json.loads(row["answer"])["name"])


def _chosen(rng: np.random.Generator, rows: Sequence[Row], count: int) -> list[Row]:
    """`count` of the rows, in their order; rules and tools take turns."""
    if count == len(rows):
        return list(rows)
    keyed = [{**row, "leaf": f"{row['tool']} {row['rule']}"} for row in rows]
    chosen = {row["id"] for row in spread(rng, keyed, count)}
    return [row for row in rows if row["id"] in chosen]


def _full(config: GTAPolicyConfig) -> _Source:
    policy = _policy(config)
    dialogs, train, test, notes = _folder(config) if config.gta_dir else _made_up(config)
    rows = [
        dialog_rows(policy, part, ProfileSource(_rng(config, stream), policy), dialogs, split)
        for split, part, stream in (("train", train, 3), ("test", test, 4))
    ]
    return _Source(policy, rows[0], rows[1], dialogs.pictures, notes)


def _policy(config: GTAPolicyConfig) -> GTAPolicy:
    if config.policy_file is None:
        return gta_policy()
    try:
        text = Path(config.policy_file).read_text(encoding="utf-8")
        return GTAPolicy.from_json(json.loads(text))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"policy_file {config.policy_file}: {error}") from None


_Parts = tuple[Dialogs, Sequence[Dialog], Sequence[Dialog], dict[str, Any]]


def _made_up(config: GTAPolicyConfig) -> _Parts:
    """All dialogs, those for training, those for the test, and notes."""
    source = DialogSource()
    train = source.make(_rng(config, 1), config.num_train)
    test = source.make(_rng(config, 2), config.num_test)
    together = Dialogs((*train.dialogs, *test.dialogs), {**train.pictures, **test.pictures})
    return together, train.dialogs, test.dialogs, {}


def _folder(config: GTAPolicyConfig) -> _Parts:
    assert config.gta_dir is not None
    found = read_gta(config.gta_dir)
    share = config.num_test / (config.num_train + config.num_test)
    wanted = max(1, round(found.num_calls * share))
    train, test = split_dialogs(_rng(config, 0), found.dialogs, wanted)
    num_test = sum(len(dialog.calls) for dialog in test)
    notes = {
        "split": {"calls": found.num_calls, "wanted_test": wanted, "exact": num_test == wanted},
        "made_pictures_missing": found.made_without_source(),
        "calls_without_return": sum(c.returned is None for d in found.dialogs for c in d.calls),
    }
    return found, train, test, notes


def _tiny(config: GTAPolicyConfig) -> _Source:
    from fastmpi.policies.gta.tiny import sample_policy

    policy = sample_policy(_rng(config, 0))
    train, train_pictures = tiny_rows(_rng(config, 1), policy, config.num_train, "train")
    test, test_pictures = tiny_rows(_rng(config, 2), policy, config.num_test, "test")
    return _Source(policy, train, test, {**train_pictures, **test_pictures})


def _rng(config: GTAPolicyConfig, stream: int) -> np.random.Generator:
    """Independent streams: another number of test rows leaves the training rows alone."""
    return np.random.default_rng([config.seed, stream])
