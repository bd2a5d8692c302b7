"""The folder that an evaluation leaves, and how to read it. Imports no torch.

    run.json            which model was asked what: label, model, fingerprint, settings, data,
                        hashes (of the data files), versions, seconds (by arm)
    items/<arm>.jsonl   every answer of an arm with its verdict; appears when the arm is complete
    items/<arm>.partial the answers so far of an arm that is not
    forgetting/images   the pictures of the forgetting arm, which is made from the seed
    summary.json        {"suites": {suite: figures}}, see `SuiteSummary`

`data` in run.json names files relative to the folder itself, so that a run which is moved as a
whole still finds its rows and pictures. An item is its row without the reasoning (pictures named
as in the data file), and

    response, parsed    what the model wrote, and the answer in it (null: none was found)
    correct             the answer is right; of a tool call, all of it
    scores              {"tool", "argument", "overall"}, only where the answer is a tool call
    score               in the forgetting arm, which has no `parsed`
    kept_old            in the override arm, where the old rules' answer is another: it was given
    prompt_tokens, response_tokens, finished   finished is false where the response was cut off
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmpi.evaluation.metrics import Figure
from fastmpi.files import make_folder, write_whole

RUN, SUMMARY, ITEMS = "run.json", "summary.json", "items"
ARMS = ("task", "in-context", "override", "forgetting")  # each is one pass over some rows
SUITES = ("task", "in-context", "override", "referral", "branching", "forgetting", "efficiency")
_ROWS_OF = {"task": "test", "in-context": "test", "override": "override"}
_OF_AN_ITEM = ("id", "response")
_SPLITS = ("by_policy", "by_depth", "by_outcome")

Figures = Mapping[str, Figure]


@dataclass(frozen=True)
class SuiteSummary:
    """What came of one suite.

    figures: by metric. by_policy, by_depth, by_outcome: the same metrics of a part of the items,
    by policy_id, by the depth of the policy's tree, by gold answer (by tool, where the answer is a
    tool call). notes: what a reader must know beside the numbers, {"similarity": "token-F1"}.
    """

    figures: Figures
    by_policy: Mapping[str, Figures] = field(default_factory=dict)
    by_depth: Mapping[str, Figures] = field(default_factory=dict)
    by_outcome: Mapping[str, Figures] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        splits = {
            name: {key: _plain(part) for key, part in getattr(self, name).items()}
            for name in _SPLITS
        }
        return {"figures": _plain(self.figures), **splits, "notes": dict(self.notes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SuiteSummary:
        splits = {
            name: {key: _figures(part) for key, part in values.get(name, {}).items()}
            for name in _SPLITS
        }
        return cls(_figures(values.get("figures", {})), **splits, notes=values.get("notes", {}))


@dataclass(frozen=True)
class EvaluationFolder:
    """An evaluation on disk. What is missing or damaged is a `ValueError` that names the file."""

    path: Path

    @classmethod
    def is_one(cls, path: str | Path) -> bool:
        return (Path(path) / RUN).is_file()

    @property
    def run(self) -> dict[str, Any]:
        """The content of run.json."""
        found = read_json(self.path / RUN)
        if "label" not in found or not isinstance(found.get("data"), dict):
            raise ValueError(f"{self.path / RUN}: no evaluation; it lacks 'label' or 'data'")
        return found

    @property
    def label(self) -> str:
        return str(self.run["label"])

    def arms(self) -> list[str]:
        """The arms that are complete."""
        return [arm for arm in ARMS if self.items_path(arm).is_file()]

    def items_path(self, arm: str) -> Path:
        return self.path / ITEMS / f"{arm}.jsonl"

    def items(self, arm: str) -> list[dict[str, Any]]:
        """The items of an arm, in the order of the data file."""
        path = self.items_path(arm)
        if not path.is_file():
            raise ValueError(f"{path} does not exist: the arm was not asked, or is not complete")
        items = read_jsonl(path)
        for number, item in enumerate(items, 1):
            if missing := [key for key in _OF_AN_ITEM if key not in item]:
                raise ValueError(f"{path}, line {number} is damaged: it has no {missing[0]!r}")
        return items

    @property
    def has_summary(self) -> bool:
        return (self.path / SUMMARY).is_file()

    def summary(self) -> dict[str, SuiteSummary]:
        """What came of each suite."""
        suites = read_json(self.path / SUMMARY).get("suites", {})
        try:
            return {name: SuiteSummary.from_dict(values) for name, values in suites.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path / SUMMARY} is damaged: {error}") from None

    def write_summary(self, suites: Mapping[str, SuiteSummary]) -> None:
        values = {name: suite.to_dict() for name, suite in suites.items()}
        write_json(self.path / SUMMARY, {"suites": values})

    def data_path(self, name: str) -> Path | None:
        """The file of "test", "policies", "override" or "override_policies"; None if not given."""
        given = self.run["data"].get(name)
        return None if given is None else Path(os.path.normpath(self.path / given))

    def pictures_folder(self, arm: str) -> Path | None:
        """The folder that the items' `images` are relative to; None where rows came from code."""
        if arm == "forgetting":
            return self.path / arm
        rows = self.data_path(_ROWS_OF[arm])
        return None if rows is None else rows.parent


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; anything else is a `ValueError` that names the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read: {why}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object, found {type(values).__name__}")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Replaces the file at once, so that no reader sees half of it."""
    _replace(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """One object a line."""
    items = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            if line:
                items.append(dict(json.loads(line)))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is damaged: {error}") from None
    return items


def write_jsonl(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """One object a line; replaces the file at once."""
    _replace(path, "".join(map(json_line, items)))


def json_line(item: Mapping[str, Any]) -> str:
    return json.dumps(dict(item), ensure_ascii=False) + "\n"


def _replace(path: Path, text: str) -> None:
    make_folder(path.parent)
    # A response may hold half a surrogate pair, which UTF-8 has no bytes for.
    write_whole(path, text.encode("utf-8", errors="backslashreplace").decode("utf-8"))


def _plain(figures: Figures) -> dict[str, Any]:
    return {name: figure.to_dict() for name, figure in figures.items()}


def _figures(values: Mapping[str, Any]) -> dict[str, Figure]:
    return {name: Figure.from_dict(value) for name, value in values.items()}
