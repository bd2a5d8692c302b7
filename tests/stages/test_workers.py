"""Worker processes: results by name, and failures that stop all and say which job it was."""

from __future__ import annotations

import json
import os

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
