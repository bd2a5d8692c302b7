"""Answers of an endpoint, kept so that none is paid for twice. Leaf module.

One JSON object a line, {"key", "text", "finished", "prompt_tokens", "completion_tokens"}. The key
is a hash of everything that was asked, so a changed question is a new one. Unusual: nothing of the
question itself is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from fastmpi.files import append_whole, make_folder


@dataclass(frozen=True)
class Reply:
    """What came back. finished: not cut off. error: why there is no text, "" where there is."""

    text: str
    finished: bool = True
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str = ""


class ReplyCache:
    """Replies by key, in memory and, where a path is given, in a file. Threads may share it."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self._lock = Lock()
        self._replies = dict(_read(self.path)) if self.path and self.path.is_file() else {}

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> Reply:
        return self._replies[key]

    def add(self, key: str, reply: Reply) -> None:
        """Keeps a reply; one with an error only in memory, so that the next run asks again."""
        with self._lock:
            self._replies[key] = reply
            if self.path is not None and not reply.error:
                line = {"key": key, **asdict(reply)}
                del line["error"]
                make_folder(self.path.parent)
                append_whole(self.path, f"{json.dumps(line)}\n".encode())


def request_key(request: Mapping[str, Any]) -> str:
    """SHA-256 of a request, the order of its keys left aside."""
    text = json.dumps(request, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> list[tuple[str, Reply]]:
    """Whole lines only: a killed run may leave half of one, which is cut off the file."""
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return [_parsed(path, n, line) for n, line in enumerate(whole.splitlines(), 1) if line.strip()]


def _parsed(path: Path, number: int, line: bytes) -> tuple[str, Reply]:
    try:
        data = json.loads(line)
        key = data.pop("key")
        reply = Reply(**data)
    except (ValueError, TypeError, AttributeError, KeyError):
        raise ValueError(f"{path}, line {number}: no kept reply; remove the line") from None
    if not isinstance(key, str) or not isinstance(reply.text, str):
        raise ValueError(f"{path}, line {number}: no kept reply; remove the line")
    return key, reply
