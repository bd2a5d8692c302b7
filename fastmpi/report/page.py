"""One self-contained HTML page of a comparison.

No script and nothing from a network: a content security policy in the page forbids both, so that
even a response that slipped through the escaping could load and run nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from fastmpi.files import write_whole
from fastmpi.report.cards import gallery
from fastmpi.report.chart import line_chart
from fastmpi.report.content import ChartGroup, Part, Report
from fastmpi.report.markup import element, escape
from fastmpi.report.policies import policies_block
from fastmpi.report.tables import table_block

SECURITY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_page(report: Report, path: str | Path) -> Path:
    """Writes the page, replacing an older one in a single step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; the page needs the name of a file")
    write_whole(path, render_page(report))
    return path


def render_page(report: Report) -> str:
    """The page as a string."""
    sections = [section for section in _sections(report) if section.content]
    title = escape(report.title)
    links = [element("a", s.name.capitalize(), href=f"#{s.name}") for s in sections]
    contents = element("nav", *links, aria_label="Contents")
    lead = element("p", escape(report.lead), class_="lead") if report.lead else ""
    header = element("header", element("h1", title), lead, contents, class_="page")
    found = [_tiles(report), _findings(report)]
    body = element("body", element("main", header, *found, *map(_section, sections)))
    return f'<!DOCTYPE html>\n<html lang="en">{_head(title)}{body}</html>\n'


@dataclass(frozen=True)
class _Section:
    name: str
    heading: str
    content: str


def _sections(report: Report) -> list[_Section]:
    """All that a page can have; what has no content is left out."""
    against = f"Differences to {report.baseline}"
    paired = "Paired by question, so that what makes one hard for both cancels out."
    about = element("p", paired, class_="about")
    differences = "".join(map(table_block, report.differences))
    policies = policies_block(report.policies) if report.policies else ""
    return [
        _Section("glance", "At a glance", table_block(report.glance) if report.glance else ""),
        _Section("differences", against, about + differences if differences else ""),
        _Section("suites", "Suite by suite", "".join(map(_part, report.suites))),
        _Section("curves", "Learning curves", "".join(map(_charts, report.curves))),
        _Section("policies", "The policies, node by node", policies),
        _Section("answers", "Questions and answers", "".join(map(gallery, report.galleries))),
        _Section("facts", "How it was made and measured", "".join(map(table_block, report.facts))),
    ]


def _head(title: str) -> str:
    style = resources.files("fastmpi.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{SECURITY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>{style}</style></head>"
    )


def _section(section: _Section) -> str:
    heading = element("h2", escape(section.heading))
    return element("section", heading, section.content, id=section.name)


def _tiles(report: Report) -> str:
    tiles = [
        element(
            "li", element("strong", escape(tile.value)), element("span", escape(tile.label)),
            element("small", escape(tile.detail)),
        )
        for tile in report.tiles
    ]  # fmt: skip
    return element("ul", *tiles, class_="tiles") if tiles else ""


def _findings(report: Report) -> str:
    items = [element("li", escape(finding)) for finding in report.findings]
    return element("ul", *items, class_="findings") if items else ""


def _part(part: Part) -> str:
    about = element("p", escape(part.about), class_="about") if part.about else ""
    tables = map(table_block, part.tables)
    return element("div", element("h3", escape(part.title)), about, *tables, class_="suite")


def _charts(group: ChartGroup) -> str:
    note = element("p", escape(group.note), class_="note") if group.note else ""
    size = " small" if len(group.charts) > 2 else ""
    charts = element("div", *map(line_chart, group.charts), class_=f"charts{size}")
    return element("div", element("h3", escape(group.title)), charts, note, class_="block")
