"""Files that are whole or absent, whatever kills the process, fills the disk or cuts the power.

Everything is written aside, flushed to disk and renamed; a file of lines grows by whole lines. What
the system refuses is an `OSError` that names the file. Leaf module.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

LOADED_BY = "config.json"  # a folder without it is no model
ASIDE = ".writing"  # ends the name of what is not whole yet
_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def write_whole(path: Path, text: str) -> None:
    """`text` as the file `path`, which is the old one or the new one at every moment."""
    aside = path.with_name(path.name + ASIDE)
    try:
        with _named(path):
            aside.write_text(text, encoding="utf-8")
            flush(aside)
            aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    flush(path.parent)


def append_whole(path: Path, content: bytes) -> None:
    """Adds `content` at the end of a file, and waits until it is on disk; where that fails, the
    file is as it was. A process that is killed may leave the beginning of `content`."""
    with _named(path), path.open("ab", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(size)
            raise


def make_folder(path: Path) -> None:
    """A folder and those above it, on disk under their names."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        flush(folder.parent)


@contextlib.contextmanager
def model_written(folder: Path) -> Iterator[Path]:
    """A folder to fill, whose files move into `folder` when the block ends without an error.

    `config.json` goes first out of the old model and last into the new one, so that a folder that
    loads is whole. `OSError` names the folder where its files cannot be written.
    """
    make_folder(folder)
    aside = folder / f".model{ASIDE}"
    shutil.rmtree(aside, ignore_errors=True)  # what a killed run left
    aside.mkdir()
    with removed_on_error(aside):
        yield aside
        flush_all(aside)
    (folder / LOADED_BY).unlink(missing_ok=True)
    flush(folder)  # a disk may keep two changes of names in another order than they were made
    for path in sorted(aside.iterdir()):
        if path.name != LOADED_BY:
            path.replace(folder / path.name)
    flush(folder)
    (aside / LOADED_BY).replace(folder / LOADED_BY)
    aside.rmdir()
    flush(folder)


@contextlib.contextmanager
def removed_on_error(folder: Path) -> Iterator[None]:
    """Removes `folder` where the block fails: on a full disk its files are in the way.

    safetensors' own errors of writing, which have no type of their own, become an `OSError`.
    """
    try:
        with _named(folder.parent):
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


def flush_all(folder: Path) -> None:
    """`flush` of a folder and all that it holds."""
    for path in [*folder.rglob("*"), folder]:
        flush(path)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """The system's errors name `path` where they name no file, as those of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _OF_A_DISK:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
