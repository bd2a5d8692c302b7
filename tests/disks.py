"""A disk that is full and a folder that is read-only, for a while."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_VERSION_3 = 0x20080522  # of the system call capset: two words of 32 capabilities
_OVERRIDE = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Files cannot grow beyond `limit` bytes: the system refuses the write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Nothing can be made or removed in the folders, not by root either."""
    modes = [folder.stat().st_mode for folder in folders]
    for folder in folders:
        folder.chmod(0o555)
    try:
        with _as_any_user():
            yield
    finally:
        for folder, mode in zip(folders, modes, strict=True):
            folder.chmod(mode)


@contextmanager
def _as_any_user() -> Iterator[None]:
    """Permissions bind this thread even where it belongs to root."""
    if os.geteuid() != 0:
        yield
        return
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; and the next 32 of each
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    before = data[0]
    data[0] = before & ~_OVERRIDE
    assert libc.capset(header, data) == 0
    try:
        yield
    finally:
        data[0] = before
        assert libc.capset(header, data) == 0
