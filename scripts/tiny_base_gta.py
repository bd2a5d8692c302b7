"""Training rows of the tiny base about the cut-down GTAPolicy (`fastmpi.policies.gta.tiny`).

tests: profiles, and tests of them with yes or no; no policy, no picture.
recite: a policy, and some of its rules by their ids, both conditions and versions.
routes: a policy, then profiles and what they ask for; for each the reasoning to a version.
calls: the task itself, in the exact prompts that the package renders at run time.

Unusual: what nobody could predict (profiles, and which test comes next) carries no loss. A tenth of
all policies never occurs, see `gta_tiny.is_held_out`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiny_base_tasks import Piece, Tasks

from fastmpi.data.prompts import render, response_text
from fastmpi.data.samples import Prompt, Sample
from fastmpi.policies.gta import tiny as gta_tiny
from fastmpi.policies.gta.policy import GTAPolicy
from fastmpi.policies.gta.rules import Choice, Rule
from fastmpi.policies.gta.text import override_text, profile_text, test_text, when_text
from fastmpi.policies.gta.tiny_queries import standing_out
from fastmpi.policies.policy import Policy
from fastmpi.policies.tiny_tasks import LEAF_WEIGHT, trace_prompt

NUM_PROFILES, NUM_TESTS = 3, 5  # a row of tests: so many profiles, so many tests of each
NUM_ROUTES = 3  # in a row of routes
NUM_RECITED = 8  # rules in a row
NUM_KEPT, REPLACED_SHARE = 100, 0.2  # policies to draw from, and how often one is new
CHANGE_SHARE = 0.1  # of the calls, whose policy is a block of changed rules


@dataclass(frozen=True)
class Call:
    """One row of the task, and the policy that the prompt may show."""

    row: dict
    policy: Policy


class GTATasks:
    """Rows about the scenes of `tasks`."""

    def __init__(self, tasks: Tasks) -> None:
        self.tasks, self.rng, self.processor = tasks, tasks.rng, tasks.processor
        # Those that every query can be asked about.
        self.scenes = [i for i, scene in enumerate(tasks.scenes) if standing_out(scene)]
        self.kept: dict[tuple[int, int], list[GTAPolicy]] = {}

    def batch(self, kind: str, size: int, num_tools: tuple[int, int]) -> list[Sample]:
        """`size` rows of one kind; a sixteenth of the calls shows no policy."""
        if kind == "tests":
            return [self.tests() for _ in range(size)]
        if kind == "recite":
            return [self.recite(num_tools) for _ in range(size)]
        if kind == "routes":
            return [self.routes(num_tools) for _ in range(size)]
        return [self.call(num_tools, with_policy=i >= size // 16) for i in range(size)]

    def tests(self) -> Sample:
        pieces: list[Piece] = []
        for _ in range(NUM_PROFILES):
            profile = gta_tiny.sample_profile(self.rng)
            pieces += self._pieces(f" {profile_text(profile, 'compact')} ;", 0.0)
            for _ in range(NUM_TESTS):
                tests = gta_tiny.sample_split(self.rng, str(self.rng.choice(gta_tiny.FIELDS)))
                test = tests[self.rng.integers(len(tests))]
                pieces += self._pieces(f" {test_text(test, 'compact')}", 0.0)
                pieces += self._pieces(" yes" if test.holds(profile) else " no", 1.0)
            pieces += self._pieces(" ;", 0.0)
        return self.tasks.sample([{"role": "user", "content": "trace"}], [], pieces)

    def recite(self, num_tools: tuple[int, int]) -> Sample:
        policy = self._seen_policy(num_tools)
        pieces: list[Piece] = []
        for place in self.rng.permutation(len(policy.rules))[:NUM_RECITED]:
            pieces += [*self._recited(policy.rules[place]), *self._pieces(" ;", 0.0)]
        ask = {"role": "user", "content": trace_prompt(policy.name)}
        return self.tasks.sample([*policy.to_policy().messages, ask], [], pieces)

    def routes(self, num_tools: tuple[int, int]) -> Sample:
        policy = self._seen_policy(num_tools)
        pieces: list[Piece] = []
        for number in range(NUM_ROUTES):
            row = self._row(policy)
            verb = row["prompt"].split(" ; ")[1].split()[0]
            profile = row["prompt"].split(" ; ")[0]
            pieces += self._pieces(f"{' ' if number else ''}{profile} ; {verb}", 0.0)
            route = self._pieces(f"<think>{row['reasoning']}", 1.0)
            pieces += [*route[:-1], (route[-1][0], LEAF_WEIGHT)]
            pieces += [*self._pieces("</think>", 1.0), *self._pieces(" ;", 0.0)]
        ask = {"role": "user", "content": trace_prompt(policy.name)}
        return self.tasks.sample([*policy.to_policy().messages, ask], [], pieces)

    def call(self, num_tools: tuple[int, int], *, with_policy: bool = True) -> Sample:
        call = self.question(num_tools, unseen=False)
        prompt = self.prompt(call, with_policy=with_policy)
        response = self.processor.encode_response(response_text(call.row))
        return Sample.from_prompt(prompt, response)

    def question(self, num_tools: tuple[int, int], *, unseen: bool) -> Call:
        if unseen:
            policy = gta_tiny.sample_policy(self.rng, num_tools=num_tools)
        else:
            policy = self._seen_policy(num_tools)
        row, block = self._row(policy), None
        if not unseen and self.rng.random() < CHANGE_SHARE:
            changed = [rule for rule in policy.rules if rule.tool == row["tool"]]
            block = override_text(policy.name, changed, "compact")
        return Call(row, policy.to_policy(block))

    def prompt(self, call: Call, *, with_policy: bool = True) -> Prompt:
        policy = call.policy if with_policy else None
        return render(call.row, self.processor, policy, folder=self.tasks.folder)

    def _recited(self, rule: Rule) -> list[Piece]:
        """A rule as reasoning quotes it where it applies; a choice's answer is drawn."""
        # Reasoning begins with a first rule, whose id is another token there.
        start = "<think>" if rule.id.endswith(".1") and self.rng.random() < 0.5 else " "
        pieces = self._pieces(f"{start}{rule.id}", 0.0)
        pieces += self._pieces(f" {when_text(rule, 'compact')}", 1.0) + self._pieces(" yes", 0.0)
        version = rule.targets[0]
        if isinstance(rule.then, Choice):
            yes = bool(self.rng.random() < 0.5)
            pieces += self._pieces(f" {test_text(rule.then.test, 'compact')}", 1.0)
            pieces += self._pieces(" yes" if yes else " no", 0.0)
            version = rule.then.yes if yes else rule.then.no
        return [*pieces, *self._pieces(f" v{version}", LEAF_WEIGHT)]

    def _seen_policy(self, num_tools: tuple[int, int]) -> GTAPolicy:
        """One of a few kept policies, which new ones replace: checking a policy takes time."""
        kept = self.kept.setdefault(num_tools, [])
        if len(kept) < NUM_KEPT or self.rng.random() < REPLACED_SHARE:
            kept.append(gta_tiny.sample_policy(self.rng, num_tools=num_tools, unseen=False))
            del kept[:-NUM_KEPT]
        return kept[self.rng.integers(len(kept))]

    def _row(self, policy: GTAPolicy) -> dict:
        index = int(self.rng.choice(self.scenes))
        scene, file = self.tasks.scenes[index], self.tasks.files[index]
        return gta_tiny.sample_row(self.rng, policy, scene, row_id=str(index), image=file)

    def _pieces(self, text: str, weight: float) -> list[Piece]:
        words = self.processor.tokenizer.tokenize(text)
        return [(word.replace("Ġ", " "), weight) for word in words]
