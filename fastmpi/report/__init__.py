"""What runs leave for people: one HTML page and terminal tables. Imports no torch."""

from fastmpi.report.build import build_report, report
from fastmpi.report.content import Report
from fastmpi.report.page import render_page, write_page
from fastmpi.report.runs import read_run, read_runs
from fastmpi.report.terminal import text_table

__all__ = [
    "Report",
    "build_report",
    "read_run",
    "read_runs",
    "render_page",
    "report",
    "text_table",
    "write_page",
]
