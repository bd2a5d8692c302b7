"""Recipes: strict keys, overrides, what a file may not say, and that every shipped one is valid."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastmpi.config import SFTConfig
from fastmpi.policies.clevr_data import ClevrPolicyConfig
from fastmpi.policies.gta.data import GTAPolicyConfig
from fastmpi.recipe import Recipe, find_recipe, load_recipe, shipped_recipes
from fastmpi.stages.methods import comparison_of

FILES = {"train": "train.jsonl", "train_cot": "cot.jsonl", "test": "test.jsonl"}


def test_stages_come_in_order_with_the_recipe_seed():
    recipe = Recipe(data=FILES, seed=7, rl={}, cpt={"max_steps": 2}, sft={"seed": 9})
    plans = recipe.stages()
    assert [plan.kind for plan in plans] == ["cpt", "sft", "rl"]
    assert [plan.config.seed for plan in plans] == [7, 9, 7]
    assert [plan.train_dataset for plan in plans] == ["train_cot", "train_cot", "train"]
    assert plans[2].reward_funcs == ("exact_answer", "think_format")


def test_direct_sft_trains_on_all_rows():
    assert Recipe(data=FILES, sft={"reasoning": False}).stage("sft").train_dataset == "train"


@pytest.mark.parametrize(
    "values, message",
    [
        ({"sft": {"lora_rr": 1}}, "sft: there is no 'lora_rr'; did you mean 'lora_r'"),
        ({"rl": {"reward_func": []}}, "rl: there is no 'reward_func'; did you mean 'reward_funcs'"),
        ({"sft": {"reward_funcs": []}}, "sft: there is no 'reward_funcs'"),
        ({"eval": {"batch": 1}}, "eval: EvalConfig has no 'batch'; did you mean 'batch_size'"),
        ({"data": {"trian": "x"}}, "data has no 'trian'; did you mean 'train'"),
        ({"data": {}}, "data is empty"),
        ({"data": {"clevr_policy": {}, "test": "x"}}, "clevr_policy or files, not both"),
        ({"data": {"clevr_policy": {"dept": 2}}}, "no 'dept'; did you mean 'depth'"),
        ({"data": {"clevr_policy": {}}, "policies": "p"}, "brings its own policies"),
        ({"data": {"gta_policy": {}, "clevr_policy": {}}}, "not both"),
        ({"data": {"gta_policy": {"worl": 2}}}, "data.gta_policy: .* mean 'world'"),
        ({"data": {"gta_policy": {"teacher_base_url": "http://x"}}}, "a recipe asks no endpoint"),
        ({"data": {"gta_policy": {}}, "policies": "p"}, "data.gta_policy brings its own policies"),
        ({"sft": {"max_steps": "many"}}, "sft: SFTConfig.max_steps: expected int, found 'many'"),
        ({"sft": {"trust_remote_code": True}}, "trust_remote_code cannot be set in a file"),
        ({"sft": {"output_dir": "x"}}, "sft: output_dir is of the recipe as a whole"),
        ({"rl": {"reward_funcs": []}}, "rl: reward_funcs is empty"),
        ({"rl": {"train_dataset": ""}}, "rl: train_dataset is empty"),
        ({"model": ""}, "Recipe.model is empty"),
        ({"output_dir": ""}, "Recipe.output_dir is empty"),
        ({"policies": "a\0b"}, "Recipe.policies: .* has a character of code 0"),
        ({"data": {"train": ""}}, "data.train is empty"),
        ({"seed": 10**30}, "Recipe.seed: .* has more than 64 bits"),
    ],
)  # fmt: skip
def test_mistakes_are_named(values, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        Recipe.from_dict({"data": FILES, **values})


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_file_with_overrides(tmp_path):
    path = write(tmp_path / "r.yaml", "data: {train: a}\nsft: {learning_rate: 1e-4}\n")
    dotted = {"sft.max-steps": 3, "cpt.max_steps": 2}
    recipe = load_recipe(path, {"seed": 5}, dotted)
    config = recipe.stage("sft").config
    assert isinstance(config, SFTConfig)
    assert (config.learning_rate, config.max_steps, config.seed) == (1e-4, 3, 5)
    assert recipe.stage("cpt").config.max_steps == 2
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    "text, message",
    [
        ("sft: {}", "r.yaml: Recipe.data is missing"),
        ("data: {train: a}\ntrust_recipe_code: true", "trust_recipe_code cannot be set in a file"),
        ("data: {train: a}\nmodle: x", "r.yaml: Recipe has no 'modle'; did you mean 'model'"),
        ("- a", "r.yaml: expected keys and values, found list"),
        ("a: [", "r.yaml cannot be read"),
        ("data: !!python/object/apply:os.system [echo]", "r.yaml cannot be read"),
        ("seed: 2001-99-99", "r.yaml cannot be read: month must be in"),
        ("seed: " + "9" * 5000, "r.yaml cannot be read: Exceeds the limit"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(write(tmp_path / "r.yaml", text))


def test_dotted_into_a_value_is_refused(tmp_path):
    path = write(tmp_path / "r.yaml", "data: {train: a}\n")
    with pytest.raises(ValueError, match="seed is not a group of settings"):
        load_recipe(path, {"seed": 3}, {"seed.x": 1})


def test_generated_data_have_the_recipe_seed_and_a_folder_in_its_output():
    made = Recipe(data={"gta_policy": {"world": "tiny"}}, seed=3, output_dir="out").generated_data()
    assert isinstance(made, GTAPolicyConfig)
    assert (made.world, made.seed, made.output_dir) == ("tiny", 3, "out/data")
    made = Recipe(data={"clevr_policy": {"seed": 4}}, seed=3).generated_data()
    assert isinstance(made, ClevrPolicyConfig) and made.seed == 4
    assert Recipe(data=FILES).generated_data() is None


@pytest.mark.parametrize("name", ["gta_policy_3b", "gta_policy_7b"])
def test_the_gta_recipes_take_a_folder_of_the_users(name):
    recipe = find_recipe(name, {}, {"data.gta_policy.gta_dir": "/gta"})
    made = recipe.generated_data()
    assert isinstance(made, GTAPolicyConfig)
    assert (made.gta_dir, made.num_train, made.num_test) == ("/gta", 451, 106)
    assert recipe.stage("rl").reward_funcs == ("tool_call", "think_format")


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_shipped_recipes_are_valid(name):
    recipe = find_recipe(name, {}, {})
    assert recipe.stages()
    if recipe.compare is not None:
        comparison_of(recipe)


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="no recipe 'dmo'; did you mean 'demo'"):
        find_recipe("dmo", {}, {})


def test_reading_a_recipe_imports_no_torch():
    code = "import sys; from fastmpi.recipe import find_recipe; find_recipe('demo', {}, {}); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"clevr_policy": 5}}, "data.clevr_policy: expected dict, found 5"),
        ({"data": {"train": ["a"]}}, "data.train: expected str"),
        ({"rl": {"train_dataset": 5}}, "train_dataset: expected str, found 5"),
        ({"rl": {"reward_funcs": "exact_answer"}}, "reward_funcs: expected list"),
        ({"rl": {"reward_funcs": None}}, "reward_funcs: expected list"),
    ],
)
def test_values_of_the_wrong_type_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_dict({"data": {"train": "t.jsonl"}, **changes})
