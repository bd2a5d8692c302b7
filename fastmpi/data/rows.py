"""Rows of a data set, checked before anything is trained on them.

A row is a dict `{"id", "policy_id", "images", "prompt", "reasoning", "answer"}` and any more
columns. It comes from a JSONL file (pictures relative to the file's folder and inside it), from a
list, or from a `datasets.Dataset`. All rows are read at once, but their pictures stay on disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image

from fastmpi.data.images import load_image, resolve_path
from fastmpi.settings import did_you_mean

Row = dict[str, Any]

TEXT_COLUMNS = ("id", "policy_id", "prompt", "reasoning", "answer")
NEEDED = ("prompt",)
_HALF_A_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class _Checks:
    columns: Sequence[str]
    policies: Iterable[str] | None
    folder: Path | None
    decode: bool


def read_rows(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    columns: Sequence[str] = NEEDED,
    policies: Iterable[str] | None = None,
    check_images: bool = False,
) -> list[Row]:
    """The rows of a JSONL file, a list or a `datasets.Dataset`; file pictures get absolute paths.

    columns: must be in every row. policies: the known ids, a `PolicySet` for example; each
    `policy_id` must be one of them. check_images: also decode every picture, which takes as long
    as reading them all. `id` defaults to the row's number and `images` to none.

    `ValueError` names the file, the row and the key where a line is no JSON object, a column is
    missing or of a wrong type, an id occurs twice, a policy is unknown, or a picture is missing,
    unreadable or outside the file's folder; and where there are no rows.
    """
    if isinstance(source, (str, Path)):
        name, numbered, folder = f"{source}, line", _lines(Path(source)), Path(source).parent
    else:
        name, numbered, folder = "row", enumerate(source), None
    known = None if policies is None else list(policies)
    checks = _Checks(columns, known, folder, check_images)
    rows: list[Row] = []
    first: dict[str, int] = {}
    for number, data in numbered:
        try:
            row = _checked(data, number, checks)
            if row["id"] in first:
                raise ValueError(f"id {row['id']!r} is that of {first[row['id']]} too")
        except ValueError as error:
            raise ValueError(f"{name} {number}: {error}") from None
        first[row["id"]] = number
        rows.append(row)
    if not rows:
        raise ValueError(f"{source} has no rows" if folder else "the data set has no rows")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        # Not splitlines: JSON may hold U+2028 and U+0085.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} cannot be read: {why}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, _parsed(path, number, line)


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from None


def _checked(data: Any, number: int, checks: _Checks) -> Row:
    if not isinstance(data, Mapping):
        raise ValueError(f"a row is an object, not {type(data).__name__}")
    row = {"id": str(number), **data}
    for column in checks.columns:
        if row.get(column) is None:
            raise ValueError(f"there is no {column!r}")
    for column in TEXT_COLUMNS:
        if row.get(column) is not None and not isinstance(row[column], str):
            kind = type(row[column]).__name__
            raise ValueError(f"{column!r} is text, not {kind}")
        if _HALF_A_PAIR.search(row.get(column) or ""):
            raise ValueError(f"{column!r} holds half a surrogate pair, which is no character")
    _check_policy(row, checks.policies)
    row["images"] = _images(row, checks)
    return row


def _check_policy(row: Row, policies: Iterable[str] | None) -> None:
    name = row.get("policy_id")
    if policies is not None and name is not None and name not in policies:
        raise ValueError(f"unknown policy_id {name!r}{did_you_mean(name, policies)}")


def _images(row: Row, checks: _Checks) -> list[Any]:
    images = row.get("images")
    if images is None:
        return []
    if not isinstance(images, list):
        raise ValueError(f"'images' is a list, not {type(images).__name__}")
    return [_image(source, checks) for source in images]


def _image(source: Any, checks: _Checks) -> Any:
    if isinstance(source, (str, Path)):
        path = resolve_path(source, checks.folder)
        if not path.is_file():
            raise ValueError(f"image {str(source)!r} does not exist")
        source = str(path)
    elif not isinstance(source, (Mapping, PIL.Image.Image)):
        raise ValueError(f"'images' holds paths, pictures or dicts, not {type(source).__name__}")
    if checks.decode:
        load_image(source)
    return source
