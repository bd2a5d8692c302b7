"""Figures of the paper (arXiv 2510.09474) for Qwen2.5-VL-7B, and how far another order agrees.

In percent, but for referral, which a judge scores from 0 to 10. T and M are ClevrPolicy with six
layers, GTA is GTAPolicy's overall score. None: not reported. Sources: tables 2 and 8 (task; the GTA
column is from a secondary source), 3 (override, referral) and 4 (in-context).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

KINDS = ("t", "m", "gta")
Figures = Mapping[str, tuple[float | None, float | None, float | None]]

# Of the untrained model the task is done with the policy in its prompt.
TASK: Figures = {
    "In-context": (13.15, 5.65, 21.51),
    "Direct SFT": (15.15, 14.55, 40.75),
    "CoT SFT": (17.80, 14.30, 54.50),
    "CoT SFT + GRPO": (47.05, 64.50, None),
    "CoT SFT + DAPO": (67.60, 74.40, 72.43),
    "TriMPI without PolicyRollout, GRPO": (55.90, 80.80, 79.33),
    "TriMPI without PolicyRollout, DAPO": (73.35, 83.30, None),
    "TriMPI, GRPO": (65.85, 84.70, 81.06),
    "TriMPI, DAPO": (77.80, 85.00, 76.01),
}
IN_CONTEXT: Figures = {
    "In-context": (13.15, 5.65, 21.51),
    "CoT SFT": (10.70, 15.80, 42.26),
    "CoT SFT + GRPO": (19.00, 20.90, 57.01),
    "TriMPI, GRPO": (35.15, 69.90, 66.81),
}
OVERRIDE: Figures = {
    "In-context": (13.15, 6.55, 19.43),
    "Direct SFT": (5.40, 5.30, 36.99),
    "CoT SFT": (16.40, 25.20, 38.71),
    "CoT SFT + GRPO": (30.80, 34.00, 46.27),
    "CoT SFT + DAPO": (41.60, 37.60, 53.31),
    "TriMPI, GRPO": (48.70, 82.70, 63.00),
    "TriMPI, DAPO": (59.40, 85.15, 58.94),
}
REFERRAL: Figures = {
    "CoT SFT": (3.54, 3.44, 7.68),
    "CoT SFT + GRPO": (5.04, 6.74, 8.93),
    "CoT SFT + DAPO": (5.70, 6.74, 8.73),
    "TriMPI, GRPO": (5.60, 8.72, 9.45),
    "TriMPI, DAPO": (6.26, 8.35, 9.13),
}
SUITES: Mapping[str, Figures] = {
    "task": TASK, "in-context": IN_CONTEXT, "override": OVERRIDE, "referral": REFERRAL,
}  # fmt: skip


def paper_name(method: str) -> str | None:
    """The paper's name of one of our methods; None for those that it does not have."""
    name = re.sub(r"\s+", " ", method.lower())
    if "compute-matched" in name:
        return None
    for start in ("In-context", "Direct SFT"):
        if name.startswith(start.lower()):
            return start
    update = "DAPO" if "dapo" in name else "GRPO"
    if name.startswith("cot sft"):
        if "policyrollout" in name:
            return None
        return f"CoT SFT + {update}" if update.lower() in name else "CoT SFT"
    if name.startswith("trimpi"):
        without = " without PolicyRollout" if "without policyrollout" in name else ""
        return f"TriMPI{without}, {update}"
    return None


@dataclass(frozen=True)
class Agreement:
    """Of all pairs of methods, how many are in the paper's order, and which are not.

    `others` are (ahead here, behind here), `apart` says whether no seed disagrees on that pair.
    """

    agreeing: int
    pairs: int
    others: Sequence[tuple[str, str, bool]]

    @property
    def tau(self) -> float:
        """Kendall's tau: 1 for the same order, -1 for the reverse. Pairs that are equal in either
        are left out."""
        return (2 * self.agreeing - self.pairs) / self.pairs


def agreement(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, float]) -> Agreement | None:
    """Compares the order of our means over the seeds with the paper's; None below two methods."""
    shared = [name for name in ours if name in theirs]
    agreeing, others = 0, []
    for one, other in combinations(shared, 2):
        here = sum(ours[one]) / len(ours[one]) - sum(ours[other]) / len(ours[other])
        there = theirs[one] - theirs[other]
        if here * there > 0:
            agreeing += 1
        elif here * there < 0:
            ahead, behind = (one, other) if here > 0 else (other, one)
            others.append((ahead, behind, min(ours[ahead]) > max(ours[behind])))
    pairs = agreeing + len(others)
    return Agreement(agreeing, pairs, others) if pairs else None
