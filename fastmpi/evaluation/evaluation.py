"""One evaluation on disk: which rows a model is asked with which rules, and what it has answered.

The folder says what it was made from. The same evaluation goes on in it, also with more suites;
another one is an error, never mixed with it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fastmpi.checkpoint import fingerprint
from fastmpi.data.rows import Row, read_rows
from fastmpi.environment import versions
from fastmpi.evaluation.answering import AnswerFile, Asked, answer_of, answer_rows
from fastmpi.evaluation.folder import (
    ITEMS,
    RUN,
    SUMMARY,
    EvaluationFolder,
    write_json,
    write_jsonl,
)
from fastmpi.evaluation.forgetting import MAX_TOKENS, forgetting_rows, score_forgetting
from fastmpi.evaluation.items import Answer, mark, mark_scored
from fastmpi.evaluation.metrics import Item
from fastmpi.evaluation.result import EVALUATED, EvalConfig, EvalInputs
from fastmpi.models.forest_model import ForestModel
from fastmpi.policies.override import after_whole
from fastmpi.policies.policy import Policy, PolicySet
from fastmpi.rollout.engine import Engine

NUM_FORGETTING = 100  # rows of each task, at most
Overwrite = Literal["never", "if other", "always"]
OnBatch = Callable[[str, int, int], None]
# What answers depend on; batch_size is none of it.
_SETTINGS = ("max_completion_length", "temperature", "num_rows", "seed", "override_context")
_WAY_OUT = "choose another output_dir, or start anew with --overwrite"


class Evaluation:
    """A model, its questions, and its items as far as they are there.

    path: where the model was loaded from, for a harness that loads it again.
    overwrite: what happens where the folder holds another evaluation: a `ValueError` that names
    the difference, or it is removed; "always" removes the same evaluation too. on_batch: called
    with the arm, the rows answered and all rows of it.
    """

    def __init__(
        self,
        model: ForestModel,
        engine: Engine,
        inputs: EvalInputs,
        folder: Path,
        *,
        path: str | None = None,
        trust_remote_code: bool = False,
        overwrite: Overwrite = "never",
        on_batch: OnBatch | None = None,
    ) -> None:
        self.model, self.engine, self.inputs = model, engine, inputs
        self.path, self.trust_remote_code = path or inputs.model, trust_remote_code
        self.files = inputs.files()
        self.folder = EvaluationFolder(folder)
        self.on_batch = on_batch or (lambda arm, done, total: None)
        self._rows: dict[str, list[Row]] = {}
        self._policies: dict[str, PolicySet] = {}
        self._items: dict[str, Sequence[Item]] = {}
        self._start(overwrite)

    def rows(self, name: str) -> list[Row]:
        """The rows of the file "test" or "override", the first `num_rows` of them."""
        if name not in self._rows:
            self._rows[name] = read_rows(self.files[name], columns=EVALUATED)
        return self._rows[name][: self.inputs.num_rows]

    def policies(self, name: str = "policies") -> PolicySet:
        if name not in self._policies:
            self._policies[name] = PolicySet.from_jsonl(self.files[name])
        return self._policies[name]

    def is_asked(self, arm: str) -> bool:
        """Whether the arm is complete."""
        return arm in self._items or self.folder.items_path(arm).is_file()

    def items(self, arm: str) -> Sequence[Item]:
        """The items of an arm, which is asked as far as it has not been.

        Marks are always made anew from the answers: scoring may improve, asking again is dear.
        """
        if arm not in self._items:
            path = self.folder.items_path(arm)
            rows, asked, config = self._arm(arm)
            if path.is_file():
                answers = [answer_of(item) for item in self.folder.items(arm)]
            else:
                answers = self._answers(arm, rows, asked, config)
            items = self._mark(arm, rows, answers)
            write_jsonl(path, items)
            self._partial(arm).unlink(missing_ok=True)
            self._items[arm] = items
        return self._items[arm]

    def asked(self, name: str | None) -> Asked:
        """The model, with the policies of file `name` in its prompts, or with none."""
        return Asked(self.model, self.engine, None if name is None else self.policies(name))

    def _arm(self, arm: str) -> tuple[list[Row], Asked, EvalConfig]:
        if arm == "forgetting":
            return self._forgetting()
        if arm == "override":
            asked = Asked(self.model, self.engine, self._other_rules())
            return self.rows("override"), asked, self.inputs
        policies = {"task": None, "in-context": "policies"}[arm]
        return self.rows("test"), self.asked(policies), self.inputs

    def _other_rules(self) -> PolicySet:
        """As the override suite shows them."""
        others = self.policies("override_policies")
        whole = self.inputs.override_context == "whole"
        return after_whole(others, self.policies()) if whole else others

    def _forgetting(self) -> tuple[list[Row], Asked, EvalConfig]:
        count = min(self.inputs.num_rows or NUM_FORGETTING, NUM_FORGETTING)
        rows, policies = forgetting_rows(self._pictures, count=count, seed=self.inputs.seed)
        values = {**self.inputs.to_dict(), "max_completion_length": MAX_TOKENS}
        config = EvalInputs.from_dict(values)
        return rows, Asked(self.model, self.engine, _with_none(policies)), config

    @property
    def _pictures(self) -> Path:
        return self.folder.path / "forgetting"

    def _answers(self, arm: str, rows: list[Row], asked: Asked, config: EvalConfig) -> list[Answer]:
        began = time.perf_counter()
        answers = answer_rows(
            asked,
            rows,
            config,
            kept=AnswerFile(self._partial(arm)),
            on_batch=lambda done: self.on_batch(arm, done, len(rows)),
        )
        run = self.folder.run
        run["seconds"][arm] = round(time.perf_counter() - began, 3)
        write_json(self.folder.path / RUN, run)
        return answers

    def _partial(self, arm: str) -> Path:
        return self.folder.items_path(arm).with_suffix(".partial")

    def _mark(self, arm: str, rows: list[Row], answers: list[Answer]) -> list[dict[str, Any]]:
        if arm == "forgetting":
            return mark_scored(rows, answers, score_forgetting, folder=self._pictures)
        path = self.files["override" if arm == "override" else "test"]
        return mark(rows, answers, folder=Path(path).parent)

    def _start(self, overwrite: Overwrite) -> None:
        """Writes run.json, or finds that it is there already."""
        run = self._description()
        if EvaluationFolder.is_one(self.folder.path) and overwrite == "always":
            self._clear()  # unread: it may be damaged
        if EvaluationFolder.is_one(self.folder.path):
            found = self.folder.run
            other = _difference(found, run)
            if other and overwrite == "never":
                raise ValueError(f"{self.folder.path} {other}; {_WAY_OUT}")
            if other:
                self._clear()
            else:
                for name in ("data", "hashes", "seconds"):
                    run[name] = {**found[name], **run[name]}
        write_json(self.folder.path / RUN, run)

    def _clear(self) -> None:
        """run.json goes last: a kill must leave no answers without what they are answers to."""
        for name in (ITEMS, self._pictures.name, "judge", "harness"):
            path = self.folder.path / name
            if path.exists():
                shutil.rmtree(path)
        for name in (SUMMARY, RUN):
            (self.folder.path / name).unlink(missing_ok=True)

    def _description(self) -> dict[str, Any]:
        """What run.json says."""
        inputs, folder = self.inputs, self.folder.path.resolve()
        settings = {name: getattr(inputs, name) for name in _SETTINGS}
        settings["dtype"] = str(self.model.dtype).removeprefix("torch.")
        return {
            "label": inputs.label or inputs.model,
            "model": inputs.model,
            "fingerprint": fingerprint(self.model.model.named_parameters()),
            "settings": settings,
            "data": {n: _relative(Path(path).resolve(), folder) for n, path in self.files.items()},
            "hashes": {name: _digest(path) for name, path in self.files.items()},
            "versions": versions(),
            "seconds": {},
        }


def _with_none(policies: PolicySet) -> Mapping[str, Policy | None]:
    """The policies, and "" for rows that show none."""
    return {"": None, **policies}


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What two evaluations disagree in, in words; empty where they are the same."""
    if found.get("fingerprint") != wanted["fingerprint"]:
        if found.get("model") == wanted["model"]:
            return f"was made before the weights of {wanted['model']} changed"
        return f"evaluates other weights ({found.get('model')}, not {wanted['model']})"
    for key, value in wanted["settings"].items():
        if found.get("settings", {}).get(key) != value:
            return f"was made with {key} {found.get('settings', {}).get(key)}, not {value}"
    for name, digest in wanted["hashes"].items():
        if found.get("hashes", {}).get(name, digest) != digest:
            return f"was made from another {name} file than {wanted['data'][name]}"
    return ""


def _relative(path: Path, folder: Path) -> str:
    """The path as seen from the folder, so that both may be moved together."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return str(path)


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
