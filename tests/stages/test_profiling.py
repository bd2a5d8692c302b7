"""`profile` leaves a trace and a table, names the parts of a step, and changes nothing else."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from fastmpi.stages.profiling import now

NAMES = {
    "cpt": {"next step", "forward", "backward", "optimizer"},
    "rl": {"next step", "rollout", "scoring", "forward", "backward", "optimizer"},
}


@pytest.mark.parametrize("stage", NAMES)
def test_trace_and_table(world, stage: str, capsys) -> None:
    plain = world.trainer(stage, max_steps=6).train().output_dir
    settings = {"max_steps": 6, "profile": True, "output_dir": str(world.output / "profiled")}
    folder = world.trainer(stage, **settings).train().output_dir
    events = json.loads((folder / "profile" / "trace.json").read_text())["traceEvents"]
    found = [event["name"] for event in events if event.get("name", "").startswith("fastmpi: ")]
    assert {name.removeprefix("fastmpi: ") for name in found} == NAMES[stage]
    assert found.count("fastmpi: optimizer") == 3
    table = (folder / "profile" / "regions.txt").read_text()
    rows = [line for line in table.splitlines() if line.strip() and not line.startswith("-")]
    assert len(rows) == 1 + 10 + 1  # a heading, the regions, the total
    assert rows[0].split()[0] == "Name" and "aten::" in table
    assert table in "".join(capsys.readouterr())
    one, other = (load_file(f / "model.safetensors") for f in (plain, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_of_fewer_steps(world) -> None:
    folder = world.trainer("cpt", max_steps=3, profile=True).train().output_dir
    assert "fastmpi: forward" in (folder / "profile" / "trace.json").read_text()


def test_nothing_is_written_without_it(world) -> None:
    folder = world.trainer("cpt", max_steps=4).train().output_dir
    assert not (folder / "profile").exists()


def test_a_clock_waits_for_its_own_stream_alone(monkeypatch) -> None:
    """Another thread may be capturing a graph, which no wait for the whole device survives."""
    waited: list[torch.device] = []
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda d: waited.append(d) or stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("the whole device"))
    device = torch.device("cuda", 0)
    assert now(device) <= now(device) and waited == [device, device]
