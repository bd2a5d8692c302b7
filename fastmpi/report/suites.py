"""The tables of a page: all runs at a glance, and each suite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fastmpi.evaluation.folder import Figures
from fastmpi.evaluation.metrics import Figure
from fastmpi.report.content import Axis, Cell, Part, Row, Span, Table
from fastmpi.report.figures import COSTS, HEADLINES, ORDER, cost_cell, figure_cell, kind_of, number
from fastmpi.report.questions import one_similarity, same_questions, similarities
from fastmpi.report.runs import Evaluation

# The suites in their order on the page: heading, a short one, what is measured.
SUITES: Mapping[str, tuple[str, str, str]] = {
    "task": (
        "Without the policy in the prompt",
        "Without policy",
        "What the model has internalised: it sees the picture and the question, and no rules.",
    ),
    "in-context": (
        "With the policy in the prompt",
        "With policy",
        "The same questions with the rules put back. Internalisation is the result without them "
        "divided by the result with them.",
    ),
    "override": (
        "Other rules under the same name",
        "Other rules",
        "Rules that no training saw, in the prompt. A model that has learnt the old ones by heart "
        "and does not read keeps the old answer.",
    ),
    "referral": (
        "How truly the reasoning quotes the rules",
        "Quoted truly",
        "A citation is true where the rule exists and what is quoted is what stands there.",
    ),
    "branching": (
        "Which rules the reasoning goes through",
        "",
        "Cited rules that do not exist, and how far the cited ones are from those of the right "
        "reasoning.",
    ),
    "forgetting": (
        "What else the model still knows",
        "",
        "Tasks that have nothing to do with these policies.",
    ),
    "efficiency": (
        "Cost of the prompt",
        "",
        "With the policy in the prompt \u2192 without it, and the share that is saved.",
    ),
}
ASKED = ("task", "in-context", "override")  # suites that ask about the policies
SPLITS = (("by_policy", "Policy"), ("by_depth", "Depth"), ("by_outcome", "Outcome"))
_DRAWN = (*ASKED, "referral")
MOST_ROWS = 60  # of a table of parts


def headline(suite: str, evaluations: Iterable[Evaluation]) -> str:
    """The figure that stands for a suite: overall or accuracy, else the first; "" for none."""
    names = _names(suite, evaluations)
    return next((name for name in (*HEADLINES, *names) if name in names), "")


def headline_figure(evaluation: Evaluation, suite: str) -> Figure | None:
    """The figure that stands for a suite of one run; None where it has none, or of no items."""
    figure = evaluation.figures(suite).get(headline(suite, [evaluation]))
    return figure if figure is not None and figure.n else None


def glance(evaluations: Sequence[Evaluation]) -> Table:
    """The most important figure of every suite, and the seconds of training."""
    columns, cells = [], {e.label: list[Cell]() for e in evaluations}
    for suite, name in _glanced(evaluations):
        short = SUITES[suite][1] if suite in SUITES else ""
        columns.append((short or kind_of(suite, name).heading, ""))
        for label, cell in _column(suite, name, evaluations).items():
            cells[label].append(cell)
    if any("prompt_tokens_with" in e.figures("efficiency") for e in evaluations):
        columns.append(("Prompt tokens", ""))
        for e in evaluations:
            cells[e.label].append(_prompt_tokens(e))
    if any(e.cpu_seconds is not None for e in evaluations):
        columns.append(("Training", "CPU-seconds"))
        for e in evaluations:
            cells[e.label].append(_seconds(e))
    axis = Axis(0, 1, "Without policy", fixed_answer(evaluations))
    rows = [
        Row(e.label, cells[e.label], e.note, _span(e, "task"), _leads("task", e, evaluations))
        for e in evaluations
    ]
    notes = [*_fixed_note(axis), *_similarity_note(ASKED, evaluations)]
    return Table("Run", columns, rows, axis=axis, notes=notes)


def parts(evaluations: Sequence[Evaluation]) -> list[Part]:
    """One part for each suite that some run was asked."""
    found = []
    for suite in _suites(evaluations):
        title, _, about = SUITES.get(suite, (suite.capitalize(), "", ""))
        table = _costs(evaluations) if suite == "efficiency" else _figures(suite, evaluations)
        found.append(Part(title, about, [table, *_split_tables(suite, evaluations)]))
    return found


def fixed_answer(evaluations: Sequence[Evaluation]) -> float | None:
    """Accuracy of always giving the most frequent answer of each policy; None for tool calls, and
    where runs were asked different questions."""
    asked = [e for e in evaluations if e.items("task")]
    items = asked[0].items("task") if asked else []
    if not items or any("scores" in item for item in items):
        return None
    if not all(same_questions(e, asked[0], "task") for e in asked):
        return None
    counts: dict[str, dict[str, int]] = {}
    for item in items:
        answers = counts.setdefault(str(item.get("policy_id")), {})
        answers[item["answer"]] = answers.get(item["answer"], 0) + 1
    return sum(max(answers.values()) for answers in counts.values()) / len(items)


def _fixed_note(axis: Axis) -> list[str]:
    if axis.mark is None:
        return []
    return [
        f"Dotted line: {100 * axis.mark:.1f} %, which is what the most frequent answer of each "
        "policy is right on, without a look at the picture."
    ]


def _similarity_note(suites: Sequence[str], evaluations: Sequence[Evaluation]) -> list[str]:
    """Why no score is bold, where runs compared texts in different ways."""
    for suite in suites:
        if not one_similarity(suite, evaluations):
            names = " in some runs and by ".join(similarities(suite, evaluations))
            return [f"Texts were compared by {names} in others: scores of one are not ranked "
                    "with those of the other."]  # fmt: skip
    return []


def _prompt_tokens(evaluation: Evaluation) -> Cell:
    figures = evaluation.figures("efficiency")
    found = [figures.get(f"prompt_tokens_{end}") for end in ("without", "with")]
    without, with_ = (number(f.value) if f and f.n else "\u2013" for f in found)
    return Cell(without, f"of {with_}")


def _seconds(evaluation: Evaluation) -> Cell:
    seconds = evaluation.cpu_seconds
    return Cell("\u2013" if seconds is None else number(seconds) if seconds else "none")


def _suites(evaluations: Iterable[Evaluation]) -> list[str]:
    found = {suite for e in evaluations for suite in e.suites}
    return [s for s in SUITES if s in found] + sorted(found - set(SUITES))


def _names(suite: str, evaluations: Iterable[Evaluation]) -> list[str]:
    """All figures of a suite, those of `ORDER` first."""
    names = list(dict.fromkeys(name for e in evaluations for name in e.figures(suite)))
    return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def _glanced(evaluations: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """(suite, figure) of the columns of the first table."""
    found = []
    for suite in _suites(evaluations):
        names = _names(suite, evaluations)
        main = [headline(suite, evaluations)]
        found += [(suite, name) for name in (names if suite == "forgetting" else main) if name]
    return [(suite, name) for suite, name in found if suite not in ("branching", "efficiency")]


def _column(suite: str, name: str, evaluations: Sequence[Evaluation]) -> dict[str, Cell]:
    kind = kind_of(suite, name)
    best = _best(suite, name, evaluations)
    found = {e.label: e.figures(suite).get(name) for e in evaluations}
    return {
        label: figure_cell(kind, figure, figure is not None and figure.value == best)
        for label, figure in found.items()
    }


def _best(suite: str, name: str, evaluations: Sequence[Evaluation]) -> float | None:
    """The best of two or more values that are not all the same and can be compared."""
    better = kind_of(suite, name).better
    values = [f.value for e in evaluations if (f := e.figures(suite).get(name)) and f.n]
    if not better or len(values) < 2 or min(values) == max(values):
        return None
    if not one_similarity(suite, evaluations, name):
        return None
    return max(values) if better > 0 else min(values)


def _leads(suite: str, evaluation: Evaluation, evaluations: Sequence[Evaluation]) -> bool:
    """Whether a run has the best headline of a suite."""
    figure = headline_figure(evaluation, suite)
    best = _best(suite, headline(suite, evaluations), evaluations)
    return figure is not None and figure.value == best


def _span(evaluation: Evaluation, suite: str) -> Span | None:
    figure = headline_figure(evaluation, suite)
    return Span(figure.value, *figure.interval) if figure else None


def _figures(suite: str, evaluations: Sequence[Evaluation]) -> Table:
    names = _names(suite, evaluations)
    columns = [(kind_of(suite, name).heading, kind_of(suite, name).unit) for name in names]
    by_name = [_column(suite, name, evaluations) for name in names]
    main = headline(suite, evaluations)
    drawn = kind_of(suite, main).is_share and suite in _DRAWN
    axis = Axis(0, 1, kind_of(suite, main).heading) if drawn else None
    rows = []
    for e in evaluations:
        cells = [column[e.label] for column in by_name]
        span = _span(e, suite) if drawn else None
        rows.append(Row(e.label, cells, span=span, marked=_leads(suite, e, evaluations)))
    return Table("Run", columns, rows, axis=axis, notes=_notes(suite, evaluations))


def _costs(evaluations: Sequence[Evaluation]) -> Table:
    known = {name for e in evaluations for name in e.figures("efficiency")}
    costs = [cost for cost in COSTS if f"{cost}_with" in known]
    rows = [
        Row(e.label, [cost_cell(e.figures("efficiency"), cost) for cost in costs])
        for e in evaluations
    ]
    columns = [(COSTS[cost][0], "") for cost in costs]
    return Table("Run", columns, rows, notes=_notes("efficiency", evaluations))


def _notes(suite: str, evaluations: Sequence[Evaluation]) -> list[str]:
    """How many questions, and what the evaluation itself remarked."""
    notes = []
    counts = sorted({figure.n for e in evaluations if (figure := headline_figure(e, suite))})
    if suite in ASKED and counts:
        notes.append(f"{' or '.join(map(str, counts))} questions. 95 % intervals.")
    notes += _similarity_note([suite], evaluations)
    said: dict[str, dict[str, None]] = {}
    for e in evaluations:
        for name, value in (e.suites[suite].notes if suite in e.suites else {}).items():
            said.setdefault(name, {})[str(value)] = None
    return notes + [f"{_words(name)}: {' / '.join(values)}." for name, values in said.items()]


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _split_tables(suite: str, evaluations: Sequence[Evaluation]) -> list[Table]:
    """The suite's headline by policy, depth and outcome, where there are two or more of them."""
    main = headline(suite, evaluations)
    tables = []
    for by, corner in SPLITS:
        groups = [getattr(e.suites[suite], by) if suite in e.suites else {} for e in evaluations]
        names = list(dict.fromkeys(name for group in groups for name in group))
        if len(names) < 2 or not kind_of(suite, main).is_share:
            continue
        rows = [_split_row(name, main, groups) for name in names[:MOST_ROWS]]
        notes = [f"{len(names) - MOST_ROWS} more are left out."] if len(names) > MOST_ROWS else []
        columns = [(e.label, "") for e in evaluations]
        title = f"{kind_of(suite, main).heading} by {corner.lower()}, in %"
        tables.append(Table(corner, columns, rows, title, notes=notes, folded=True, heat=True))
    return tables


def _split_row(name: str, main: str, groups: Sequence[Mapping[str, Figures]]) -> Row:
    figures = [group.get(name, {}).get(main) for group in groups]
    cells = [share_cell(f.value) if f and f.n else Cell("\u2013") for f in figures]
    counts = {f.n for f in figures if f}
    return Row(name, cells, f"n {max(counts)}" if counts else "")


def share_cell(share: float) -> Cell:
    """A share as whole percent, in its colour."""
    return Cell(f"{100 * share:.0f}", share=share)
