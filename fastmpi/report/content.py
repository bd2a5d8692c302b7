"""What a report shows, as plain data: the page and the terminal table read nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """One cell of a table. `detail` stands small below `text`. `share`, from 0 to 1, colours it."""

    text: str = ""
    detail: str = ""
    best: bool = False
    share: float | None = None


@dataclass(frozen=True)
class Span:
    """A value with its 95 % interval, in the units of the table's `Axis`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One line of a table; `span` is drawn as a dot on a line where the table has an axis."""

    name: str
    cells: Sequence[Cell]
    note: str = ""
    span: Span | None = None
    marked: bool = False


@dataclass(frozen=True)
class Axis:
    """The line that a table draws its spans on, from `low` to `high`; `mark` is a dotted line."""

    low: float
    high: float
    caption: str
    mark: float | None = None


@dataclass(frozen=True)
class Table:
    """`columns` are (heading, unit). A `folded` table is closed until the reader opens it.

    `heat` gives cells the colour of their share; `words` has cells of text, set to the left.
    """

    corner: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    title: str = ""
    axis: Axis | None = None
    notes: Sequence[str] = ()
    folded: bool = False
    heat: bool = False
    words: bool = False


@dataclass(frozen=True)
class Tile:
    """One number worth a large font, and what it is."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Part:
    """A suite: what it measures, and its tables."""

    title: str
    about: str
    tables: Sequence[Table]


@dataclass(frozen=True)
class Curve:
    """One line of a chart: ``points`` are (step, value), in order of the steps.

    `colour` is its number, by which it has one colour in all charts; None: its place in the chart.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int | None = None


@dataclass(frozen=True)
class Chart:
    """`y_range`: values that the axis must hold, so that charts side by side can be compared."""

    title: str
    y_label: str
    curves: Sequence[Curve]
    x_label: str = "step"
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class ChartGroup:
    """Charts under one heading."""

    title: str
    charts: Sequence[Chart]
    note: str = ""


@dataclass(frozen=True)
class TreeNode:
    """A node of a decision tree: two children, or none for an outcome.

    `share` of the `n` items whose gold outcome lies at or below the node were answered right.
    """

    label: str
    detail: str = ""
    yes: TreeNode | None = None
    no: TreeNode | None = None
    reachable: bool = True
    share: float | None = None
    n: int = 0


@dataclass(frozen=True)
class PolicyText:
    """What the model is given of one policy: text and pictures in turn."""

    name: str
    parts: Sequence[str | bytes]


@dataclass(frozen=True)
class TreePanel:
    """The policies' trees, by name, with the accuracies of one run."""

    run: str
    trees: Sequence[tuple[str, TreeNode]]


@dataclass(frozen=True)
class Policies:
    """What was to be learnt, and how well each piece of it was: only one panel shows at a time,
    the `chosen` one first."""

    panels: Sequence[TreePanel] = ()
    tables: Sequence[Table] = ()
    texts: Sequence[PolicyText] = ()
    notes: Sequence[str] = ()
    chosen: int = 0


@dataclass(frozen=True)
class Mark:
    """What one run said. `verdict` is right, partly or wrong."""

    run: str
    response: str
    verdict: str
    detail: str = ""


@dataclass(frozen=True)
class QuestionCard:
    """A test row and what each run answered; the first mark is the one it was chosen for.

    `images` are the bytes of PNG or JPEG files, None where a file is not there any more.
    """

    images: Sequence[bytes | None]
    prompt: str
    answer: str
    marks: Sequence[Mark]
    policy_id: str = ""


@dataclass(frozen=True)
class Gallery:
    """Cards under one heading."""

    title: str
    note: str
    cards: Sequence[QuestionCard]


@dataclass(frozen=True)
class Report:
    """A whole page."""

    title: str
    lead: str = ""
    tiles: Sequence[Tile] = ()
    findings: Sequence[str] = ()
    glance: Table | None = None
    suites: Sequence[Part] = ()
    differences: Sequence[Table] = ()
    baseline: str = ""
    curves: Sequence[ChartGroup] = ()
    policies: Policies | None = None
    galleries: Sequence[Gallery] = ()
    facts: Sequence[Table] = field(default=())
