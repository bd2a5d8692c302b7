"""The suites of an evaluation: what each makes of a model's answers.

task         accuracy without the policy; tool, argument and overall of tool calls
in-context   the same with the policy in the prompt, and the ratio of task to it
override     the same under other rules in the prompt, and how often the old answer is given
referral     how truly the reasoning of task quotes the rules
branching    which conditions the reasoning of task cites, against the right reasoning
forgetting   tasks that have nothing to do with the policy
efficiency   tokens, milliseconds and cache of a prompt with and without the policy
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fastmpi.evaluation.branching import branching
from fastmpi.evaluation.efficiency import efficiency, kv_bytes_a_token, prefill_figures
from fastmpi.evaluation.evaluation import Evaluation
from fastmpi.evaluation.folder import SUITES, SuiteSummary, write_jsonl
from fastmpi.evaluation.forgetting import forgetting
from fastmpi.evaluation.harness_tasks import run_harness
from fastmpi.evaluation.items import figures, score
from fastmpi.evaluation.judge import judge
from fastmpi.evaluation.metrics import Figure, Item, paired, ratio_of_scores, split
from fastmpi.evaluation.prefill import interleaved_prefill_ms
from fastmpi.evaluation.referral import referral
from fastmpi.policies.citations import condition_ids, gold_citations
from fastmpi.policies.policy import Policy
from fastmpi.tool_calls.similarity import similarity_name

Measure = Callable[[Sequence[Item], Mapping[str, Policy]], Mapping[str, Figure]]
Suite = Callable[[Evaluation], SuiteSummary]
_RATIO = "internalisation"
_OPTIONAL = ("referral", "forgetting", "efficiency")  # the flags say which figures are made


def run_suites(evaluation: Evaluation) -> dict[str, SuiteSummary]:
    """Asks what has not been asked, and writes the summary; suites that are there already stay."""
    chosen = evaluation.inputs.check()
    _check_rules(evaluation, chosen)
    known = evaluation.folder.summary() if evaluation.folder.has_summary else {}
    made = {name: _SUITES[name](evaluation) for name in chosen}
    made = {name: _added(name, suite, known.get(name)) for name, suite in made.items()}
    suites = {name: suite for name in SUITES if (suite := made.get(name) or known.get(name))}
    if "task" in made and "in-context" in suites and "in-context" not in made:
        suites["in-context"] = _late_ratio(evaluation, made["task"], suites["in-context"])
    evaluation.folder.write_summary(suites)
    return made


def _added(name: str, made: SuiteSummary, known: SuiteSummary | None) -> SuiteSummary:
    """The suite with what an earlier call found with other options: a judge's score, other
    benchmarks, times. A folder holds one model and one set of answers, so they belong together."""
    if known is None or name not in _OPTIONAL or set(known.figures) <= set(made.figures):
        return made
    figures, notes = {**known.figures, **made.figures}, {**known.notes, **made.notes}
    return replace(made, figures=figures, notes=notes)


def _check_rules(evaluation: Evaluation, chosen: Sequence[str]) -> None:
    """Before anything is asked: referral and branching need rules that they can read."""
    if not {"referral", "branching"} & set(chosen):
        return
    policies = evaluation.policies()
    evaluation.asked("policies").check(rows := evaluation.rows("test"))
    for policy in policies.values():
        condition_ids(policy)
    for row in rows:
        gold_citations(policies[row["policy_id"]], row)


def _task(evaluation: Evaluation) -> SuiteSummary:
    policies = evaluation.policies() if "policies" in evaluation.files else {}
    return _summary(evaluation.items("task"), policies)


def _in_context(evaluation: Evaluation) -> SuiteSummary:
    items = evaluation.items("in-context")
    summary = _summary(items, evaluation.policies())
    if not evaluation.is_asked("task"):
        return _noted(summary, "unknown: the suite task was not asked")
    return _with_ratio(summary, evaluation.items("task"), items)


def _late_ratio(evaluation: Evaluation, task: SuiteSummary, shown: SuiteSummary) -> SuiteSummary:
    """The in-context summary of an earlier call, now that task has been asked too."""
    if task.notes.get("similarity") != shown.notes.get("similarity"):
        return _noted(shown, "unknown: texts were compared in another way; ask in-context again")
    known = evaluation.folder.items("in-context")
    return _with_ratio(shown, evaluation.items("task"), known)


def _with_ratio(summary: SuiteSummary, task: Sequence[Item], shown: Sequence[Item]) -> SuiteSummary:
    """The summary of in-context with the score of task / in-context, or a note without one."""
    pairs = paired(task, shown, score)
    if not any(pairs[1]):
        return _noted(summary, "undefined: nothing is right with the policy")
    notes = {name: note for name, note in summary.notes.items() if name != _RATIO}
    ratio = ratio_of_scores(*pairs)
    return replace(summary, figures={**summary.figures, _RATIO: ratio}, notes=notes)


def _noted(summary: SuiteSummary, why: str) -> SuiteSummary:
    """Without internalisation, and why."""
    known = {name: figure for name, figure in summary.figures.items() if name != _RATIO}
    return replace(summary, figures=known, notes={**summary.notes, _RATIO: why})


def _override(evaluation: Evaluation) -> SuiteSummary:
    return _summary(evaluation.items("override"), evaluation.policies("override_policies"))


def _referral(evaluation: Evaluation) -> SuiteSummary:
    exact = _of_reasoning(referral, evaluation)
    if evaluation.inputs.judge() is None:
        return exact
    folder, items = evaluation.folder.path / "judge", evaluation.items("task")
    cache = folder / "replies.jsonl"
    judged = judge(items, evaluation.policies(), evaluation.inputs, cache=cache)
    write_jsonl(folder / "verdicts.jsonl", judged.verdicts)
    notes = {"judge's model": str(evaluation.inputs.judge_model), **judged.notes}
    return replace(exact, figures={**exact.figures, "judge_0_to_10": judged.figure}, notes=notes)


def _branching(evaluation: Evaluation) -> SuiteSummary:
    return _of_reasoning(branching, evaluation)


def _of_reasoning(measure: Measure, evaluation: Evaluation) -> SuiteSummary:
    """What `measure` finds in the answers of the task, of all and of each policy."""
    items, policies = evaluation.items("task"), evaluation.policies()
    parts = split(items, lambda item: item["policy_id"])
    by_policy = {name: measure(part, policies) for name, part in parts.items()}
    return SuiteSummary(measure(items, policies), by_policy)


def _forgetting(evaluation: Evaluation) -> SuiteSummary:
    """The public benchmarks that are named, else the tiny base's own tasks."""
    if not evaluation.inputs.harness_tasks():
        return SuiteSummary(forgetting(evaluation.items("forgetting")))
    return SuiteSummary(
        run_harness(
            evaluation.path,
            evaluation.inputs,
            evaluation.folder.path / "harness",
            trust_remote_code=evaluation.trust_remote_code,
        )
    )


def _efficiency(evaluation: Evaluation) -> SuiteSummary:
    longer, shorter = (_prompt_tokens(evaluation, arm) for arm in ("in-context", "task"))
    found = efficiency(longer, shorter, kv_bytes_a_token(evaluation.model))
    timed = evaluation.rows("test")[: evaluation.inputs.num_timed_prompts]
    if timed:
        models = {"": evaluation.model}
        times = interleaved_prefill_ms(models, timed, evaluation.policies())
        found |= prefill_figures(times[""])
    return SuiteSummary(found)


def _prompt_tokens(evaluation: Evaluation, arm: str) -> list[int]:
    """Of each row, from the answers where the arm has been asked."""
    if evaluation.is_asked(arm):
        return [item["prompt_tokens"] for item in evaluation.items(arm)]
    asked = evaluation.asked("policies" if arm == "in-context" else None)
    asked.check(rows := evaluation.rows("test"))
    return [len(asked.prompt(row).ids) for row in rows]


def _summary(items: Sequence[Item], policies: Mapping[str, Policy]) -> SuiteSummary:
    """The figures of all items and of each policy, depth and outcome."""
    trees = {name: policy.metadata.get("tree", {}) for name, policy in policies.items()}
    columns: dict[str, Callable[[Item], object]] = {
        "by_policy": lambda item: item["policy_id"],
        "by_depth": lambda item: trees.get(item["policy_id"], {}).get("depth"),
        "by_outcome": lambda item: item.get("tool", item["answer"]),
    }
    parts = {
        name: {key: figures(part) for key, part in split(items, column).items()}
        for name, column in columns.items()
    }
    called = any("scores" in item for item in items)
    return SuiteSummary(
        figures(items), **parts, notes={"similarity": similarity_name()} if called else {}
    )


_SUITES: Mapping[str, Suite] = {
    "task": _task,
    "in-context": _in_context,
    "override": _override,
    "referral": _referral,
    "branching": _branching,
    "forgetting": _forgetting,
    "efficiency": _efficiency,
}
