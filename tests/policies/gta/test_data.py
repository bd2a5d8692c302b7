"""Whole GTAPolicy data sets: every rule is needed, splits share nothing, all follows the seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastmpi import assets
from fastmpi.data.rows import read_rows
from fastmpi.policies import PolicySet
from fastmpi.policies.gta.data import GTAPolicyConfig, GTAPolicyData, build, generate
from fastmpi.policies.gta.policy import GTAPolicy, gta_policy
from fastmpi.policies.gta.rules import Profile

SMALL = GTAPolicyConfig(num_train=14, num_test=6, seed=3)
TINY = GTAPolicyConfig(world="tiny", num_train=30, num_test=12, num_cot=8, seed=3)


def into(folder: Path, config: GTAPolicyConfig, **changes) -> GTAPolicyConfig:
    return replace(config, output_dir=str(folder), **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def full() -> GTAPolicyData:
    return build(GTAPolicyConfig())


def name_of(row: dict) -> str:
    return json.loads(row["answer"])["name"]


@pytest.mark.parametrize("config", [SMALL, TINY])
def test_the_files_are_a_data_set(tmp_path: Path, config: GTAPolicyConfig) -> None:
    folder = generate(into(tmp_path / "set", config))
    policies = PolicySet.from_jsonl(folder / "policies.jsonl")
    needed = ("answer", "policy_id", "tool", "rule", "profile", "formulas", "dialog")
    sizes = {"train": config.num_train, "test": config.num_test, "override": config.num_test}
    sizes["train_cot"] = config.num_cot or config.num_train
    for split, size in sizes.items():
        path = folder / f"{split}.jsonl"
        rows = read_rows(path, policies=policies, columns=needed, check_images=True)
        assert len(rows) == size
        assert all(("reasoning" in row) == (split == "train_cot") for row in rows)
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["num_rows"] == sizes
    assert sum(meta["names"]["train"].values()) == config.num_train
    places_and_prices = {"output_dir", "teacher_cache"}
    places_and_prices |= {"teacher_prompt_price", "teacher_completion_price"}
    assert set(meta["settings"]) == set(config.to_dict()) - places_and_prices
    assert list(tmp_path.iterdir()) == [folder]


def test_every_name_and_every_branch_is_needed(full: GTAPolicyData) -> None:
    assert (len(full.train), len(full.train_cot), len(full.test)) == (451, 451, 106)
    names = {name for tool in full.policy.tools.values() for name in tool.names}
    assert len(names) == 32
    targets = [
        {(rule.id, full.policy.rule(rule.id).tool, target) for target in rule.targets}
        for rule in full.policy.rules
    ]
    num_branches = sum(map(len, targets))
    assert num_branches == 26
    for rows in (full.train, full.test):
        assert {name_of(row) for row in rows} == names
        assert len({(row["rule"], name_of(row)) for row in rows if row["rule"]}) == num_branches


def test_gold_follows_from_the_rules(full: GTAPolicyData) -> None:
    policy = gta_policy()
    for row in [*full.train, *full.test]:
        routing = policy.route(row["tool"], Profile.from_json(row["profile"]), row["formulas"])
        assert (name_of(row), row["rule"]) == (routing.name, routing.rule)


def test_train_and_test_share_nothing(full: GTAPolicyData) -> None:
    for key in ("prompt", "id"):
        assert not {row[key] for row in full.train} & {row[key] for row in full.test}
    shown = [{name for row in rows for name in row["images"]} for rows in (full.train, full.test)]
    assert not shown[0] & shown[1]
    requests = [
        {row["prompt"].partition("# Request\n")[2].partition("\n\n#")[0] for row in rows}
        for rows in (full.train, full.test)
    ]
    assert not requests[0] & requests[1]


def test_the_override_suite_is_a_block_of_changed_rules(full: GTAPolicyData) -> None:
    (policy,) = full.override_policies.values()
    assert policy.policy_id == full.policy.name
    assert policy.metadata["override"] == "block"
    changed = GTAPolicy.from_json(policy.metadata["gta"])
    assert "Rule 4 (OCR): If the credits are at most 250, use OCR_v1." in policy.text
    assert "# Tools" not in policy.text
    assert [row["old_answer"] for row in full.override] == [row["answer"] for row in full.test]
    assert [row["prompt"] for row in full.override] == [row["prompt"] for row in full.test]
    for row in full.override:
        profile = Profile.from_json(row["profile"])
        assert name_of(row) == changed.route(row["tool"], profile, row["formulas"]).name
    versioned = [row for row in full.override if "_v" in row["answer"]]
    assert sum(row["answer"] != row["old_answer"] for row in versioned) > 0.8 * len(versioned)


@pytest.mark.parametrize("config", [SMALL, TINY])
def test_everything_follows_from_the_seed(tmp_path: Path, config: GTAPolicyConfig) -> None:
    config = replace(config, num_train=8, num_test=3, num_cot=None)
    first = contents(generate(into(tmp_path / "a", config)))
    assert contents(generate(into(tmp_path / "b", config))) == first
    assert contents(generate(into(tmp_path / "c", config, seed=4))) != first


@pytest.mark.parametrize("config", [SMALL, TINY])
def test_more_test_rows_leave_the_rest_alone(config: GTAPolicyConfig) -> None:
    small, large = build(config), build(replace(config, num_test=40))
    assert (large.policy, large.train, large.train_cot) == (
        small.policy, small.train, small.train_cot,
    )  # fmt: skip
    last = small.test[-1]["dialog"]  # it may have been cut
    whole = [row for row in small.test if row["dialog"] != last]
    assert whole and large.test[: len(whole)] == whole


def test_the_tiny_world_has_an_unseen_policy_and_its_words() -> None:
    data = build(TINY)
    assert data.policies["gta"].text.startswith("policy gta : ")
    assert data.override_policies["gta"].text.startswith("change gta : ")
    assert {row["tool"] for row in data.train} == set(data.policy.tools)
    assert data.train_cot[0]["reasoning"].split()[0] in {rule.id for rule in data.policy.rules}
    assert len(data.train_cot) == 8
    assert len({row["tool"] for row in data.train_cot}) == min(8, len(data.policy.tools))
    (row,) = data.with_pictures(data.test[:1])
    assert row["images"][0].size == assets.PICTURE_SIZE


def test_a_gta_folder_becomes_a_data_set(tmp_path: Path, gta_folder: Path) -> None:
    config = GTAPolicyConfig(gta_dir=str(gta_folder), num_train=7, num_test=2, seed=1)
    folder = generate(into(tmp_path / "set", config))
    rows = {name: read_rows(folder / f"{name}.jsonl") for name in ("train", "train_cot", "test")}
    assert {name: len(found) for name, found in rows.items()} == {
        "train": 7, "train_cot": 7, "test": 2,
    }  # fmt: skip
    dialogs = [{row["dialog"] for row in rows[name]} for name in ("train", "test")]
    assert not dialogs[0] & dialogs[1]
    for row in [*rows["train"], *rows["test"]]:
        for image in row["images"]:
            name = Path(image).relative_to(folder)
            assert Path(image).read_bytes() == (gta_folder / name).read_bytes()
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["split"] == {"calls": 9, "wanted_test": 2, "exact": True}
    assert meta["made_pictures_missing"] == ["image/made_2.jpg"]
    assert meta["calls_without_return"] == 1


def test_a_part_of_gta_is_split_in_the_same_share(gta_folder: Path) -> None:
    data = build(GTAPolicyConfig(gta_dir=str(gta_folder), seed=2))
    assert len(data.test) == round(9 * 106 / 557) == 2
    with pytest.raises(ValueError, match="num_cot = 8, of 7 training rows"):
        build(GTAPolicyConfig(gta_dir=str(gta_folder), num_cot=8))


def test_where_the_numbers_do_not_come_out_meta_says_so(gta_folder: Path) -> None:
    data = build(GTAPolicyConfig(gta_dir=str(gta_folder), num_train=8, num_test=1))
    assert data.notes["split"] == {"calls": 9, "wanted_test": 1, "exact": False}
    assert len(data.test) == 2


def test_a_teacher_is_not_asked_where_the_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):  # asking would be a ConnectionError
        generate(into(tmp_path, SMALL, teacher_model="m", teacher_base_url="http://localhost:1/v1"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"world": "moon"}, "world is one of full, tiny"),
        ({"num_train": 0}, "num_train must be at least 1"),
        ({"num_cot": 500}, "num_cot = 500, of 451"),
        ({"num_cot": -1}, "num_cot must not be negative"),
        ({"seed": -1}, "seed must not be negative"),
        ({"gta_dir": "x", "world": "tiny"}, "gta_dir"),
        ({"policy_file": "x", "world": "tiny"}, "policy_file: the tiny world"),
        ({"teacher_model": "m", "world": "tiny"}, "teacher_model: the tiny world has few words"),
        ({"gta_folder": "x"}, "did you mean 'gta_dir'"),
    ],
)
def test_bad_settings_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GTAPolicyConfig.from_dict(values)


def test_another_policy_from_a_file(tmp_path: Path) -> None:
    """A rule more is data: its text, its gold calls and its override follow."""
    changed = gta_policy().to_json()
    rule = next(rule for rule in changed["rules"] if rule["id"] == "12")  # A and B: version 2
    other = next(rule for rule in changed["rules"] if rule["id"] == "13")
    rule["then"], other["then"] = other["then"], rule["then"]
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({**changed, "name": "shop"}))
    data = build(GTAPolicyConfig(policy_file=str(path)))
    assert list(data.policies) == ["shop"] and data.policy != gta_policy()
    rows = [row for row in data.train if row["tool"] == "RegionAttributeDescription"]
    assert rows and all(row["policy_id"] == "shop" for row in rows)
    for row in rows:
        version = 1 if row["profile"]["account_type"] in "AB" else 2
        assert name_of(row) == f"RegionAttributeDescription_v{version}"


@pytest.mark.parametrize(
    ("text", "message"), [(None, "No such file"), ("{", "Expecting"), ("{}", "tool policy")]
)
def test_a_bad_policy_file_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "policy.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=f"policy_file .*policy.json: .*{message}"):
        build(replace(SMALL, policy_file=str(path)))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="toolmeta.json: no such file; a GTA folder has one"):
        generate(into(tmp_path / "set", GTAPolicyConfig(gta_dir=str(tmp_path / "no"))))
    assert list(tmp_path.iterdir()) == []
