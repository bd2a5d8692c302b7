"""The benches by name, and what `fastmpi bench` is asked; the measuring is `fastmpi.benchmarks`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fastmpi.settings import Settings, did_you_mean

BENCHES = {
    "policy_head": "log-probs, policy-gradient loss and its gradient from hidden states",
    "token_logprob": "log-probs alone, and the loss of supervised stages",
    "forest_attention": "attention over a prefix forest, forward and backward",
    "decode_attention": "one new token each of responses below shared prompts",
    "group_advantage": "group-relative advantages with the loss on log-probs",
    "images": "decoded pictures to patches, on the CPU",
    "positions": "3-D positions of a batch, on the CPU",
    "forest": "samples to a prefix forest and its layout, on the CPU",
    "bins": "costs to bins, as evenly as possible, on the CPU",
    "update": "a model's whole update, with and without merged prefixes",
    "rollout": "responses of a model, with a long policy and without",
    "step": "whole optimiser steps of stage 3 and stage 1: rollout, scoring and update",
}

COLUMNS = """Columns: the median of the runs in ms (on CUDA between events, on the CPU by the wall
clock); their middle three fifths; the arm's time over fastmpi's, paired round by round, with its
95 % bootstrap interval; the most memory held above what was held before; the error against float64;
the least time of the counted work at the device's measured limits, over the arm's time (CUDA). Some
benches have a second table, of the parts of a run."""


@dataclass(kw_only=True)
class BenchInputs(Settings):
    """What is measured, and where it goes."""

    name: str

    json: str | None = None
    """File for the results; it is complete after each case."""

    runs: int | None = None
    """Timed runs of each arm; by default 30 on CUDA, 10 on the CPU, fewer of whole steps."""

    case: str | None = None
    """Only the cases whose name holds this text; those that the file has of the others stay."""

    small: bool = False
    """Shapes that end in seconds, on CUDA too; the CPU takes them always."""

    def __post_init__(self) -> None:
        if self.name not in BENCHES:
            raise ValueError(f"unknown bench {self.name!r}; known: {known_benches()}")
        if self.runs is not None and self.runs < 1:
            raise ValueError(f"runs must be at least 1, not {self.runs}")
        if self.json is not None and not Path(self.json).absolute().parent.is_dir():
            raise ValueError(f"{self.json}: there is no such folder")
        if self.json is not None and Path(self.json).is_dir():
            raise ValueError(f"{self.json} is a folder, not a file")


def known_benches() -> str:
    """The names, for a sentence."""
    return ", ".join(BENCHES)


def check_case(text: str, names: Iterable[str]) -> None:
    """`ValueError` unless `text` is part of the name of some case."""
    names = list(names)
    if not any(text in name for name in names):
        near = did_you_mean(text, names)
        raise ValueError(f"no case has {text!r} in its name{near}; cases: {'; '.join(names)}")
