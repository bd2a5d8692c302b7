"""What the benches are to show, and how a file of results is held against it.

A target looks at all cases that it is about and reports the worst of them. An arm that is missing
there, or ran out of memory, leaves it unmeasured: no number is made up for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Case = dict[str, Any]
Judged = tuple[str, str] | None  # what was measured, and the verdict
GPU = ("h200", "H200")
CPU = ("cpu", "CPU")


@dataclass(frozen=True)
class Target:
    """text: what is wanted. value: the number of one case, None where it was not measured.

    about: parts of the names of the cases that it is about. form: how the number is written.
    """

    bench: str
    text: str
    value: Callable[[Case], float | None]
    wanted: float
    form: str
    on: tuple[str, str] = GPU
    about: tuple[str, ...] = ()
    at_most: bool = False

    @property
    def folder(self) -> str:
        return self.on[0]

    @property
    def device(self) -> str:
        return self.on[1]

    def judge(self, cases: Iterable[Case]) -> Judged:
        """The worst of the cases that the target is about; None where one has no number."""
        chosen = [case for case in cases if all(part in case["case"] for part in self.about)]
        values = [self.value(case) for case in chosen]
        known = [value for value in values if value is not None]
        if not values or len(known) < len(values):
            return None
        worst = max(known) if self.at_most else min(known)
        met = worst <= self.wanted if self.at_most else worst >= self.wanted
        return self.form.format(worst), "met" if met else "**failed**"


def median_ratio(arm: str, key: str = "ratio") -> Callable[[Case], float | None]:
    """The arm's time over ours."""

    def value(case: Case) -> float | None:
        ratio: dict[str, float] = case[key].get(arm)
        return None if ratio is None else ratio["median"]

    return value


def of_ours(found: Callable[[Case, dict[str, Any]], float]) -> Callable[[Case], float | None]:
    """A number of the arm fastmpi, where it ran."""

    def value(case: Case) -> float | None:
        ours = case["arms"].get("fastmpi")
        return found(case, ours) if isinstance(ours, dict) else None

    return value


def gib_above_outputs(case: Case, ours: dict[str, Any]) -> float:
    return float(ours["peak_mb"] - ours["output_mb"]) / 1024


def error_ratio(peer: str) -> Callable[[Case], float | None]:
    """The peer's error over ours."""

    def value(case: Case) -> float | None:
        ours, theirs = (case["arms"].get(arm) for arm in ("fastmpi", peer))
        ran = isinstance(ours, dict) and isinstance(theirs, dict)
        return theirs["error"] / ours["error"] if ran else None

    return value


def share_of_causal_rate(case: Case) -> float | None:
    """Our rate over that of torch's causal attention on as many visible pairs."""
    ratio = case["ratio"].get("causal")
    if ratio is None:
        return None
    counts = case["counts"]
    return float(ratio["median"] * counts["flops"] / counts["causal_flops"])


def new_length_ms(case: Case) -> float | None:
    """The first call where only other lengths were seen before."""
    value: float | None = case["counts"].get("fastmpi_new_length_ms")
    return value


def peak_ratio(peer: str) -> Callable[[Case], float | None]:
    """Our peak memory over the peer's."""

    def value(case: Case) -> float | None:
        ours, theirs = (case["arms"].get(arm) for arm in ("fastmpi", peer))
        ran = isinstance(ours, dict) and isinstance(theirs, dict)
        if not ran or ours["peak_mb"] is None or theirs["peak_mb"] is None:
            return None
        return ours["peak_mb"] / theirs["peak_mb"]

    return value


def least_ratio(start: str, key: str = "ratio") -> Callable[[Case], float | None]:
    """The least of the times over ours of all arms whose names begin so; None if one has none."""

    def value(case: Case) -> float | None:
        names = [name for name in case["arms"] if name.startswith(start)]
        found = [median_ratio(name, key)(case) for name in names]
        known = [ratio for ratio in found if ratio is not None]
        return min(known) if known and len(known) == len(found) else None

    return value


def largest_peak_ratio(start: str) -> Callable[[Case], float | None]:
    """Our peak memory over that of the arm that holds least, of those whose names begin so."""

    def value(case: Case) -> float | None:
        found = [peak_ratio(name)(case) for name in case["arms"] if name.startswith(start)]
        known = [ratio for ratio in found if ratio is not None]
        return max(known) if known and len(known) == len(found) else None

    return value


def share_of_counted_ratio(case: Case) -> float | None:
    """The measured ratio to packed rows, in CPU time, over that of the counted FLOPs."""
    ratio = case["cpu_ratio"].get("packed")
    counts = case["counts"]
    if ratio is None or "packed_flops" not in counts:
        return None
    return float(ratio["median"] * counts["flops"] / counts["packed_flops"])


def best_of_five_ratio(arm: str) -> Callable[[Case], float | None]:
    """The arm's wall time over ours, of each the 20th percentile: about the best of five runs."""

    def value(case: Case) -> float | None:
        ours, theirs = (case["arms"].get(name) for name in ("fastmpi", arm))
        ran = isinstance(ours, dict) and isinstance(theirs, dict)
        return theirs["ms"]["p20"] / ours["ms"]["p20"] if ran else None

    return value


LARGE_HEAD = ("frozen T=16384",)
BACKWARD = ("forward+backward",)
RL_STEP, CPT_STEP = (" image=",), (" cpt ",)
TARGETS = (
    Target("policy_head", "frozen head, T = 16k: at least 1.3 times TRL's chunked op",
           median_ratio("trl"), 1.3, "{:.2f}", about=LARGE_HEAD),
    Target("policy_head", "frozen head, T = 16k: at least 3 times Liger's chunked loss",
           median_ratio("liger"), 3, "{:.2f}", about=LARGE_HEAD),
    Target("policy_head", "frozen head, T = 16k: at most 1 GiB above inputs and outputs",
           of_ours(gib_above_outputs), 1, "{:.2f} GiB", about=LARGE_HEAD, at_most=True),
    Target("policy_head", "frozen head, T = 16k: TRL's error of log-probs at least 20 times ours",
           error_ratio("trl"), 20, "{:.0f}", about=LARGE_HEAD),
    Target("policy_head", "frozen head, T = 16k: Liger's error of log-probs at least 20 times ours",
           error_ratio("liger"), 20, "{:.0f}", about=LARGE_HEAD),
    Target("token_logprob", "forward: at least 80 % of the vendor library's rate for the product",
           median_ratio("matmul"), 0.8, "{:.0%}", about=("forward",)),
    Target("forest_attention", "forward and backward: at least 1.15 times FlexAttention",
           median_ratio("flex"), 1.15, "{:.2f}", about=BACKWARD),
    Target("forest_attention",
           "forward and backward: at least 60 % of causal SDPA's rate on equal work",
           share_of_causal_rate, 0.6, "{:.0%}", about=BACKWARD),
    Target("forest_attention", "no compile on a new T: the first call ends within half a second",
           new_length_ms, 500, "{:.0f} ms", about=("7B forward+backward 1k + 16 x 256",),
           at_most=True),
    Target("group_advantage",
           "with the loss, 64 groups of 16: at least 20 times eager in device time",
           median_ratio("eager", "graph_ratio"), 20, "{:.1f}"),
    Target("update", "Qwen2.5-VL-3B shapes: at least 2.5 times packed rows",
           median_ratio("packed"), 2.5, "{:.2f}", about=("3B prompt",)),
    Target("update", "Qwen2.5-VL-3B shapes: at least 4 times TRL's update",
           median_ratio("trl"), 4, "{:.2f}", about=("3B prompt",)),
    Target("update", "Qwen2.5-VL-3B shapes: at most half of packed rows' peak above the state",
           peak_ratio("packed"), 0.5, "{:.2f}", about=("3B prompt",), at_most=True),
    Target("update", "a small model: at least 80 % of the ratio of counted FLOPs to packed rows",
           share_of_counted_ratio, 0.8, "{:.0%}", on=CPU),
    Target("images", "1024x768 to patches of bytes, 1 thread: at least 6 times the PIL processor",
           median_ratio("pil"), 6, "{:.1f}", on=CPU, about=("1024x768, 1 thread",)),
    Target("images", "1024x768, 1 thread: at least 1.3 times torch's own resizing of bytes",
           median_ratio("torch uint8"), 1.3, "{:.2f}", on=CPU, about=("1024x768, 1 thread",)),
    Target("images", "8 pictures: 2 threads at least 1.6 times one, the best of five runs of each",
           best_of_five_ratio("fastmpi 1 thread"), 1.6, "{:.2f}", on=CPU,
           about=("8 sizes, 2 threads",)),
    Target("positions", "64 rows of 4,096: at least 100 times get_rope_index",
           median_ratio("get_rope_index"), 100, "{:.0f}", on=CPU),
    Target("positions", "64 rows of 4,096: not slower than slice assignment in NumPy",
           median_ratio("numpy"), 1, "{:.2f}", on=CPU),
    Target("forest", "64 prompts of 16 responses: at most 10 ms",
           of_ours(lambda case, ours: ours["ms"]["median"]), 10, "{:.1f} ms", on=CPU,
           about=("layout, ",), at_most=True),
    Target("forest", "the whole layout: at least 2 times the best way in NumPy",
           median_ratio("numpy"), 2, "{:.2f}", on=CPU, about=("layout, ",)),
    Target("forest", "at least 30 times a tree of dictionaries in Python",
           median_ratio("python_trie"), 30, "{:.0f}", on=CPU, about=("layout, ",)),
    Target("bins", "8,192 items to 64: at least 100 times Karmarkar-Karp in Python",
           median_ratio("karmarkar"), 100, "{:.0f}", on=CPU),
    Target("step", "a small model, stage 3: at least 2 times TRL's step, with a policy and without",
           least_ratio("trl", "cpu_ratio"), 2, "{:.2f}", on=CPU, about=RL_STEP),
    Target("step", "a small model, stage 3: no more memory than TRL's step",
           largest_peak_ratio("trl"), 1, "{:.2f}", on=CPU, about=RL_STEP, at_most=True),
    Target("step", "a small model, stage 1 after a 4k policy: at least 4 times packed rows",
           median_ratio("packed", "cpu_ratio"), 4, "{:.2f}", on=CPU, about=CPT_STEP),
    Target("step", "a small model, stage 1: no more memory than packed rows",
           peak_ratio("packed"), 1, "{:.2f}", on=CPU, about=CPT_STEP, at_most=True),
    Target("step", "Qwen2.5-VL-3B shapes, stage 3: at least 3 times TRL's step, engines in process",
           least_ratio("trl"), 3, "{:.2f}", about=RL_STEP),
    Target("step", "Qwen2.5-VL-3B shapes, stage 3: no more memory than TRL's step",
           largest_peak_ratio("trl"), 1, "{:.2f}", about=RL_STEP, at_most=True),
    Target("step", "Qwen2.5-VL-3B shapes, stage 1 after a 4k policy: at least 4 times packed rows",
           median_ratio("packed"), 4, "{:.2f}", about=CPT_STEP),
    Target("step", "Qwen2.5-VL-3B shapes, stage 1: no more memory than packed rows",
           peak_ratio("packed"), 1, "{:.2f}", about=CPT_STEP, at_most=True),
)  # fmt: skip
