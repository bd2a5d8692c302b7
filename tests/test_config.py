"""Settings of the stages: TRL's names and defaults, and what is refused with which words."""

from __future__ import annotations

import dataclasses

import pytest

from fastmpi.config import (
    FREE_ON_RESUME,
    CPTConfig,
    PolicyRolloutConfig,
    SFTConfig,
    TrainingConfig,
)
from fastmpi.settings import field_docs

CONFIGS = (CPTConfig, SFTConfig, PolicyRolloutConfig)


@pytest.mark.parametrize("config", CONFIGS)
def test_every_field_is_documented(config: type[TrainingConfig]) -> None:
    docs = field_docs(config)
    assert [f.name for f in dataclasses.fields(config) if not docs.get(f.name)] == []


@pytest.mark.parametrize("config", CONFIGS)
def test_yaml_round_trip(config: type[TrainingConfig], tmp_path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(config(learning_rate=3e-5, report_to=["wandb"]).to_yaml())
    assert config.from_yaml(path) == config(learning_rate=3e-5, report_to=["wandb"])


def test_defaults_are_trls() -> None:
    args = PolicyRolloutConfig()
    assert (args.num_generations, args.beta, args.epsilon, args.temperature) == (8, 0.0, 0.2, 1.0)
    assert (args.loss_type, args.scale_rewards, args.num_iterations) == ("dapo", "group", 1)
    assert (args.learning_rate, args.max_completion_length, args.top_k) == (1e-6, 256, 0)
    assert (args.per_device_train_batch_size, args.group_size) == (16, 16)
    assert SFTConfig().use_peft and not CPTConfig().use_peft


def test_yaml_numbers_without_a_dot(tmp_path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("learning_rate: 1e-5\ndynamic_sampling_range: [0.1, 0.9]\n")
    args = PolicyRolloutConfig.from_yaml(path)
    assert args.learning_rate == 1e-5
    assert args.dynamic_sampling_range == (0.1, 0.9)


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="has no 'num_generation'; did you mean 'num_generations'"):
        PolicyRolloutConfig.from_dict({"num_generation": 4})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": "fast"}, "learning_rate: expected a number"),
        ({"learning_rate": 10**400}, "learning_rate: expected a number, found 1000"),
        ({"num_train_epochs": float("nan")}, "num_train_epochs: expected a finite number"),
        ({"num_train_epochs": ".inf"}, "num_train_epochs: expected a number"),
        ({"adam_epsilon": "inf"}, "adam_epsilon: expected a finite number"),
        ({"seed": 2**63}, "seed: 9223372036854775808 has more"),
        ({"seed": -1}, "seed must be in "),
        ({"seed": 1.5}, "seed: expected int"),
        ({"bf16": 1}, "bf16: expected bool"),
        ({"lr_scheduler_type": "step"}, "'step' is not one of linear, cosine, constant"),
        ({"num_train_epochs": 0}, "num_train_epochs must be positive"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"max_tokens_per_microbatch": 0}, "max_tokens_per_microbatch must be at least 1"),
        ({"adam_beta2": 1.5}, r"adam_beta2 must be in \[0, 1\)"),
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "warmup_steps or warmup_ratio, not both"),
        ({"report_to": ["console"]}, "'console' is not one of tensorboard, wandb"),
        ({"save_total_limit": 0}, "save_total_limit must be at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a finite number"),
        ({"max_steps": 2**63}, "max_steps: 9223372036854775808 has more than 64 bits"),
        ({"warmup_steps": -(10**30)}, "warmup_steps: -1000.* has more than 64 bits"),
        ({"output_dir": ""}, "output_dir is empty"),
        ({"output_dir": "a\0b"}, r"output_dir: 'a\\x00b' has a character of code 0"),
        ({"adam_beta1": 1}, r"adam_beta1 must be in \[0, 1\), not 1.0"),
        ({"ddp_timeout": 10**15}, r"ddp_timeout must be in \[1, 2147483647\]"),
        ({"lora_target_modules": []}, "lora_target_modules is empty"),
        ({"lora_target_modules": [""]}, "lora_target_modules is empty"),
        ({"bf16": True, "dtype": "float64"}, "bf16: .* dtype: float64"),
    ],
)
def test_bad_values(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CPTConfig.from_dict(values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss_type": "ppo"}, "'ppo' is not one of grpo, dapo, bnpo, dr_grpo"),
        ({"temperature": 0.0}, r"temperature must be in \[0.0001, 10000\], not 0.0"),
        ({"memory_budget_gib": 1e300}, r"memory_budget_gib must .* than 1e9, not 1e\+300"),
        ({"temperature": 1e-300}, r"temperature must be in \[0.0001, 10000\]"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"rollout_memory_gib": 0.0}, "rollout_memory_gib must be positive and less than 1e9"),
        ({"rollout_memory_gib": 1.0, "use_vllm": True}, "rollout_memory_gib is of the built-in"),
        ({"num_generations": 1, "num_policy_generations": 0}, "at least 2 responses"),
        ({"dynamic_sampling_range": (0.9, 0.1)}, "0.9 is not below 0.1"),
        ({"per_device_train_batch_size": 24}, r"24 responses do not hold whole groups of 16"),
        ({"num_policy_generations": 4}, r"groups of 12 \(8 policy-free \+ 4 policy-aware\)"),
        (
            {"gradient_accumulation_steps": 2, "steps_per_generation": 3},
            "steps_per_generation = 3 is not a multiple of gradient_accumulation_steps = 2",
        ),
        ({"delta": 1.1}, "delta must be above 1 \\+ epsilon_high = 1.2"),
        ({"epsilon_high": -1.0}, "epsilon_high must be at least 0, not -1.0"),
        ({"steps_per_generation": 0}, "steps_per_generation must be at least 1, not 0"),
        ({"vllm_max_model_length": 0}, "vllm_max_model_length must be at least 1, not 0"),
        ({"vllm_server_timeout": -1.0}, "vllm_server_timeout must be at least 0, not -1.0"),
        (
            {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "host:8000"},
            "vllm_server_base_url: 'host:8000' does not begin with http://",
        ),
    ],
)
def test_bad_rollout_values(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyRolloutConfig(**values)


def test_windows_and_groups() -> None:
    args = PolicyRolloutConfig(
        num_generations=4,
        num_policy_generations=2,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=4,
        steps_per_generation=8,
    )
    assert (args.group_size, args.samples_per_step) == (6, 12)
    assert (args.steps_per_window, args.groups_per_window) == (2, 4)


def test_what_a_resumed_run_may_change_exists() -> None:
    known = {f.name for config in CONFIGS for f in dataclasses.fields(config)}
    assert known >= FREE_ON_RESUME
