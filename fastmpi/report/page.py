"""One self-contained HTML page of a comparison.

No script and nothing from a network: a content security policy in the page forbids both, so that
even a response that slipped through the escaping could load and run nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from fastmpi.report.chart import line_chart
from fastmpi.report.content import PolicyPicture, Report, StageCurves
from fastmpi.report.markup import element, escape
from fastmpi.report.scenes import scene_cards
from fastmpi.report.table import comparison_table
from fastmpi.report.tree import depth, tree_diagram

SECURITY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(report: Report, path: str | Path) -> Path:
    """Writes the page, replacing an older one in a single step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(path.suffix + ".partial")
    unfinished.write_text(render_page(report), encoding="utf-8")
    unfinished.replace(path)
    return path


def render_page(report: Report) -> str:
    """The page as a string."""
    table = comparison_table(report.rows, report.fixed_answer)
    sections = [
        _section("Comparison", table, _findings(report)),
        _section("Training curves", _grid(map(_stage, report.stages))) if report.stages else "",
        _section("The policies", _grid(map(_policy, report.policies))) if report.policies else "",
        _section("Scenes of the test set", scene_cards(report.samples)) if report.samples else "",
        _section("This run", _facts(report)),
    ]
    title = escape(report.title)
    intro = element("p", escape(report.summary), class_="lead") if report.summary else ""
    header = element("header", element("h1", title), intro, class_="page")
    body = element("body", element("main", header, *sections))
    return f'<!DOCTYPE html>\n<html lang="en">{_head(title)}{body}</html>\n'


def _head(title: str) -> str:
    style = resources.files("fastmpi.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{SECURITY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{style}</style></head>"
    )


def _section(heading: str, *content: str) -> str:
    return element("section", element("h2", escape(heading)), *content)


def _grid(parts: Iterable[str]) -> str:
    return element("div", *parts, class_="grid")


def _findings(report: Report) -> str:
    items = [element("li", escape(finding)) for finding in report.findings]
    return element("ul", *items, class_="findings") if items else ""


def _stage(stage: StageCurves) -> str:
    note = element("p", escape(stage.note), class_="note") if stage.note else ""
    charts = element("div", *map(line_chart, stage.charts), class_="charts")
    wide = " wide" if len(stage.charts) > 1 else ""
    return element("div", element("h3", escape(stage.title)), note, charts, class_="stage" + wide)


def _policy(policy: PolicyPicture) -> str:
    drawing = tree_diagram(policy.tree, policy.name) if policy.tree is not None else ""
    text = element("details", element("summary", "The text the model is given"),
                   element("pre", escape(policy.text)))  # fmt: skip
    name = element("h3", escape(policy.name))
    wide = " wide" if policy.tree is not None and depth(policy.tree) > 3 else ""
    drawn = element("div", drawing, class_="scroll")
    return element("div", name, drawn, text, class_="policy" + wide)


def _facts(report: Report) -> str:
    facts = _pairs("What ran", list(report.facts.items()))
    seconds = _pairs("Seconds", [(name, f"{value:.1f}") for name, value in report.seconds.items()])
    return element("div", facts, seconds, class_="facts")


def _pairs(heading: str, pairs: Sequence[tuple[str, str]]) -> str:
    if not pairs:
        return ""
    rows = [element("tr", element("th", escape(k), scope="row"), element("td", escape(v)))
            for k, v in pairs]  # fmt: skip
    caption = element("caption", escape(heading))
    return element("table", caption, element("tbody", *rows), class_="pairs")
