"""Worker processes: results by name, and failures that stop all and say which job it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from fastmpi.stages.workers import JobError, Workers


def collect(workers):
    results = {}
    while workers.running:
        results.update(workers.collect(timeout_s=0.2))
    return results


def test_results_and_failures_by_name():
    """One pool for all of it: every process imports torch, which takes seconds."""
    before = dict(os.environ)
    with Workers(2) as workers:
        processes = [worker.process for worker in workers._workers]
        workers.submit("power", pow, {"base": 2, "exp": 5})
        workers.submit("threads", os.getenv, {"key": "OMP_NUM_THREADS"})
        assert not workers.has_room and workers.running == ["power", "threads"]
        assert collect(workers) == {"power": 32, "threads": "1"}
        workers.submit("train cpt", pow, {"base": "x", "exp": 1})
        with pytest.raises(JobError, match="train cpt: TypeError: .*") as failed:
            collect(workers)
        assert "Traceback" in failed.value.details
        workers.submit("train sft", json.loads, {"s": "{"})
        with pytest.raises(ValueError, match="train sft: Expecting property name"):
            collect(workers)
        workers.submit("train rl", os._exit, {"status": 3})
        with pytest.raises(JobError, match="train rl: its process died with exit code 3"):
            collect(workers)
    assert not any(process.is_alive() for process in processes)
    assert dict(os.environ) == before


PROGRAM = """
import os, time
from fastmpi.stages.workers import Workers

def nap():
    time.sleep(300)

if __name__ == "__main__":
    try:
        with Workers(1) as workers:
            workers.submit("name", os.getpid, {})
            while "name" in workers.running:
                print(*workers.collect(60).values(), flush=True)
            workers.submit("job", nap, {})
            while True:
                workers.collect(60)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_workers_end_with_what_started_them(tmp_path, sent, code):
    """Even where it is killed in the middle of their job; and Ctrl-C, which the terminal sends to
    all of them, leaves no traceback of theirs."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        # a background job ignores Ctrl-C, and what it starts would too
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert int(process.stdout.readline()) != process.pid
    time.sleep(0.5)  # the job has begun
    (process.send_signal if sent == signal.SIGKILL else partial(os.killpg, process.pid))(sent)
    # A worker that lives on would hold these pipes open.
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, "")
