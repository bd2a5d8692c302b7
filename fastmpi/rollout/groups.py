"""PolicyRollout's mixed groups (arXiv 2510.09474, Eq. 3): for each row, responses of two arms.

Unusual: the policy-aware prompt is used to sample, and for nothing else. Every `Rollout` carries
the policy-free prompt, under which old, new and reference log-probs of both arms are scored. A
group has an explicit number and is never found again by prompt tokens, which are equal where
two rows ask the same of the same picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmpi.data.processor import Processor
from fastmpi.data.prompts import render
from fastmpi.data.samples import Prompt
from fastmpi.policies.policy import Policy
from fastmpi.rollout.engine import Engine, Response
from fastmpi.rollout.sampling import SamplingParams

ARMS = ("policy_free", "policy_aware")


@dataclass(frozen=True, eq=False)
class Rollout:
    """One response of a group.

    row: index into the rows given. group: its number. arm: one of `ARMS`, how it was sampled.
    prompt: the policy-free prompt, under which it is scored. response.logprobs: under the prompt
    it was sampled with; for the policy-aware arm a metric (`mpi/policy_gap_logp`), never a ratio.
    """

    row: int
    group: int
    arm: str
    prompt: Prompt
    response: Response


class PolicyRollout:
    """Samples groups of `num_generations` policy-free and `num_policy_generations` policy-aware
    responses; 0 of the latter is plain GRPO, which needs no policies.

    folder: where the rows' picture paths begin.
    """

    def __init__(
        self,
        processor: Processor,
        policies: Mapping[str, Policy],
        *,
        num_generations: int,
        num_policy_generations: int,
        folder: Path | None = None,
    ) -> None:
        if num_generations < 0 or num_policy_generations < 0:
            raise ValueError("num_generations and num_policy_generations must not be negative")
        if num_generations + num_policy_generations < 1:
            raise ValueError("a group needs at least one response")
        self.processor = processor
        self.policies = policies
        self.num_generations = num_generations
        self.num_policy_generations = num_policy_generations
        self.folder = folder

    def prompts(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Prompt]]:
        """The rows' prompts of each arm that samples, and the policy-free ones in any case.

        `ValueError` for a row without a policy among `policies`, naming both.
        """
        found = {ARMS[0]: [render(row, self.processor, folder=self.folder) for row in rows]}
        if self.num_policy_generations:
            found[ARMS[1]] = self._policy_aware(rows)
        return found

    def generate(
        self,
        prompts: Mapping[str, Sequence[Prompt]],
        engine: Engine,
        params: SamplingParams,
        *,
        first_group: int = 0,
    ) -> list[Rollout]:
        """One group for each row of `prompts`, numbered from `first_group`; a group's policy-free
        arm comes first.

        The group's number names its random streams, so a count that runs through training makes
        every response repeatable.
        """
        counts = dict(zip(ARMS, (self.num_generations, self.num_policy_generations), strict=True))
        num_rows = len(prompts[ARMS[0]])
        responses = engine.generate(
            [prompt for of_arm in prompts.values() for prompt in of_arm],
            [counts[name] for name, of_arm in prompts.items() for _ in of_arm],
            params,
            streams=[
                len(ARMS) * (first_group + row) + arm
                for arm in range(len(prompts))
                for row in range(num_rows)
            ],
        )
        return [
            Rollout(row, first_group + row, name, prompt, response)
            for row, prompt in enumerate(prompts[ARMS[0]])
            for arm, name in enumerate(prompts)
            for response in responses[arm * num_rows + row]
        ]

    def _policy_aware(self, rows: Sequence[Mapping[str, Any]]) -> list[Prompt]:
        return [render(row, self.processor, self._policy(row), folder=self.folder) for row in rows]

    def _policy(self, row: Mapping[str, Any]) -> Policy:
        if row["policy_id"] not in self.policies:
            raise ValueError(f"row {row.get('id')!r}: no policy {row['policy_id']!r} is known")
        return self.policies[row["policy_id"]]
