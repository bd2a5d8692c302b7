"""`fastmpi data ...` writes data sets, and refuses what it cannot make."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastmpi.cli import main


def test_gta_policy_writes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "gta-policy", "--num-train", "3", "--num-test", "2"]
    folder = tmp_path / "d"
    assert main([*words, "--output-dir", str(folder)]) == 0
    shown = capsys.readouterr().out
    names = ["override", "override_policies", "policies", "test", "train", "train_cot"]
    assert ", ".join(f"{name}.jsonl" for name in names) in shown
    assert len((folder / "test.jsonl").read_text().splitlines()) == 2
    assert main([*words, "--output-dir", str(folder)]) == 2
    assert "there already" in capsys.readouterr().err


def test_gta_policy_reads_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("gta_dr: somewhere\n")
    assert main(["data", "gta-policy", "--config", str(config)]) == 2
    assert "no setting 'gta_dr'; did you mean 'gta_dir'" in capsys.readouterr().err


def test_help_explains_every_setting_without_torch() -> None:
    code = "import sys; from fastmpi.cli import main\n"
    code += "try: main(['data', 'gta-policy', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--gta-dir" in done.stdout
