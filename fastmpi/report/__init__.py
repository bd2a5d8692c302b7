"""What a run leaves for people: one HTML page and terminal tables. Imports no torch."""

from fastmpi.report.content import (
    Chart,
    Curve,
    MethodRow,
    PolicyPicture,
    Report,
    ResponseMark,
    SceneSample,
    StageCurves,
    TreeNode,
)
from fastmpi.report.page import render_page, write_page
from fastmpi.report.terminal import results_table

__all__ = [
    "Chart",
    "Curve",
    "MethodRow",
    "PolicyPicture",
    "Report",
    "ResponseMark",
    "SceneSample",
    "StageCurves",
    "TreeNode",
    "render_page",
    "results_table",
    "write_page",
]
