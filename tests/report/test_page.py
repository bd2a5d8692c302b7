"""The page: structure, escaping, and that it needs nothing from outside."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from fastmpi.report import Report, render_page, text_table, write_page
from fastmpi.report.content import (
    Axis,
    Cell,
    Chart,
    ChartGroup,
    Curve,
    Gallery,
    Mark,
    Part,
    Policies,
    PolicyText,
    QuestionCard,
    Row,
    Span,
    Table,
    Tile,
    TreeNode,
    TreePanel,
)

sys.path.insert(0, str(Path(__file__).parent))
from report_folders import HOSTILE  # noqa: E402


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return file.getvalue()


def table(text: str, **options: bool) -> Table:
    best = Row(text, [Cell(text, text, best=True, share=0.9)], text, Span(0.9, 0.8, 1.0), True)
    plain = Row("b", [Cell("0.5")], span=Span(0.5, -0.4, 0.6))
    return Table(
        text, [(text, text)], [best, plain], text, Axis(0, 1, text, 0.25), [text], **options
    )


def report(text: str = "question kavo") -> Report:
    """One of everything, with `text` wherever text can stand."""
    tree = TreeNode(text, text, TreeNode(text, share=1.0, n=3), TreeNode(text, share=0.0, n=1))
    marks = [Mark(text, text, verdict, text) for verdict in ("right", "partly", "wrong", "right")]
    long = QuestionCard([picture(), None], text * 40, text, marks, text)
    return Report(
        title=text, lead=text, tiles=[Tile(text, text, text)], findings=[text],
        glance=table(text), suites=[Part(text, text, [table(text, folded=True, heat=True)])],
        differences=[table(text)], baseline=text,
        curves=[ChartGroup(text, [Chart(text, text, [Curve(text, [(0, 1.0), (1, 2.0)])])], text)],
        policies=Policies(
            [TreePanel(text, [(text, tree)]), TreePanel("b", [(text, tree)])], [table(text)],
            [PolicyText(text, [text, picture()])], [text], 1,
        ),
        galleries=[Gallery(text, text, [long, QuestionCard([], text, text, marks[:2])])],
        facts=[table(text, words=True)],
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
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_page_holds_every_part():
    page = Structure(render_page(report()))
    assert page.open == []
    for heading in ("At a glance", "Differences to question kavo", "Suite by suite",
                    "Learning curves", "The policies, node by node", "Questions and answers",
                    "How it was made and measured"):  # fmt: skip
        assert heading in page.words
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert images == ["data:image/png;base64," + base64.b64encode(picture()).decode()] * 2
    assert "picture not found" in page.words
    links = {a["href"][1:] for tag, a in page.tags if tag == "a"}
    assert links == {a["id"] for tag, a in page.tags if tag == "section"}


def test_parts_without_content_are_left_out():
    page = Structure(render_page(Report("only a title")))
    assert not [tag for tag, _ in page.tags if tag in ("section", "ul", "table", "a")]


def test_the_chosen_panel_is_checked_and_alone():
    page = Structure(render_page(report()))
    buttons = [a for tag, a in page.tags if tag == "input"]
    assert ["checked" in button for button in buttons] == [False, True]
    labels = [a["for"] for tag, a in page.tags if tag == "label"]
    assert labels == [button["id"] for button in buttons] == ["panel0", "panel1"]


def test_best_is_bold_and_drawn_with_its_interval():
    page = render_page(Report("t", glance=table("x")))
    assert page.count("<b>x</b>") == 1 and "<span>0.5</span>" in page
    assert 'class="span" style="left:80.00%;width:20.00%"' in page
    assert 'class="span" style="left:0.00%;width:60.00%"' in page  # cut off at the axis
    assert 'class="chance" style="left:25.00%"' in page


def test_page_loads_nothing_from_outside():
    page = Structure(render_page(report()))
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
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
    plain = Structure(render_page(report("x" * len(HOSTILE))))
    hostile = Structure(page)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert "<script" not in page and "</script" not in page
    assert "\u202e" not in page and "[U+202E]" in page and "[U+0000]" in page


def test_image_of_another_kind_is_refused():
    card = QuestionCard([b"<svg onload=alert(1)>"], "q", "a", [])
    with pytest.raises(ValueError, match="neither a PNG nor a JPEG"):
        render_page(Report("t", galleries=[Gallery("g", "", [card])]))


def test_write_page_leaves_one_file(tmp_path):
    path = write_page(report(), tmp_path / "deep" / "report.html")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    with pytest.raises(ValueError, match="deep is a folder"):
        write_page(report(), path.parent)
    assert [file.name for file in tmp_path.iterdir()] == ["deep"]


def test_terminal_table_shows_the_same_numbers():
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(
        text_table(Table("Run", [("Accuracy", "%")], [Row("[b]a", [Cell("1", "2 to 3")])]))
    )
    shown = console.file.getvalue()
    assert "[b]a" in shown and " 1 " in shown and "Accuracy" in shown


def test_report_imports_no_torch():
    code = "import sys, fastmpi.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
