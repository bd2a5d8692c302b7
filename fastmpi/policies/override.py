"""What is shown in the override suite: a block of changed rules alone, or after the policy it
changes.

The paper puts the block before the profile and does not say whether the policy stands there too. A
model that has learnt it needs the block only; one that has not cannot even name the tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastmpi.policies.policy import Policy, PolicySet
from fastmpi.settings import did_you_mean


def after_whole(blocks: PolicySet, policies: Mapping[str, Policy]) -> PolicySet:
    """Each block of changed rules after the policy of its name, in one turn.

    A policy whose metadata does not say that it is a block ({"override": "block"}) is whole
    already, as ClevrPolicy's are, and stays. `ValueError` for a block whose policy is not there.
    """
    return PolicySet.from_policies([_after(block, policies) for block in blocks.values()])


def _after(block: Policy, policies: Mapping[str, Policy]) -> Policy:
    if block.metadata.get("override") != "block":
        return block
    old = policies.get(block.policy_id)
    if old is None:
        near = did_you_mean(block.policy_id, policies)
        raise ValueError(f"the override changes policy {block.policy_id!r}, which is unknown{near}")
    *before, last = old.messages
    first, *after = block.messages
    if last["role"] == first["role"]:  # not every chat template takes two system turns
        content = [*_parts(last), {"type": "text", "text": "\n\n"}, *_parts(first)]
        turns = [*before, {**last, "content": content}, *after]
    else:
        turns = [*old.messages, *block.messages]
    return Policy(block.policy_id, turns, [*old.images, *block.images], block.metadata)


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else [*content]
