"""The report page: structure, escaping, and how it renders where Chromium is present."""

from __future__ import annotations

import base64
import io
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from PIL import Image
from rich.console import Console

from fastmpi.report import (
    Chart,
    Curve,
    MethodRow,
    PolicyPicture,
    Report,
    ResponseMark,
    SceneSample,
    StageCurves,
    TreeNode,
    render_page,
    results_table,
    write_page,
)
from fastmpi.report.chart import line_chart, moving_mean, nice_ticks
from fastmpi.report.markup import escape
from fastmpi.report.tree import describe, tree_diagram

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\u202e\u2067 &amp; \x00"


def picture(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return file.getvalue()


def tree() -> TreeNode:
    right = TreeNode("small?", "1.2", TreeNode("Case 1"), TreeNode("Case 8", reachable=False))
    return TreeNode(
        "red?", "1", TreeNode("cube?", "1.1", TreeNode("Case 3"), TreeNode("Case 5")), right
    )


def rows() -> list[MethodRow]:
    base = MethodRow("In-context (base)", 0.12, 0.991, 500, 118.0, 21.3, 0.0)
    plain = MethodRow("CoT SFT", 0.24, 0.61, 500, 12.0, 7.1, 5.2, (0.2, 0.28), (0.57, 0.65))
    best = MethodRow("TriMPI", 0.954, 0.97, 500, 12.0, 7.0, 56.0, (0.93, 0.97), (0.95, 0.98))
    return [base, plain, best]


def curve(name: str, start: float, end: float, dashed: bool = False) -> Curve:
    points = [
        (s, end + (start - end) * math.exp(-s / 15) + 0.05 * math.sin(7.0 * s)) for s in range(60)
    ]
    return Curve(name, points, dashed)


def report(text: str = "question kavo") -> Report:
    loss = Chart("Loss", "nats per token", [curve("", 2.0, 0.1)])
    reward = Chart(
        "Reward",
        "reward",
        [curve("policy-free", 0.1, 0.9), curve("policy-aware", 0.95, 0.98, True)],
    )
    marks = [
        ResponseMark("CoT SFT", text, None, False),
        ResponseMark("TriMPI", text, "Case 3", True),
    ]
    return Report(
        title=text, summary=text, rows=rows(), findings=[text], fixed_answer=0.125,
        stages=[StageCurves("rl", [loss, reward], text)],
        policies=[PolicyPicture(text, tree(), text)],
        samples=[SceneSample(picture(), text, text, marks), SceneSample(None, text, text, marks)],
        facts={"seed": "0", text: text}, seconds={"rl": 25.0},
    )  # fmt: skip


class Structure(HTMLParser):
    """Checks that tags nest, and collects tags, attributes and text."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_page_holds_every_part():
    page = Structure(render_page(report()))
    assert page.open == []
    names = [tag for tag, _ in page.tags]
    assert names.count("tr") == 1 + 3 + 3  # head, methods, facts and seconds
    for part in (
        "Comparison",
        "Training curves",
        "The policies",
        "Scenes of the test set",
        "policy-aware",
    ):
        assert part in page.words
    assert "95.4 %" in page.words and "93 to 97" in page.words
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert images == ["data:image/png;base64," + base64.b64encode(picture()).decode()]


def test_best_accuracies_are_bold():
    page = render_page(report())
    assert "<b>95.4 %</b>" in page and "<b>99.1 %</b>" in page
    assert page.count("<b>") == 2


def test_page_loads_nothing_from_outside():
    page = Structure(render_page(report()))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert "//" not in (value or "").split("base64,")[0]
    policies = [
        a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies and policies[0].startswith("default-src 'none'")


def test_text_of_a_model_is_escaped_everywhere():
    page = render_page(report(HOSTILE))
    plain = Structure(render_page(report()))
    hostile = Structure(page)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert "<script" not in page and "</script" not in page
    assert "\u202e" not in page and "[U+202E]" in page and "[U+0000]" in page


def test_escape_keeps_readable_text():
    assert escape("a < b\n\tCase 3 \u05d0") == "a &lt; b\n\tCase 3 \u05d0"
    assert escape('"\u2066\ud800') == "&quot;[U+2066][U+D800]"


def test_image_of_another_kind_is_refused():
    sample = SceneSample(b"<svg onload=alert(1)>", "q", "a", [])
    with pytest.raises(ValueError, match="neither a PNG nor a JPEG"):
        render_page(Report("t", rows(), samples=[sample]))


def test_write_page_leaves_one_file(tmp_path):
    path = write_page(report(), tmp_path / "deep" / "report.html")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 1, [0, 0.5, 1.0]), (0.13, 0.87, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (5, 5, None)],
)
def test_nice_ticks_enclose_the_values(low, high, expected):
    ticks = nice_ticks(low, high, 4 if expected is None or len(expected) > 3 else 2)
    assert ticks[0] <= low and ticks[-1] >= high
    assert expected is None or ticks == expected


def test_chart_skips_what_is_not_a_number():
    chart = Chart("Loss", "nats", [Curve("", [(0, 1.0), (1, math.nan), (2, 3.0)]), Curve("b", [])])
    drawing = line_chart(chart)
    assert "nan" not in drawing and drawing.count("<polyline") == 1 and "legend" not in drawing
    assert line_chart(Chart("Loss", "nats", [Curve("a", [])])) == ""


def test_moving_mean_takes_the_neighbours_there_are():
    points = [(0, 0.0), (1, 3.0), (2, 6.0), (3, 0.0)]
    assert moving_mean(points, 1) == [(0, 0.0), (1, 3.0), (2, 3.0), (3, 3.0)]


def test_rounding_is_drawn_as_a_level_line():
    drawing = line_chart(Chart("Loss", "loss", [Curve("a", [(0, 1e-9), (1, -3e-8)])]))
    assert drawing.count(">0<") == 2 and "e-0" not in drawing


def test_tree_draws_every_node_and_branch():
    drawing = tree_diagram(tree(), "kavo")
    assert drawing.count("<rect") == 7 and drawing.count("<path") == 6
    assert drawing.count('class="box outcome unreachable"') == 1
    assert describe(tree()) == (
        "red? (yes: cube? (yes: Case 3, no: Case 5), no: small? (yes: Case 1, no: Case 8))"
    )


def test_terminal_table_shows_each_method():
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(results_table(rows()))
    shown = console.file.getvalue()
    assert "TriMPI" in shown and "0.954 \u00b10.020" in shown and "118" in shown


def test_report_imports_no_torch():
    code = "import sys, fastmpi.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_page_renders_in_chromium(tmp_path):
    page = write_page(report(HOSTILE), tmp_path / "report.html")
    picture_file = tmp_path / "page.png"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--window-size=1200,2400", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--screenshot={picture_file}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    shown = Image.open(picture_file).convert("RGB")
    assert shown.size == (1200, 2400)
    assert (
        len(shown.getcolors(maxcolors=1 << 20)) > 50
    )  # text, curves and pictures, not a blank page
