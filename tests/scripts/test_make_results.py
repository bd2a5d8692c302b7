"""The results page says what was measured, and nothing else."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
MEASURED = REPOSITORY / "benchmarks" / "results" / "cpu"
sys.path.insert(0, str(REPOSITORY / "scripts"))

import make_results  # noqa: E402


def page(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    output = tmp_path / "results.md"
    monkeypatch.setattr(sys, "argv", ["make_results.py", str(folder), str(output)])
    make_results.main()
    return output.read_text(encoding="utf-8")


def test_committed_page_is_made_from_committed_measurements(tmp_path, monkeypatch):
    committed = (REPOSITORY / "docs" / "results.md").read_text(encoding="utf-8")
    assert page(MEASURED, tmp_path, monkeypatch) == committed


def test_failed_target_is_said_to_have_failed(tmp_path, monkeypatch):
    for path in MEASURED.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for path in tmp_path.glob("demo-seed*.json"):
        demo = json.loads(path.read_text())
        for row in demo["rows"]:
            row["accuracy"] = 0.5
        path.write_text(json.dumps(demo))
    text = page(tmp_path, tmp_path, monkeypatch)
    assert text.count("**failed**") == 2
    assert "**at equal compute plain fine-tuning is as good or better**" in text
