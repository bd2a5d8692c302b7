"""`fastmpi report` from the command line."""

from __future__ import annotations

import sys
from pathlib import Path

from fastmpi.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from report_folders import make_comparison, make_data, make_evaluation  # noqa: E402


def test_report_of_two_runs(tmp_path, capsys):
    data = make_data(tmp_path / "data")
    for seed, name in enumerate(("one", "two")):
        make_evaluation(tmp_path / name, data, label=name, seed=seed)
    page = tmp_path / "pages" / "both.html"
    words = [str(tmp_path / "one"), str(tmp_path / "two"), "--output", str(page)]
    assert main(["report", *words, "--baseline", "two", "--num-questions", "1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("- two reaches ") and shown.endswith(f"{page} is written\n")
    text = page.read_text(encoding="utf-8")
    assert "Differences to two" in text and text.count("<article>") == 2


def test_report_of_a_comparison_lies_where_one_stands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(make_comparison(tmp_path / "run"))]) == 0
    assert (tmp_path / "report.html").is_file()


def test_mistakes_end_with_one_line(tmp_path, capsys):
    make_evaluation(tmp_path / "one", make_data(tmp_path / "data"), label="one")
    for words, message in (
        ([], "report needs a run: fastmpi report RUN..."),
        ([str(tmp_path)], f"{tmp_path} is no folder of `fastmpi eval`"),
        ([str(tmp_path / "one"), "--baseline", "on"], "no run is called 'on'; did you mean 'one'"),
        ([str(tmp_path / "one"), "--num-questions", "-1"], "num_questions must not be negative"),
        ([str(tmp_path / "one"), "--outptu", "x"], "unknown flag '--outptu'"),
    ):
        assert main(["report", *words]) == 2
        assert message in capsys.readouterr().err
