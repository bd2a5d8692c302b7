"""How a data set becomes a folder: all of it or nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def new_folder(output_dir: str, write: Callable[[Path], None]) -> Path:
    """The folder `output_dir` with what `write` puts into it; it appears only when complete.

    `ValueError` where it exists and is not empty; see `checked_new`.
    """
    folder = checked_new(output_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
        made = Path(aside) / "data"
        made.mkdir()
        write(made)
        if folder.exists():
            folder.rmdir()
        made.replace(folder)
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
