"""The tiny world's tool policies: what they ask can be answered, and is answered rightly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fastmpi.assets import ATTRIBUTES, MATERIAL
from fastmpi.data.renderer import sample_scene
from fastmpi.models.tokenizer import build_tokenizer, compact_words
from fastmpi.policies.gta import tiny as gta_tiny
from fastmpi.policies.gta.parse import parse_rules
from fastmpi.policies.gta.policy import GTAPolicy
from fastmpi.policies.gta.rules import Choice, Profile
from fastmpi.policies.gta.tiny import sample_policy, sample_profile, sample_row
from fastmpi.policies.gta.tiny_queries import answerable, standing_out
from fastmpi.policies.gta.tools import TOOLS, type_of

WORLD = {**ATTRIBUTES, "material": (MATERIAL,)}


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def scenes(rng, count=30):
    return [sample_scene(rng, 3, attributes=WORLD, layout="quadrants") for _ in range(count)]


def rows(rng, count=200):
    policy = sample_policy(rng)
    for number, scene in enumerate(scenes(rng, count)):
        yield policy, scene, sample_row(rng, policy, scene, row_id=str(number), image="a.png")


@pytest.mark.parametrize("unseen", [True, False])
def test_policies_keep_to_their_side(rng, unseen):
    policies = [sample_policy(rng, unseen=unseen) for _ in range(30)]
    assert all(gta_tiny.is_held_out(policy.rules) == unseen for policy in policies)


def test_the_text_reads_back(rng):
    for _ in range(20):
        policy = sample_policy(rng)
        assert parse_rules(policy.text, "compact") == policy.rules
        assert GTAPolicy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


def test_a_row_holds_the_policys_call(rng):
    for policy, _, row in rows(rng):
        call, profile = json.loads(row["answer"]), Profile.from_json(row["profile"])
        assert call["name"] == policy.route(row["tool"], profile).name
        assert type_of(call["name"], TOOLS) == row["tool"]
        assert policy.rule(row["rule"]).applies(profile)
        words = f"account {profile.account_type} credits {profile.credits} age {profile.age} ; "
        assert row["prompt"].startswith(words)
        assert row["reasoning"].endswith(f" v{call['name'][-1]}")


def test_arguments_are_the_tools_own_and_answer_the_query(rng):
    seen = set()
    for _, scene, row in rows(rng, 400):
        arguments = json.loads(row["answer"])["arguments"]
        assert list(arguments) == [argument.name for argument in TOOLS[row["tool"]].arguments]
        verb, *words = row["prompt"].split(" ; ")[1].split()
        seen.add(verb)
        ANSWERS[verb](words, arguments, scene)
    assert seen <= set(ANSWERS) and len(seen) > 3


def check_search(words, arguments, scene):
    (item,) = [o for o in scene.objects if words[0] in (o.color, o.shape, o.size)]
    assert arguments == {"query": f"{item.color} {item.shape}", "k": int(words[1])}


def check_inspect(words, arguments, scene):
    (item,) = [o for o in scene.objects if words[0] in (o.color, o.shape, o.size)]
    left, top, right, bottom = json.loads(arguments["bbox"].replace("(", "[").replace(")", "]"))
    x, y, _ = item.pixel_coords
    assert left < x < right and top < y < bottom and (right - left, bottom - top) == (32, 32)
    assert arguments["attribute"] == words[1] != words[0]


def check_word(field):
    def check(words, arguments, scene):
        assert arguments[field] == " ".join(words)

    return check


ANSWERS = {
    "read": lambda words, arguments, scene: None,
    "caption": lambda words, arguments, scene: None,
    "count": check_word("text"),
    "draw": check_word("keywords"),
    "style": check_word("instruction"),
    "search": check_search,
    "inspect": check_inspect,
}


def test_every_branch_of_a_tool_is_equally_likely(rng):
    policy = sample_policy(rng)
    tool = next(r.tool for r in policy.rules if isinstance(r.then, Choice))
    rules = [rule for rule in policy.rules if rule.tool == tool]
    routes = [policy.route(tool, sample_profile(rng, rules)).rule for _ in range(600)]
    shares = [routes.count(rule.id) / 600 for rule in rules]
    assert min(shares) > 0.8 / len(rules)


def test_no_query_about_an_object_that_does_not_stand_out(rng):
    scene = scenes(rng, 1)[0]
    twins = type(scene)(tuple([scene.objects[0]] * 2), image_size=scene.image_size)
    assert not standing_out(twins) and not answerable("GoogleSearch", twins)
    policy = sample_policy(rng, num_tools=(7, 7))
    with pytest.raises(ValueError, match="row 3: no query of GoogleSearch"):
        sample_row(rng, policy, twins, row_id="3", image="a.png", tool="GoogleSearch")
    drawn = {sample_row(rng, policy, twins, row_id="", image="")["tool"] for _ in range(100)}
    assert drawn == set(gta_tiny.TINY_TOOLS) - {"GoogleSearch", "RegionAttributeDescription"}


def test_all_words_are_single_tokens(rng):
    given = [*compact_words(("describe", "trace", "none")), *gta_tiny.words()]
    tokenizer = build_tokenizer(given, max_vocab_size=1500)
    for policy, _, row in rows(rng):
        for text in (policy.text, row["prompt"], row["reasoning"]):
            assert len(tokenizer(text)["input_ids"]) == len(text.split())
        pieces = tokenizer(row["answer"])["input_ids"]
        # Every word is a token, each brace is, and so is the blank before the inner brace.
        assert len(pieces) == len(row["answer"].split()) + 5


def test_numbers_have_their_bounds_neighbours():
    for field, bounds in gta_tiny.BOUNDS.items():
        assert set(bounds) <= set(gta_tiny.NUMBERS[field])
