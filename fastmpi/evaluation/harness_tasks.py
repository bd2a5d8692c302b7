"""What a large model has lost, by public benchmarks: lmms-eval and lm-evaluation-harness.

Both are run by their own command line, in processes of their own, where they are installed; they
bring the tasks, the data and the scoring. Here are the commands, and the reading of what they
write: {"results": {task: {"<metric>,<filter>": value, "<metric>_stderr,<filter>": error}}}.
lmms-eval comes first: it has MMLU-Pro and MMMU-Pro and loads the vision-language models, which
lm-eval's `hf`, made for plain language models, refuses (its `vllm` takes some).
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmpi.evaluation.metrics import Z_95, Figure, wilson_interval
from fastmpi.settings import Settings

# Module of each harness, which `python -m` runs; pip knows it by the key.
HARNESSES = {"lmms-eval": "lmms_eval", "lm-eval": "lm_eval"}
# lmms-eval's name for each family that differs from transformers'.
_LMMS_MODELS = {"llava": "llava_hf"}
_SHOWN = 2000  # characters of a failed command's output


@dataclass(kw_only=True)
class HarnessSettings(Settings):
    """Public benchmarks of the forgetting suite."""

    forgetting_tasks: list[str] | None = None
    """Public benchmarks, such as mmlu_pro and mmmu_pro; "lm-eval:" before a name asks that harness
    instead of lmms-eval. None: the tiny base's own tasks."""

    forgetting_model: str | None = None
    """What the harness calls the kind of model, "vllm" for example; None: the family in
    lmms-eval, hf in lm-eval."""

    forgetting_limit: int | None = None
    """Questions of each task, the first ones; None: all."""

    forgetting_batch_size: int = 1
    """Questions that the harness asks together."""

    def harness_tasks(self) -> list[tuple[str, str]]:
        """(harness, task) of each; `ValueError` for a wrong name and a harness not installed."""
        for name in ("forgetting_limit", "forgetting_batch_size"):
            if (getattr(self, name) or 1) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        names = [name for words in self.forgetting_tasks or () for name in words.split(",")]
        tasks = [_harness_of(name) for name in names]
        for harness in dict.fromkeys(harness for harness, _ in tasks):
            _check_installed(harness)
        return tasks


def run_harness(
    model: str | Path,
    settings: HarnessSettings,
    folder: str | Path,
    *,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, Figure]:
    """The main metric of each task, {"mmlu_pro": ...}, from the harness that has it.

    model: a folder or a hub name. folder: what the harnesses write goes below it, and what is
    there of a task is read and not run again. The interval is +- 1.96 of the harness's standard
    errors, or Wilson's where it gives none. `ValueError` names a harness that is not installed or
    fails, and a result that cannot be read or is no share.
    """
    figures = {}
    for harness, task in settings.harness_tasks():
        # The number is part of the name: what was asked less of is another result.
        limit = "" if settings.forgetting_limit is None else f"-{settings.forgetting_limit}"
        output = Path(folder).absolute() / harness / f"{task}{limit}"
        if not _result_files(output):
            command = harness_command(harness, task, str(model), output, settings)
            if trust_remote_code and harness == "lm-eval":
                command.append("--trust_remote_code")
            say(" ".join(command))
            _call(command)
        figures[task] = read_result(output, task)
    return figures


def harness_command(
    harness: str, task: str, model: str, output: Path, settings: HarnessSettings
) -> list[str]:
    """The command line of one task."""
    if "," in model:
        raise ValueError(f"model {model!r}: the harness cannot take a path with a comma")
    model = str(Path(model).absolute()) if Path(model).exists() else model
    kind = "hf" if harness == "lm-eval" else None
    options = {
        "model": settings.forgetting_model or kind or _lmms_model(model),
        "model_args": f"pretrained={model}",
        "tasks": task,
        "batch_size": str(settings.forgetting_batch_size),
        "output_path": str(output),
    }
    if settings.forgetting_limit is not None:
        options["limit"] = str(settings.forgetting_limit)
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", HARNESSES[harness], *words]


def read_result(output: Path, task: str) -> Figure:
    """The task's figure from the newest file of results below `output`."""
    files = _result_files(output)
    if not files:
        raise ValueError(f"{output}: the harness has left no results")
    path = files[-1]
    try:
        return _figure(json.loads(path.read_text(encoding="utf-8")), task)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        raise ValueError(f"{path}: no result of {task} ({error})") from None


def _harness_of(task: str) -> tuple[str, str]:
    prefix, _, name = task.strip().rpartition(":")
    harness = prefix or "lmms-eval"
    if harness not in HARNESSES:
        raise ValueError(f"forgetting task {task!r}: {harness!r} is none of {', '.join(HARNESSES)}")
    # It becomes a word of a command line and the name of a folder.
    if not re.fullmatch(r"[A-Za-z0-9]\w*(-\w+)*", name, re.ASCII):
        raise ValueError(f"forgetting task {task!r}: letters, digits, _ and - only")
    return harness, name


def _check_installed(harness: str) -> None:
    if importlib.util.find_spec(HARNESSES[harness]) is None:
        raise ValueError(f"{harness} is not installed: pip install {harness}")


def _lmms_model(model: str) -> str:
    path = Path(model) / "config.json"
    try:
        kind = str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{path} names no model_type: give forgetting_model") from None
    return _LMMS_MODELS.get(kind, kind)


def _call(command: Sequence[str]) -> None:
    # Run somewhere else than here: a folder called lm_eval would come before the package.
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace"
        )
    if result.returncode:
        end = " ".join((result.stderr or result.stdout)[-_SHOWN:].split())
        raise ValueError(f"{' '.join(command)} failed with {result.returncode}: {end}")


def _result_files(output: Path) -> list[Path]:
    """results_<date>.json of lm-eval, <date>_results.json of lmms-eval; the newest last."""
    return sorted([*output.glob("*/results_*.json"), *output.glob("*/*_results.json")])


def _figure(data: Mapping[str, Any], task: str) -> Figure:
    """Of the task, or, where a group has no figure of its own, of its tasks weighted by size."""
    own = _metric(data["results"].get(task, {}))
    parts = data.get("group_subtasks", {}).get(task, [])
    n = sum(int(data["n-samples"][name]["effective"]) for name in parts or [task])
    if own is not None:
        return _share(own[0], own[1], n)
    found = [
        (_metric(data["results"][name]), data["n-samples"][name]["effective"]) for name in parts
    ]
    if not found or None in [metric for metric, _ in found]:
        raise ValueError("no metric")
    return _share(sum(metric[0] * count for metric, count in found if metric) / n, None, n)


def _metric(metrics: Mapping[str, Any]) -> tuple[float, float | None] | None:
    """The first metric that is listed, which is the task's main one, and its standard error.

    Either harness writes "N/A" or " " where it has no number.
    """
    numbers = {
        key: float(value) for key, value in metrics.items() if isinstance(value, (int, float))
    }
    for key, value in numbers.items():
        name, comma, kind = key.partition(",")
        if comma and "_stderr" not in name:
            return value, numbers.get(f"{name}_stderr,{kind}")
    return None


def _share(value: float, error: float | None, n: int) -> Figure:
    """+- 1.96 standard errors; where the harness has none, Wilson's interval."""
    if not 0 <= value <= 1:
        raise ValueError(f"{value} is no share")
    if error is None or math.isnan(error):
        return Figure(value, *wilson_interval(round(value * n), n), n)
    return Figure(value, max(0.0, value - Z_95 * error), min(1.0, value + Z_95 * error), n)
