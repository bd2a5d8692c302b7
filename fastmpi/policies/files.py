"""How a data set becomes a folder: all of it or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from fastmpi.files import ASIDE, flush, flush_all, make_folder, removed_on_error


def new_folder(output_dir: str, write: Callable[[Path], None]) -> Path:
    """The folder `output_dir` with what `write` puts into it; it appears only when complete.

    `ValueError` where it exists and is not empty; see `checked_new`.
    """
    folder = checked_new(output_dir)
    make_folder(folder.parent)
    aside = folder.with_name(f".{folder.name}{ASIDE}")
    if aside.exists():
        shutil.rmtree(aside)  # what a killed run left
    aside.mkdir()
    with removed_on_error(aside):
        write(aside)
        flush_all(aside)
    if folder.exists():
        folder.rmdir()
    aside.replace(folder)
    flush(folder.parent)
    return folder


def checked_new(output_dir: str) -> Path:
    """The absolute path; `ValueError` where something is there already, an empty folder aside."""
    folder = Path(output_dir).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output_dir {folder} is there already, and not empty")
    return folder


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")
