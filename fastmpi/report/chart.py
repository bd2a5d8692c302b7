"""Line charts as inline SVG, written by hand: no script, no fonts, colours from the page's CSS."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace

from fastmpi.report.content import Chart, Curve
from fastmpi.report.markup import element, escape

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 12, 38
NUM_COLOURS = 6
Scale = Callable[[float], float]
NOTHING = 1e-6  # a smaller range is rounding, and drawn as a level line
SMOOTH_FROM = 24  # a curve of fewer points is drawn as it is


def line_chart(chart: Chart) -> str:
    """A figure: title, legend of the curves that have a name, and the plot."""
    drawn = [curve for curve in map(_finite, chart.curves) if curve.points]
    if not drawn:
        return ""
    caption = element("figcaption", escape(chart.title))
    legend = _legend(drawn) if any(curve.name for curve in drawn) else ""
    return element("figure", caption, legend, _plot(chart, drawn), class_="chart")


def _finite(curve: Curve) -> Curve:
    points = [(x, y) for x, y in curve.points if math.isfinite(x) and math.isfinite(y)]
    return replace(curve, points=points)


def _plot(chart: Chart, curves: Sequence[Curve]) -> str:
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    x_ticks = nice_ticks(min(xs), max(xs), 5)
    y_ticks = nice_ticks(*_y_limits(chart, ys), 4)
    x_at = _scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    if max(ys) - min(ys) <= NOTHING:
        middle = statistics.mean(ys) if abs(ys[0]) > NOTHING else 0.0
        curves = [replace(c, points=[(x, middle) for x, _ in c.points]) for c in curves]
    y_at = _scale(min(y_ticks), max(y_ticks), HEIGHT - BOTTOM, TOP)
    parts = [_description(chart, curves), *_y_axis(y_ticks, y_at)]
    parts += _x_axis([tick for tick in x_ticks if min(xs) <= tick <= max(xs)], x_at)
    parts += _axis_labels(chart)
    for index, curve in enumerate(curves):
        parts.append(_lines(curve, _look(curve, index), x_at, y_at))
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", class_="plot")


def _y_limits(chart: Chart, ys: Sequence[float]) -> tuple[float, float]:
    held = [*ys, *(chart.y_range or ())]
    return min(held), max(held)


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that enclose [low, high]."""
    if high - low <= NOTHING:
        reach = 0.5 * abs(low) if abs(low) > NOTHING else 0.5
        low, high = low - reach, high + reach
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _y_axis(ticks: Sequence[float], y_at: Scale) -> list[str]:
    parts = []
    for tick in ticks:
        y = f"{y_at(tick):.1f}"
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        label = element(
            "text", escape(f"{tick:g}"), x=LEFT - 7, y=y, dy="0.35em", class_="tick end"
        )
        parts.append(label)
    return parts


def _x_axis(ticks: Sequence[float], x_at: Scale) -> list[str]:
    base = HEIGHT - BOTTOM
    parts = [element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis")]
    for tick in ticks:
        x = f"{x_at(tick):.1f}"
        parts.append(element("text", escape(f"{tick:g}"), x=x, y=base + 15, class_="tick middle"))
    return parts


def _axis_labels(chart: Chart) -> list[str]:
    middle = (TOP + HEIGHT - BOTTOM) / 2
    x_label = element(
        "text", escape(chart.x_label), x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6,
        class_="label middle",
    )  # fmt: skip
    turned = f"rotate(-90 11 {middle})"
    y_label = element(
        "text", escape(chart.y_label), x=11, y=middle, transform=turned, class_="label middle"
    )
    return [x_label, y_label]


def _look(curve: Curve, index: int) -> str:
    """Class of a curve: its colour, and dashes after the colours have been used once."""
    number = index if curve.colour is None else curve.colour
    dashed = " dashed" if number // NUM_COLOURS % 2 else ""
    return f"series c{number % NUM_COLOURS}{dashed}"


def _lines(curve: Curve, look: str, x_at: Scale, y_at: Scale) -> str:
    if len(curve.points) == 1:
        (x, y) = curve.points[0]
        dot = element("circle", cx=f"{x_at(x):.1f}", cy=f"{y_at(y):.1f}", r=3)
        return element("g", dot, class_=look)
    if len(curve.points) < SMOOTH_FROM:
        lines = [_path(curve.points, x_at, y_at, "line")]
    else:
        smooth = moving_mean(curve.points, len(curve.points) // 12)
        lines = [_path(curve.points, x_at, y_at, "raw"), _path(smooth, x_at, y_at, "line")]
    return element("g", *lines, class_=look)


def _path(points: Sequence[tuple[float, float]], x_at: Scale, y_at: Scale, class_: str) -> str:
    written = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in points)
    return element("polyline", points=written, class_=class_)


def moving_mean(points: Sequence[tuple[float, float]], reach: int) -> list[tuple[float, float]]:
    """Each value replaced by the mean of itself and up to ``reach`` neighbours on both sides.

    Near the beginning the window stays symmetric, so that a steep start is not flattened.
    """
    ys = [y for _, y in points]
    smooth = []
    for index, (x, _) in enumerate(points):
        near = min(reach, index)
        window = ys[index - near : index + near + 1]
        smooth.append((x, sum(window) / len(window)))
    return smooth


def _description(chart: Chart, curves: Sequence[Curve]) -> str:
    ends = []
    for curve in curves:
        (_, first), (_, last) = curve.points[0], curve.points[-1]
        ends.append(f"{curve.name or chart.y_label} from {first:.3g} to {last:.3g}")
    return element("title", escape(f"{chart.title}: {'; '.join(ends)}"))


def _legend(curves: Sequence[Curve]) -> str:
    keys = []
    for index, curve in enumerate(curves):
        line = element("line", x1=1, x2=23, y1=5, y2=5, class_="line")
        swatch = element("svg", line, viewBox="0 0 24 10", class_=f"key {_look(curve, index)}")
        keys.append(element("li", swatch, escape(curve.name)))
    return element("ul", *keys, class_="legend")
