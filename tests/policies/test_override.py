"""A block of changed rules after the policy that it changes."""

from __future__ import annotations

import pytest
from PIL import Image

from fastmpi.policies.gta.policy import gta_policy, swapped_versions
from fastmpi.policies.override import after_whole
from fastmpi.policies.policy import Policy, PolicySet


def block_of(style: str = "full") -> tuple[Policy, Policy, str]:
    policy = gta_policy(style)
    text, changed = policy.override(swapped_versions(policy))
    return policy.to_policy(), changed.to_policy(text), text


@pytest.mark.parametrize("style", ["full", "compact"])
def test_the_block_follows_the_policy_in_one_system_turn(style: str) -> None:
    old, block, text = block_of(style)
    shown = after_whole(PolicySet.from_policies([block]), {"gta": old})["gta"]
    assert shown.text == f"{old.text}\n\n{text}"
    assert [message["role"] for message in shown.messages] == ["system"]
    assert shown.metadata == block.metadata
    assert block.text == text  # what is on disk stays a block


def test_turns_of_other_roles_and_pictures_come_in_order() -> None:
    part = {"type": "image"}
    old = Policy("p", [{"role": "system", "content": [part]}], [Image.new("RGB", (2, 2), "red")])
    rules = {"override": "block"}
    block = Policy("p", [{"role": "user", "content": [part]}], ["b.png"], rules)
    shown = after_whole(PolicySet.from_policies([block]), {"p": old})["p"]
    assert [message["role"] for message in shown.messages] == ["system", "user"]
    assert shown.images == [old.images[0], "b.png"]


def test_a_whole_policy_stays_and_an_unknown_one_is_named() -> None:
    old, block, _ = block_of()
    whole = Policy("kavo", [{"role": "system", "content": "x"}], metadata={"override": "whole"})
    assert after_whole(PolicySet.from_policies([whole]), {})["kavo"] is whole
    with pytest.raises(ValueError, match="changes policy 'gta', which is unknown; .* 'gtb'"):
        after_whole(PolicySet.from_policies([block]), {"gtb": old})
