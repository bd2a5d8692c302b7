"""`fastmpi` that is killed at a chosen moment: `killed_run.py MOMENT run recipe.yaml`.

MOMENT is a JSON object. From the first thing done to a file whose path below `root` matches
`begin`, `count` further ones pass, and the next is met by SIGKILL before it is done. With `torn`,
the kernel kills the process instead in the middle of its next write that takes a file beyond that
many bytes. Neither lets Python clean up.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


class Moment:
    """Counts what is done to files below `root`. torn: bytes beyond those of the file at hand."""

    def __init__(self, root: str, begin: str, count: int = 0, torn: int | None = None) -> None:
        self.root, self.begin = root, re.compile(begin)
        self.count, self.torn = count, torn
        self.begun = False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES:
            return
        inside = [name for path in arguments[:2] if (name := self._inside(path)) is not None]
        # What is removed with its folder has no path of its own.
        if not inside and event not in ("os.remove", "os.rmdir"):
            return
        self.begun = self.begun or any(self.begin.search(f"{event} {name}") for name in inside)
        if not self.begun:
            return
        if self.count == 0:
            self._end(event, inside)
        self.count -= 1

    def _inside(self, path: Any) -> str | None:
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        return text[len(self.root) :] if text.startswith(self.root) else None

    def _end(self, event: str, names: list[str]) -> None:
        print("killed at", event, *names, self.torn or "", file=sys.stderr, flush=True)
        if self.torn is None:
            os.kill(os.getpid(), signal.SIGKILL)
        path = Path(self.root + names[0]) if names else Path(self.root)
        size = path.stat().st_size if path.is_file() else 0
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + (self.torn or 0),) * 2)


def start(command: list[str], moment: dict[str, Any] | None = None) -> subprocess.Popen[str]:
    """`fastmpi` as users have it; with a moment, the one that dies there."""
    how = ["-m", "fastmpi"] if moment is None else [__file__, json.dumps(moment)]
    return subprocess.Popen(
        [sys.executable, *how, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(command: list[str]) -> None:
    """Runs it to its end, which must be a good one."""
    process = start(command)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def killed(command: list[str], moment: dict[str, Any]) -> str:
    """Runs it to the moment, which must come, and says what it was."""
    process = start(command, moment)
    _, errors = process.communicate(timeout=300)
    assert process.returncode in (-signal.SIGKILL, -signal.SIGXFSZ), errors[-3000:]
    return errors.splitlines()[-1]


if __name__ == "__main__":
    from fastmpi.cli import main

    sys.addaudithook(Moment(**json.loads(sys.argv[1])))
    sys.exit(main(sys.argv[2:]))
