"""From runs on disk to the page, with what hostile models answer, and in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fastmpi.data.scenes import CLEVR_ATTRIBUTES
from fastmpi.policies.clevr_tree import ClevrTree
from fastmpi.report import build_report, read_runs, report
from fastmpi.report.gallery import LONGEST_RESPONSE, in_turn
from fastmpi.report.pictures import picture
from fastmpi.report.policy_views import tree_nodes

sys.path.insert(0, str(Path(__file__).parent))
from report_folders import (  # noqa: E402
    HOSTILE,
    make_comparison,
    make_data,
    make_evaluation,
    make_gta_data,
)

MOST_BYTES = 10_000_000


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return make_comparison(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def tool_runs(tmp_path_factory):
    """Three evaluations of a tool policy, with hostile answers, and a page of them."""
    root = tmp_path_factory.mktemp("tools")
    data = make_gta_data(root / "data")
    answers = {"t0": HOSTILE, "t1": "\u202e" + "x" * MOST_BYTES, "t2": "\\boxed{" * 1000,
               "t4": "a\u0301" * 5000, "t5": "\ud800 \\boxed{9**9**9}",
               "t10": '\\boxed{{"name": "OCR_v5", "arguments": {"image": "another"}}}'}  # fmt: skip
    for seed, name in enumerate(("one", "two", "three")):
        make_evaluation(root / name, data, label=name, seed=seed, responses=answers)
        answers["t1"] = "\u202e"  # ten megabytes are enough in one run
    return [root / name for name in ("one", "two", "three")]


def ids(root):
    return [json.loads(line)["id"] for line in (root / "test.jsonl").read_text().splitlines()]


def test_page_of_a_comparison(comparison, tmp_path):
    content = report([comparison], tmp_path / "report.html")
    assert content.title == "Four methods" and content.baseline == "In-context (base)"
    assert [tile.detail.split(":")[0] for tile in content.tiles[:2]] == [
        "TriMPI", "In-context (base)"
    ]  # fmt: skip
    arms, losses = content.curves
    assert [[curve.name for curve in chart.curves] for chart in arms.charts] == [["TriMPI"]] * 2
    assert [chart.title for chart in losses.charts] == [
        "SFT", "SFT, compute-matched", "cpt", "cpt \u2192 sft"
    ]  # fmt: skip
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<article>") == sum(len(g.cards) for g in content.galleries)
    assert "policy in the prompt" in content.galleries[0].cards[0].marks[1].run


def test_tree_has_the_accuracy_of_the_leaves_below(comparison):
    content = build_report(read_runs([comparison]))
    panels = content.policies.panels
    assert [panel.run for panel in panels][-1] == "TriMPI" and content.policies.chosen == 3
    (evaluation,) = (e for run in read_runs([comparison]) for e in run.evaluations[-1:])
    name, root = panels[-1].trees[0]
    items = [item for item in evaluation.items("task") if item["policy_id"] == name]
    assert root.n == len(items)
    assert root.share == pytest.approx(sum(item["correct"] for item in items) / len(items))
    below = [item for item in items if item["leaf"].startswith("1.1")]
    assert root.yes.n == len(below)
    leaf = [item["correct"] for item in items if item["leaf"] == "1.1.1"]
    assert root.yes.yes.share == (sum(leaf) / len(leaf) if leaf else None)


def test_a_node_counts_every_question_below_it_once():
    tree = ClevrTree.from_json(
        {"name": "kavo", "depth": 1, "root": {"attribute": "size", "value": "small",
         "if_true": {"case": "Case 1"}, "if_false": {"case": "Case 2"}}}
    )  # fmt: skip
    drawn = tree_nodes(tree, CLEVR_ATTRIBUTES, {"1.1": [True], "1.2": [False, False, True]})
    assert (drawn.share, drawn.n, drawn.no.share, drawn.no.n) == (0.5, 4, 1 / 3, 3)
    alone = tree_nodes(tree, CLEVR_ATTRIBUTES, {})
    assert alone.share is None and alone.yes.share is None and alone.n == 0


def test_rules_have_the_share_of_right_tools(tool_runs):
    runs = read_runs(tool_runs)
    (table,) = build_report(runs).policies.tables
    assert [column for column, _ in table.columns] == ["one", "two", "three"]
    (row,) = (row for row in table.rows if row.name.startswith("Rule 4 (OCR)"))
    items = [i for i in runs[0].evaluations[0].items("task") if i["rule"] == "4"]
    share = sum(item["scores"]["tool"] for item in items) / len(items)
    assert share != sum(item["scores"]["overall"] for item in items) / len(items)
    assert row.cells[0].share == share and row.note == f"n {len(items)}"
    assert any(row.name == "Calculator: no rule" for row in table.rows)
    unasked = next(row for row in table.rows if row.name.startswith("Rule 1 "))
    assert unasked.cells[0].text == "\u2013" and unasked.note == "n 0"


def test_hostile_answers_are_escaped_cut_and_quick(tool_runs, tmp_path):
    began = time.perf_counter()
    content = report(tool_runs, tmp_path / "report.html", num_questions=12)
    assert time.perf_counter() - began < 10  # three files of 10 MB are read
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(page) < MOST_BYTES / 10
    assert "<script" not in page and "</script" not in page and "\u202e" not in page
    assert f"[cut: {MOST_BYTES + 1} characters in all]" in page and "[U+D800]" in page
    responses = [m.response for g in content.galleries for c in g.cards for m in c.marks]
    assert max(map(len, responses)) < LONGEST_RESPONSE + 60


def test_galleries_tell_right_from_wrong(tool_runs):
    wrong, right = build_report(read_runs(tool_runs), num_questions=3).galleries
    assert {card.marks[0].verdict for card in wrong.cards} <= {"wrong", "partly"}
    assert {card.marks[0].verdict for card in right.cards} == {"right"}
    assert [mark.run for mark in right.cards[0].marks] == ["three", "one", "two"]
    assert len(wrong.cards) == len(right.cards) == 3
    assert right.cards[0].images[0].startswith(b"\xff\xd8\xff")  # 320 pixels: a JPEG


def test_policies_take_turns():
    items = [{"policy_id": name, "id": str(i)} for i, name in enumerate("aaabbc")]
    assert [item["id"] for item in in_turn(items)] == ["0", "3", "5", "1", "4", "2"]


def test_a_picture_outside_the_data_or_gone_is_a_box(tmp_path):
    data = make_gta_data(tmp_path / "data")
    folder = make_evaluation(tmp_path / "e", data).path
    path = folder / "items" / "task.jsonl"
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    path.write_text(path.read_text().replace("images/scene.jpg", "../secret.png"))
    cards = [c for g in build_report(read_runs([folder])).galleries for c in g.cards]
    assert cards and {image for card in cards for image in card.images} == {None}


def test_pictures_are_written_anew_and_small(tmp_path):
    path = tmp_path / "big.png"
    Image.new("RGB", (2000, 1000), "red").save(path)
    path.write_bytes(path.read_bytes() + b"<script>")
    made = picture(path, 360)
    assert b"<script>" not in made and len(made) < 10_000
    assert picture(tmp_path / "none.png", 360) is None
    (tmp_path / "text.png").write_text("no picture")
    assert picture(tmp_path / "text.png", 360) is None


def test_baseline_by_name(comparison):
    runs = read_runs([comparison])
    content = build_report(runs, baseline="SFT")
    assert content.baseline == "SFT"
    assert [row.name for row in content.differences[0].rows] == [
        "In-context (base)", "SFT, compute-matched", "TriMPI"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no run is called 'SF'; did you mean 'SFT'"):
        build_report(runs, baseline="SF")


def test_page_is_about_the_method_that_has_a_control(comparison):
    (run,) = read_runs([comparison])
    *others, trimpi = run.evaluations
    content = build_report([replace(run, evaluations=[trimpi, *others])], baseline="SFT")
    assert content.tiles[0].detail.startswith("TriMPI: ")
    without = [replace(e, matches="") for e in run.evaluations[:2]]
    assert build_report([replace(run, evaluations=without)]).tiles[0].detail.startswith("SFT: ")


def test_one_run_alone_has_a_page(tmp_path):
    folder = make_evaluation(tmp_path / "e", make_data(tmp_path / "d"), label="one").path
    content = report([folder], tmp_path / "report.html")
    assert content.differences == [] and content.findings == [] and content.curves == []
    assert len(content.policies.panels) == 1 and content.glance.rows[0].name == "one"


def test_the_page_names_what_is_not_drawn(comparison, monkeypatch):
    monkeypatch.setattr("fastmpi.report.policy_views.MOST_NODES", 20)
    policies = build_report(read_runs([comparison])).policies
    assert [panel.run for panel in policies.panels] == ["TriMPI"]
    assert policies.notes[0].startswith("Not drawn, for the size of the page: In-context (base)")


def chromium(tmp_path, *options):
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
               f"--user-data-dir={tmp_path / 'profile'}", *options]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)


# The page itself can run no script, so another one around it measures it: its own width, and what
# sticks out of it to the right without being in something that scrolls.
MEASURE = """<!DOCTYPE html><iframe style="border:0;width:{width}px;height:3000px" srcdoc="{page}">
</iframe><script>
onload = () => {{
  const inner = document.querySelector("iframe").contentDocument;
  inner.querySelectorAll("details").forEach((folded) => folded.open = true);
  const out = [...inner.querySelectorAll("body *")].filter((found) =>
    found.getBoundingClientRect().right > {width} + 1 && !found.closest(".scroll, pre, svg"));
  document.body.dataset.out = out.slice(0, 5).map((e) => e.outerHTML.slice(0, 90)).join(" | ");
  document.body.dataset.wide = inner.documentElement.scrollWidth;
}};
</script>"""


needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="Chromium is not installed"
)


@pytest.fixture(scope="module")
def page(tool_runs, comparison, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    report([comparison, *tool_runs], path)
    return path


@needs_chromium
def test_page_renders_without_errors(page, tmp_path):
    shot = tmp_path / "page.png"
    done = chromium(tmp_path, "--window-size=1280,2400", f"--screenshot={shot}", page.as_uri())
    assert "CONSOLE" not in done.stderr
    shown = Image.open(shot).convert("RGB")
    assert shown.size == (1280, 2400)
    assert len(shown.getcolors(maxcolors=1 << 20)) > 50  # text, lines and trees


@needs_chromium
@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_sticks_out(page, tmp_path, width):
    around = tmp_path / "around.html"
    inside = html.escape(page.read_text(encoding="utf-8"))
    around.write_text(MEASURE.format(width=width, page=inside), encoding="utf-8")
    done = chromium(tmp_path, "--dump-dom", "--window-size=1400,3000", around.as_uri())
    found = dict(re.findall(r'data-(out|wide)="([^"]*)"', done.stdout))
    assert found["out"] == "" and int(found["wide"]) <= width
    assert "CONSOLE" not in done.stderr
