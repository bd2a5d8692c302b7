"""Learning curves of trained stages, from their `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence

from fastmpi.report.content import Chart, ChartGroup, Curve
from fastmpi.report.figures import number
from fastmpi.report.runs import Run, Training

ARMS = {
    "policy_free": "Reward of responses without the policy in the prompt",
    "policy_aware": "Reward of responses with the policy in the prompt",
}
MOST_POINTS = 400  # of a curve; longer ones are thinned
MOST_CHARTS = 18  # of losses
Named = Sequence[tuple[str, Training]]


def curve_groups(runs: Sequence[Run]) -> list[ChartGroup]:
    """The reward of each arm, all stages of RL in one chart; then the loss of every other stage."""
    several = len(runs) > 1
    named = [
        (f"{run.folder.name}: {name}" if several else name, training)
        for run in runs
        for name, training in _named(run)
    ]
    groups = [_arms([(n, t) for n, t in named if t.kind == "rl"])]
    groups.append(_losses([(n, t) for n, t in named if t.kind != "rl"]))
    return [group for group in groups if group.charts]


def _named(run: Run) -> list[tuple[str, Training]]:
    """A stage that a method ends with has its name, any other is called by its chain."""
    methods = {e.trainings[-1].chain: e.label for e in run.evaluations if e.trainings}
    if len(run.evaluations) == 1:
        methods = {}  # its name says nothing that the page's title does not
    chains = [(" \u2192 ".join(training.chain), training) for training in run.trainings]
    return [(methods.get(training.chain, chain), training) for chain, training in chains]


def _arms(named: Named) -> ChartGroup:
    charts = []
    for arm, title in ARMS.items():
        curves = [
            Curve(name, points, colour)
            for colour, (name, training) in enumerate(named)
            if (points := _points(training, f"reward/{arm}"))
        ]
        if curves:
            charts.append(Chart(title, "mean reward", curves, y_range=(0.0, 1.0)))
    note = "Stages that sample no responses with the policy are in the first chart only."
    return ChartGroup("Reinforcement learning, by arm", charts, note if len(charts) > 1 else "")


def _losses(named: Named) -> ChartGroup:
    charts = []
    for name, training in named[:MOST_CHARTS]:
        if points := _points(training, "loss"):
            x_label = f"step, {number(training.cpu_seconds)} CPU-seconds in all"
            charts.append(Chart(name, "nats per token", [Curve("", points)], x_label))
    more = len(named) - MOST_CHARTS
    return ChartGroup("Loss of the other stages", charts, f"{more} more." if more > 0 else "")


def _points(training: Training, metric: str) -> list[tuple[float, float]]:
    """Every k-th point and the last one."""
    points = [(line["step"], line[metric]) for line in training.lines if metric in line]
    kept = points[:: -(-len(points) // MOST_POINTS) or 1]
    return kept if kept[-1:] == points[-1:] else [*kept, points[-1]]
