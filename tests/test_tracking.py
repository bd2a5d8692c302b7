"""What a run writes about itself."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fastmpi.tracking import RunningMeans, Tracker, read_metrics


def make(folder: Path, **kwargs) -> Tracker:
    return Tracker(folder, name="sft", total_steps=10, **kwargs)


def test_means_leave_out_what_does_not_apply() -> None:
    means = RunningMeans()
    means.add({"loss": 1.0, "kl": math.nan})
    means.add({"loss": 3.0, "kl": 0.5})
    assert means.take() == {"loss": 2.0, "kl": 0.5}
    assert means.take() == {}


def test_means_survive_json_exactly() -> None:
    means, again = RunningMeans(), RunningMeans()
    means.add({"loss": 0.1}), means.add({"loss": 0.2})
    again.load_state_dict(json.loads(json.dumps(means.state_dict())))
    again.add({"loss": 0.3}), means.add({"loss": 0.3})
    assert again.take() == means.take()


def test_lines_and_resuming(tmp_path: Path) -> None:
    tracker = make(tmp_path, show_progress=False)
    for step in (2, 4, 6):
        tracker.log(step, {"loss": 1 / step})
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # killed while writing
    make(tmp_path, start_step=4, show_progress=False).close()
    assert read_metrics(tmp_path) == [{"step": 2, "loss": 0.5}, {"step": 4, "loss": 0.25}]


@pytest.mark.parametrize("line", ['{"step": 1, "lo', "7", '{"loss": 1}', "\udcff"])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    text = '{"step": 1}\n' + line + "\n"
    (tmp_path / "metrics.jsonl").write_bytes(text.encode("utf-8", errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 is damaged"):
        read_metrics(tmp_path)


def test_a_new_run_starts_a_new_file(tmp_path: Path) -> None:
    tracker = make(tmp_path, show_progress=False)
    tracker.log(1, {"loss": 1.0})
    make(tmp_path, show_progress=False)
    assert read_metrics(tmp_path) == []


def test_plain_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tracker = make(tmp_path)
    tracker.log(5, {"loss": 0.5, "reward": 0.25, "perf/tokens_per_s": 1234.0, "kl": 3.0})
    tracker.advance(6, {"loss": 0.4})
    tracker.message("[done]")
    tracker.close()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["sft step 5/10 loss 0.5  reward 0.25  tokens_per_s 1234", "[done]"]


def test_completions(tmp_path: Path) -> None:
    import pyarrow.parquet

    tracker = make(tmp_path, show_progress=False)
    path = tracker.write_completions(10, [{"arm": "policy_free", "completion": "a\n<b>"}])
    assert path == tmp_path / "completions" / "completions_00010.parquet"
    assert pyarrow.parquet.read_table(path).to_pylist() == [
        {"arm": "policy_free", "completion": "a\n<b>"}
    ]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    tracker = make(tmp_path / "new", is_main=False)
    tracker.log(1, {"loss": 1.0})
    tracker.write_completions(1, [{"a": 1}])
    tracker.close()
    assert not (tmp_path / "new").exists()


def test_further_writers_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    calls: list = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("end")
    )
    fake = types.SimpleNamespace(init=lambda **kwargs: calls.append(kwargs["config"]) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    tracker = make(tmp_path, report_to=["wandb"], config={"seed": 1}, show_progress=False)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert calls == [{"seed": 1}, (1, {"loss": 1.0}), "end"]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    lines = '{"step": 1, "loss": 0.5}\n{"step": 2, "lo'
    (tmp_path / "metrics.jsonl").write_text(lines)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    (tmp_path / "metrics.jsonl").write_text(lines.split("\n")[0] + "\n")
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
