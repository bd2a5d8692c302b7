"""Reward functions, with TRL's signature, and their weighted sum.

A reward function is called once per batch with keyword arguments,
``f(prompts, completions, completion_ids, **columns, trainer_state, log_extra, log_metric)``, and
returns one number per completion, or None where it does not apply. It may be ``async``. ``columns``
are the columns of the data set, one value per completion, and fastmpi's ``arm`` and ``policy_id``.

Unusual: completions are what a model wrote, so they are data: never evaluated, and every function
here is linear in their length whatever they hold. `tool_calls` reads and scores calls of tools.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from fastmpi.tool_calls.call import BOX, MAX_LENGTH, boxed_object, last_box, parse_call, read_call
from fastmpi.tool_calls.score import score_calls

RewardFunction = Callable[..., Any]

BUILT_IN = ("exact_answer", "think_format", "tool_call")  # what a recipe may name as it stands
_BRACE = re.compile("[{}]")


def boxed_answer(text: str) -> str | None:
    """The inside of the last ``\\boxed{...}``, braces balanced; None if it never closes.

    Where a JSON object is all that the box holds, the braces in its strings do not count. A box of
    more than `MAX_LENGTH` characters counts as one that never closes.
    """
    start = last_box(text)
    if start < 0:
        if BOX not in text:
            return None
        start = text.rindex(BOX) + len(BOX)  # with one backslash too many
    if (span := boxed_object(text, start)) is not None:
        return text[start : text.index("}", span[1])]
    depth = 1
    for brace in _BRACE.finditer(text, start, start + MAX_LENGTH):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[start : brace.start()]
    return None


def exact_answer(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the last ``\\boxed{...}`` holds exactly ``answer`` (white space stripped); else 0."""
    return [
        float(_matches(boxed_answer(completion), gold))
        for completion, gold in zip(completions, answer, strict=True)
    ]


def _matches(boxed: str | None, gold: str) -> bool:
    return boxed is not None and boxed.strip() == gold.strip()


def tool_call(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float | None]:
    """Half for the right tool and half for its arguments, which earn partial credit.

    The call is read as `fastmpi.tool_calls.call.parse_call` says and scored as `score.py` there
    does; 0 for no call. None, not applicable, where ``answer`` is no call.
    """
    golds = [read_call(gold) for gold in answer]
    pairs = [
        (parse_call(completion), gold)
        for completion, gold in zip(completions, golds, strict=True)
        if gold is not None
    ]
    scores = iter(score_calls([call for call, _ in pairs], [gold for _, gold in pairs]))
    return [None if gold is None else next(scores).overall for gold in golds]


def think_format(completions: Sequence[str], **_: Any) -> list[float]:
    """1 where one ``<think>...</think>`` opens the text and a ``\\boxed{...}`` follows; else 0."""
    return [float(_is_thinking(completion)) for completion in completions]


def _is_thinking(text: str) -> bool:
    text = text.strip()
    if text.count("<think>") != 1 or text.count("</think>") != 1 or not text.startswith("<think>"):
        return False
    return boxed_answer(text[text.index("</think>") :]) is not None


def load_reward(path: str) -> RewardFunction:
    """The function at ``"package.module:name"`` or ``"package.module.name"``.

    Importing runs the module's code, so a recipe may name one only under ``trust_recipe_code``.
    """
    module_name, _, name = path.rpartition(":" if ":" in path else ".")
    if not module_name or not name:
        raise ValueError(
            f'reward function {path!r} must read "package.module:name" or "package.module.name"'
        )
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward function {path!r} cannot be imported: {error}") from error
    if not callable(function):
        raise ValueError(f"reward function {path!r} is a {type(function).__name__}, not callable")
    loaded: RewardFunction = function
    return loaded


def reward_name(function: RewardFunction) -> str:
    """The name of a reward function in metrics and messages."""
    return getattr(function, "__name__", type(function).__name__)


@dataclass(frozen=True)
class Scored:
    """Rewards of S completions by F functions.

    rewards: (S,) float64, the weighted sum over the functions that apply.
    parts: name -> (S,) float64, NaN where the function does not apply.
    """

    rewards: np.ndarray
    parts: dict[str, np.ndarray]


def score(
    functions: Sequence[RewardFunction],
    weights: Sequence[float] | None,
    prompts: Sequence[Any],
    completions: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
    **context: Any,
) -> Scored:
    """Call every function once; a completion's reward is the weighted sum of those that apply.

    ``weights`` None means 1 each. ``columns`` and ``context`` (``trainer_state``, ``log_extra``,
    ``log_metric``) reach the functions as keyword arguments. Raises ``ValueError`` naming the
    function and the completion for a wrong number of rewards, one that is NaN, infinite or no
    number, and for a completion that no function applies to.
    """
    names = _distinct_names(functions)
    weights = _checked_weights(weights, names)
    for name, column in {"prompts": prompts, "completion_ids": completion_ids, **columns}.items():
        if len(column) != len(completions):
            raise ValueError(
                f"column {name!r} has {len(column)} values for {len(completions)} completions"
            )
    arguments = {
        "prompts": prompts,
        "completions": completions,
        "completion_ids": completion_ids,
        **columns,
        **context,
    }
    returned = _call_all(functions, arguments)
    parts = {
        name: _as_array(name, values, len(completions))
        for name, values in zip(names, returned, strict=True)
    }
    return Scored(_weighted_sum(list(parts.values()), weights), parts)


def check_rewards(
    functions: Sequence[RewardFunction], weights: Sequence[float] | None
) -> list[str]:
    """The functions' names; ``ValueError`` for none, for two of one name, and for wrong weights."""
    names = _distinct_names(functions)
    _checked_weights(weights, names)
    return names


def _distinct_names(functions: Sequence[RewardFunction]) -> list[str]:
    if not functions:
        raise ValueError("give at least one reward function")
    names = [reward_name(function) for function in functions]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"two reward functions are called {repeated[0]!r}; metrics could not tell them apart"
        )
    return names


def _checked_weights(weights: Sequence[float] | None, names: list[str]) -> list[float]:
    weights = [1.0] * len(names) if weights is None else list(weights)
    if len(weights) != len(names):
        raise ValueError(
            f"reward_weights has {len(weights)} values for {len(names)} reward functions"
        )
    for name, weight in zip(names, weights, strict=True):
        if not math.isfinite(weight):
            raise ValueError(f"the weight of reward function {name!r} is {weight}")
    return weights


def _call_all(functions: Sequence[RewardFunction], arguments: dict[str, Any]) -> list[Any]:
    """Results in order; what comes back awaitable is awaited, all of it together."""
    returned = [function(**arguments) for function in functions]
    waiting = [index for index, value in enumerate(returned) if inspect.isawaitable(value)]
    if not waiting:
        return returned

    async def gather() -> list[Any]:
        return await asyncio.gather(*(returned[index] for index in waiting))

    with ThreadPoolExecutor(
        1
    ) as thread:  # a thread of its own: a notebook already runs a loop in this one
        for index, value in zip(
            waiting, thread.submit(lambda: asyncio.run(gather())).result(), strict=True
        ):
            returned[index] = value
    return returned


def _as_array(name: str, values: Any, length: int) -> np.ndarray:
    try:
        values = list(values)
    except TypeError:
        raise ValueError(
            f"reward function {name!r} returned a {type(values).__name__}, not a list"
        ) from None
    if len(values) != length:
        raise ValueError(
            f"reward function {name!r} returned {len(values)} rewards for {length} completions"
        )
    return np.array(
        [_as_number(name, index, value) for index, value in enumerate(values)], dtype=np.float64
    )


def _as_number(name: str, index: int, value: Any) -> float:
    if value is None:
        return math.nan
    value = value.item() if hasattr(value, "item") else value  # numpy and torch scalars
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"reward function {name!r} returned {value!r:.80} for completion {index}")
    return float(value)


def _weighted_sum(parts: list[np.ndarray], weights: list[float]) -> np.ndarray:
    table = np.stack(parts, 1)  # (S, F)
    nothing = np.isnan(table).all(1)
    if nothing.any():
        raise ValueError(f"no reward function applies to completion {int(nothing.argmax())}")
    return np.nansum(table * np.array(weights), axis=1)
