"""What the tiny base is trained on is true."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from tiny_base_gta import GTATasks  # noqa: E402
from tiny_base_model import collate, greedy, losses, new_base  # noqa: E402
from tiny_base_tasks import Tasks  # noqa: E402

from fastmpi.assets import held_out  # noqa: E402
from fastmpi.policies.gta.parse import parse_rules  # noqa: E402
from fastmpi.policies.gta.policy import GTAPolicy  # noqa: E402
from fastmpi.policies.gta.rules import Choice, Profile  # noqa: E402
from fastmpi.policies.gta.text import test_text as quoted  # noqa: E402
from fastmpi.policies.gta.text import when_text  # noqa: E402
from fastmpi.policies.gta.tiny import is_held_out  # noqa: E402

QUADRANTS = ((False, False), (False, True), (True, False), (True, True))


@pytest.fixture(scope="module")
def base():
    return new_base(seed=0)


@pytest.fixture(scope="module")
def tasks(base, tmp_path_factory):
    return Tasks(base[1], tmp_path_factory.mktemp("pictures"), num_scenes=40, seed=5)


@pytest.fixture(scope="module")
def tools(tasks):
    return GTATasks(tasks)


def response(sample, processor):
    scored = np.flatnonzero(sample.weights)
    return processor.decode(sample.ids[scored[0] :])


def test_description_is_the_scene(tasks, monkeypatch):
    for index in range(20):
        monkeypatch.setattr(tasks, "scenes", [tasks.scenes[index]])
        monkeypatch.setattr(tasks, "files", [tasks.files[index]])
        text = response(tasks.describe(), tasks.processor)
        check_description(text, tasks.scenes[0])
        monkeypatch.undo()


def check_description(text, scene):
    parts = [part.split() for part in text.split(";")]
    places = {(o.pixel_coords[1] > 32, o.pixel_coords[0] > 32): o for o in scene.objects}
    for place, words in zip(QUADRANTS, parts[:4], strict=True):
        item = places.get(place)
        assert words == ([item.size, item.color, item.shape] if item else ["none"])
    for chain in filter(None, parts[4:]):
        check_chain(chain, scene)


def check_chain(words, scene):
    objects, condition = list(scene.objects), "C1"
    for name, value, answer in zip(*[iter(words)] * 3, strict=True):
        kept = [o for o in objects if value in (o.shape, o.color, o.size)]
        assert (name, answer) == (condition, "yes" if kept else "no")
        objects, condition = kept or objects, condition + (".1" if kept else ".2")


def test_answers_are_balanced_at_every_step(tasks):
    chains = [
        c for _ in range(60) for c in response(tasks.describe(), tasks.processor).split(";")[4:]
    ]
    answers = np.array([chain.split()[2::3] for chain in chains if chain.strip()])
    assert np.all(abs((answers == "yes").mean(0) - 0.5) < 0.12)


@pytest.mark.parametrize("depth", [2, 3])
def test_trace_lists_half_of_the_paths(tasks, depth):
    sample = tasks.trace(depth)
    text = response(sample, tasks.processor)
    paths = [path.strip() for path in text.split(";") if path.strip()]
    assert len(paths) == len(set(paths)) == 2**depth // 2
    policy = tasks.processor.decode(sample.ids).split(" end")[0]
    for path in paths:
        # "C1.1 cube no</think>\\boxed{Case 5}" needs a rule "C1.1 if cube then ... else Case 5".
        found = re.fullmatch(r"<think>.*?(\S+) (\S+) (yes|no)</think>\\boxed\{(Case \d)\}", path)
        condition, value, answer, case = found.groups()
        rule = policy.split(f"{condition} if {value} then ")[1].split(" ;")[0]
        assert rule.split(" else ")[answer == "no"] == case


def test_unpredictable_tokens_have_no_loss(tasks):
    for sample in (tasks.describe(), tasks.trace(2)):
        start = int(np.flatnonzero(sample.weights)[0])
        unscored = [
            tasks.processor.decode([t]) for t in sample.ids[start:][sample.weights[start:] == 0]
        ]
        answers = {" yes", " no"}
        assert unscored and (set(unscored) <= answers or not set(unscored) & answers)


def test_follow_shows_the_policy_only_when_asked(tasks):
    with_policy, without = (tasks.follow(2, with_policy=flag) for flag in (True, False))
    assert "if" in tasks.processor.decode(with_policy.ids).split()
    assert "if" not in tasks.processor.decode(without.ids).split()


@pytest.mark.parametrize("unseen", [True, False])
def test_trees_keep_to_their_side(tasks, unseen):
    trees = [tasks.tree(2, unseen=unseen) for _ in range(30)]
    assert all(held_out((n.id, n.value) for n in tree.nodes()) == unseen for tree in trees)


def test_questions_balance_the_cases(tasks):
    tree = tasks.tree(2)
    answers = [tasks.question(tree).row["answer"] for _ in range(200)]
    assert min(answers.count(leaf.case) for leaf in tree.leaves()) > 20


def test_losses_are_the_stock_models(base, tasks):
    model, processor = base
    samples = [tasks.follow(2), tasks.follow(3)]
    targets, logprob, _ = losses(model, collate(samples, processor))
    expected = torch.cat([stock_logprob(model, sample, processor) for sample in samples])
    assert len(targets) == len(logprob)
    torch.testing.assert_close(logprob, expected, rtol=1e-4, atol=1e-5)


def stock_logprob(model, sample, processor):
    ids = torch.from_numpy(sample.ids)[None]
    image = sample.images[0]
    logits = model(
        input_ids=ids,
        mm_token_type_ids=(ids == processor.image_token_id).int(),
        pixel_values=image.pixels,
        image_grid_thw=torch.tensor([image.grid]),
    ).logits[0]
    rows = torch.from_numpy(np.flatnonzero(sample.weights))
    return logits[rows - 1].log_softmax(-1)[torch.arange(len(rows)), ids[0, rows]]


def test_greedy_does_not_depend_on_padding(base, tasks):
    model, processor = base
    prompts = [tasks.prompt(tasks.question(tasks.tree(depth))) for depth in (2, 3)]
    together = greedy(model, processor, prompts)
    assert together == [greedy(model, processor, [prompt])[0] for prompt in prompts]


def test_objects_are_those_of_the_pictures(tasks):
    by_key = {tasks.processor.image(f, tasks.folder).key: item for item, f in tasks.objects}
    for _ in range(5):
        sample = tasks.describe_objects()
        words = response(sample, tasks.processor).split(";")[:4]
        for image, text in zip(sample.images, words, strict=True):
            item = by_key[image.key]
            assert text.split() == [item.size, item.color, item.shape]


def test_pictured_conditions_name_their_value_in_the_response_alone(tasks):
    by_key = {tasks.processor.image(f, tasks.folder).key: item for item, f in tasks.objects}
    for sample in (tasks.trace(2, pictured=True), tasks.follow(2, pictured=True)):
        text = tasks.processor.decode(sample.ids)
        rules, answer = text.split(" end")
        shown = [rule for rule in rules.split(" : ")[1].split(" ;") if is_pictured(rule)]
        assert len(shown) == 2
        for rule, image in zip(shown, sample.images, strict=False):
            condition, _, attribute = rule.split()[:3]
            cited = re.findall(rf"{re.escape(condition)} (\w+) (?:yes|no)", answer)
            assert set(cited) <= {getattr(by_key[image.key], attribute)}


def is_pictured(rule):
    return rule.split()[2] in ("color", "shape", "size")


def test_tests_are_answered_by_the_profile(tools):
    text = tools.processor.decode(tools.tests().ids).split("assistant\n")[1]
    parts = [part.strip() for part in text.split(" ;")][:-1]
    for profile_words, tests in zip(parts[::2], parts[1::2], strict=True):
        _, account, _, credits, _, age = profile_words.split()
        profile = Profile(account, int(credits), int(age))
        asked = re.findall(r"((?:account|credits|age) .*?) (yes|no)", tests)
        assert len(asked) == 5
        for test, answer in asked:
            rule = parse_rules(f"policy p : OCR.1 if {test} then v1 end", "compact")[0]
            assert rule.applies(profile) == (answer == "yes")


def test_recited_rules_are_the_policys(tools):
    for _ in range(5):
        text = tools.processor.decode(tools.recite((4, 4)).ids)
        rules = parse_rules(f"policy{text.split('policy')[1].split(' end')[0]} end", "compact")
        by_id = {rule.id: rule for rule in rules}
        recited = text.split("assistant\n")[1].replace("<think>", " ").split(" ;")[:-1]
        assert len(recited) == min(8, len(rules))
        for quote in recited:
            rule_id, *words = quote.split()
            assert " ".join(words) in recitals(by_id[rule_id])


def recitals(rule):
    """All that a rule may be recited as."""
    when = f"{when_text(rule, 'compact')} yes"
    if not isinstance(rule.then, Choice):
        return {f"{when} v{rule.then}"}
    inner = f"{when} {quoted(rule.then.test, 'compact')}"
    return {f"{inner} yes v{rule.then.yes}", f"{inner} no v{rule.then.no}"}


def test_routes_are_the_policys(tools):
    verbs = {"read": "OCR", "caption": "ImageDescription", "count": "CountGivenObject"}
    verbs |= {"search": "GoogleSearch", "inspect": "RegionAttributeDescription"}
    verbs |= {"draw": "TextToImage", "style": "ImageStylization"}
    sample = tools.routes((4, 4))
    text = tools.processor.decode(sample.ids)
    rules = parse_rules(f"policy{text.split('policy')[1].split(' end')[0]} end", "compact")
    found = re.findall(r"account (\w) credits (\d+) age (\d+) ; (\w+)<think>(.*?)</think>", text)
    assert len(found) == 3
    for account, credits, age, verb, reasoning in found:
        own = [rule for rule in rules if rule.tool == verbs[verb]]
        profile = Profile(account, int(credits), int(age))
        applying = next(rule for rule in own if rule.applies(profile))
        words = reasoning.split()
        assert words[-1] in {f"v{target}" for target in applying.targets}
        cited = [word for word in words if "." in word]
        assert cited == [rule.id for rule in own[: own.index(applying) + 1]]


@pytest.mark.parametrize("unseen", [True, False])
def test_calls_keep_to_their_side(tools, unseen):
    for _ in range(20):
        call = tools.question((4, 6), unseen=unseen)
        policy = GTAPolicy.from_json(call.policy.metadata["gta"])
        assert is_held_out(policy.rules) == unseen
        profile = Profile.from_json(call.row["profile"])
        assert f'"{policy.route(call.row["tool"], profile).name}"' in call.row["answer"]


def test_calls_show_the_policy_only_when_asked(tools):
    with_policy, without = (tools.call((4, 4), with_policy=flag) for flag in (True, False))
    assert " if" in tools.processor.decode(with_policy.ids)
    assert " if" not in tools.processor.decode(without.ids)
