"""Files that are whole or absent, whatever kills the process or fills the disk.

Everything is written aside, flushed to disk and renamed. Leaf module.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

LOADED_BY = "config.json"  # a folder without it is no model


def write_whole(path: Path, text: str) -> None:
    """`text` as the file `path`, which is the old one or the new one at every moment."""
    aside = path.with_name(path.name + ".writing")
    try:
        aside.write_text(text, encoding="utf-8")
        flush(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    flush(path.parent)


@contextlib.contextmanager
def model_written(folder: Path) -> Iterator[Path]:
    """A folder to fill, whose files move into `folder` when the block ends without an error.

    `config.json` goes first out of the old model and last into the new one, so that a folder that
    loads is whole. `OSError` names the folder where its files cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".model.writing"
    shutil.rmtree(aside, ignore_errors=True)  # what a killed run left
    aside.mkdir()
    with removed_on_error(aside):
        yield aside
        for path in [*aside.rglob("*"), aside]:
            flush(path)
    (folder / LOADED_BY).unlink(missing_ok=True)
    for path in sorted(aside.iterdir(), key=lambda path: path.name == LOADED_BY):
        path.replace(folder / path.name)
    aside.rmdir()
    flush(folder)


@contextlib.contextmanager
def removed_on_error(folder: Path) -> Iterator[None]:
    """Removes `folder` where the block fails: on a full disk its files are in the way.

    safetensors' own errors of writing, which have no type of their own, become an `OSError`.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, SafetensorError):
            raise OSError(f"{folder.parent} cannot be written: {error}") from error
        raise


def flush(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
