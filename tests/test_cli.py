"""The command line: precedence, one-line errors, quick help. Stages are stubbed here; what they do
is tested with them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastmpi.cli import COMMANDS, main
from fastmpi.evaluation.folder import SuiteSummary
from fastmpi.evaluation.metrics import Figure
from fastmpi.flags import Flag, flag_value
from fastmpi.recipe import STAGES
from fastmpi.stages import chain, evaluating


def error_of(capsys, *words):
    assert main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def trained(monkeypatch):
    """What a stage command would train, instead of training it."""
    seen = SimpleNamespace()

    def build(plan, model, data, *, trust_recipe_code=False):
        seen.plan, seen.model, seen.data, seen.trust = plan, model, data, trust_recipe_code
        seen.train = lambda resume_from_checkpoint: SimpleNamespace(global_step=1, output_dir="out")
        return seen

    monkeypatch.setattr(chain, "build_trainer", build)
    return seen


def test_defaults_then_yaml_then_flags(trained, tmp_path, capsys):
    config = tmp_path / "sft.yaml"
    config.write_text("learning_rate: 1e-4\nmax_steps: 7\nmodel: m\ntrain_dataset: t.jsonl\n")
    assert main(["sft", "--config", str(config), "--max-steps", "9", "--bf16"]) == 0
    values = trained.plan.config
    assert (values.learning_rate, values.max_steps, values.bf16, values.lora_r) == (
        1e-4,
        9,
        True,
        16,
    )
    assert (trained.model, trained.plan.train_dataset) == ("m", "t.jsonl")
    assert "the model is in out" in capsys.readouterr().out


def test_flags_of_every_shape(trained):
    words = ["rl", "--model=m", "--train_dataset=t", "--report-to", "wandb", "tensorboard"]
    words += ["--reward-weights", "0.9", "1e-1", "--epsilon_high=none", "--share-prefix", "false"]
    words += ["--dynamic-sampling-range", "0.1", "0.9", "--num-policy-generations", "8"]
    assert main([*words, "--trust-remote-code", "--reward-funcs", "exact_answer", "a.b"]) == 0
    values = trained.plan.config
    assert values.report_to == ["wandb", "tensorboard"] and values.reward_weights == [0.9, 0.1]
    assert values.epsilon_high is None and values.share_prefix is False
    assert values.dynamic_sampling_range == (0.1, 0.9) and values.trust_remote_code is True
    assert trained.plan.reward_funcs == ("exact_answer", "a.b") and trained.trust is False


@pytest.mark.parametrize(
    "words, message",
    [
        (["sfy"], "unknown command 'sfy'; did you mean 'sft'?"),
        (["data"], "fastmpi data makes one of: clevr-policy"),
        (["sft", "--lerning-rate", "1"], "'--lerning-rate'; did you mean '--learning-rate'?"),
        (["sft", "--num_generations", "1"], "unknown flag '--num-generations'"),
        (["sft", "extra"], "unknown argument 'extra'"),
        (["sft", "--max-steps", "many"], "--max-steps: expected int, found 'many'"),
        (["sft", "--seed", "2001-99-99"], "--seed: expected int, found '2001-99-99'"),
        (["sft", "--output-dir", ""], "--output-dir is empty"),
        (["run", "a\0b.yaml"], "cannot be read: embedded null byte"),
        (["rl", "--train-dataset=t", "--reward-funcs", "exact_answr"], "mean 'exact_answer'"),
        (["sft", "--max-steps"], "argument --max-steps: expected one argument"),
        (["sft", "--train-dataset=t", "--max-steps=0"], "max_steps must be at least 1, not 0"),
        (["sft"], "sft needs --train-dataset"),
        (["eval", "m"], "the suite task needs --test-dataset"),
        (["eval", "m", "--suite", "overide"], "no suite 'overide'; did you mean 'override'?"),
        (["eval", "--suite=referral", "--test-dataset=t"], "the suite referral needs --policies"),
        (["run"], "run needs a recipe: fastmpi run recipe.yaml"),
        (["compare", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["cpt", "--config", "nowhere.yaml"], "nowhere.yaml does not exist"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(capsys, words, message):
    assert message in error_of(capsys, *words)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("rollouts need 7 GiB"),
        MemoryError("rollouts need 7 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 7 GiB"),
    ],
)
def test_running_out_of_memory_is_one_line(capsys, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("fastmpi.stages.chain.build_trainer", fail)
    message = error_of(capsys, "sft", "--train-dataset", "t")
    assert message.startswith("error: out of memory: ") and message.endswith("7 GiB")


def test_other_runtime_errors_keep_their_traceback(monkeypatch):
    def fail(*_, **__):
        return torch.zeros(2, 3) @ torch.zeros(2, 3)

    monkeypatch.setattr("fastmpi.stages.chain.build_trainer", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        main(["sft", "--train-dataset", "t"])


def test_unknown_key_in_yaml_names_file_and_nearest(tmp_path, capsys):
    config = tmp_path / "sft.yaml"
    config.write_text("lora_rr: 8\n")
    message = error_of(capsys, "sft", "--config", str(config))
    assert message.endswith("sft.yaml: sft has no setting 'lora_rr'; did you mean 'lora_r'?")


@pytest.mark.parametrize("kind", ["cpt", "sft", "rl"])
def test_what_a_stage_has_written_is_a_config(trained, tmp_path, kind):
    """`config.yaml` beside a model says how to train it again, but not whose code to run."""
    settings = STAGES[kind](trust_remote_code=True, max_steps=7)
    (tmp_path / "config.yaml").write_text(settings.to_yaml())
    words = [kind, "--config", str(tmp_path / "config.yaml"), "--train-dataset", "t.jsonl"]
    assert main(words) == 0
    assert trained.plan.config == replace(settings, trust_remote_code=False)


@pytest.mark.parametrize("key", ["trust_remote_code", "trust_recipe_code", "config"])
def test_yaml_cannot_grant_trust(tmp_path, capsys, key):
    config = tmp_path / "sft.yaml"
    config.write_text(f"{key}: true\n")
    assert f"no setting '{key}'" in error_of(capsys, "sft", "--config", str(config))


def test_dotted_flags_reach_into_a_recipe(tmp_path, capsys, monkeypatch):
    recipe_file = tmp_path / "r.yaml"
    recipe_file.write_text("data: {train: a}\nsft: {}\n")
    seen = {}

    def run(recipe, **options):
        seen.update(recipe=recipe, options=options)
        return SimpleNamespace(suites={}, model="out")

    monkeypatch.setattr(chain, "run", run)
    words = ["run", str(recipe_file), "--seed", "3", "--sft.max-steps=4", "--sft.lr-scheduler-type"]
    assert main([*words, "cosine", "--overwrite"]) == 0
    config = seen["recipe"].stage("sft").config
    assert (config.max_steps, config.lr_scheduler_type, config.seed) == (4, "cosine", 3)
    assert seen["options"]["overwrite"] and not seen["options"]["trust_recipe_code"]
    assert "did you mean 'max_steps'" in error_after(
        capsys, "run", str(recipe_file), "--sft.max-step", "1"
    )


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert f"usage: fastmpi {command}" in capsys.readouterr().out


def test_overview_lists_every_command(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


@pytest.mark.parametrize(
    "words", [["--help"], ["rl", "--help"], ["data", "clevr-policy", "--help"]]
)
def test_help_imports_no_torch(words):
    code = "import sys; from fastmpi.cli import main\n"
    code += f"try: main({words})\nexcept SystemExit: pass\n"
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'datasets')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_module_runs_like_the_command():
    words = [sys.executable, "-m", "fastmpi", "nonsense"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: unknown command 'nonsense'\n"


def test_data_command_writes_a_data_set(tmp_path, capsys):
    words = ["--world", "tiny", "--num-policies", "2", "--num-train", "8", "--num-test", "4"]
    folder = tmp_path / "d"
    assert main(["data", "clevr-policy", *words, "--output-dir", str(folder)]) == 0
    assert len((folder / "test.jsonl").read_text().splitlines()) == 4
    again = error_after(capsys, "data", "clevr-policy", *words, "--output-dir", str(folder))
    assert "there already" in again


def error_after(capsys, *words):
    """The error of a command that follows another one."""
    capsys.readouterr()
    return error_of(capsys, *words)


@pytest.fixture
def evaluated(monkeypatch):
    """What `eval` would evaluate."""
    seen = SimpleNamespace()

    def evaluate_files(inputs, **options):
        seen.inputs, seen.options = inputs, options
        figure = Figure(0.5, 0.25, 0.75, 8)
        notes = {"similarity": "token-F1"}
        tokens = Figure(1234.5, 1000, 2000, 8)
        return {"task": SuiteSummary({"accuracy": figure, "prompt_tokens": tokens}, notes=notes)}

    monkeypatch.setattr(evaluating, "evaluate_files", evaluate_files)
    return seen


def test_eval_takes_suites_with_commas_or_from_a_file(evaluated, tmp_path, capsys):
    for name in ("test", "policies"):
        (tmp_path / f"{name}.jsonl").write_text("{}")
    words = ["eval", "m", "--data-dir", str(tmp_path)]
    assert main([*words, "--suite", "task, in-context", "--output-dir", "out", "--overwrite"]) == 0
    assert (evaluated.inputs.model, evaluated.inputs.suites) == ("m", ["task", "in-context"])
    assert evaluated.options["overwrite"] == "always"
    shown = capsys.readouterr().out
    assert shown.splitlines()[1].split() == [
        "task",
        "accuracy",
        "0.500",
        "0.250",
        "to",
        "0.750",
        "8",
    ]
    assert "1,234" in shown and "task: similarity: token-F1" in shown and "are in out" in shown
    (tmp_path / "eval.yaml").write_text("suites: [efficiency]\n")
    assert main([*words, "--config", str(tmp_path / "eval.yaml")]) == 0
    assert evaluated.inputs.suites == ["efficiency"] and evaluated.options["overwrite"] == "never"
    (tmp_path / "eval.yaml").write_text("suits: [efficiency]\n")
    message = error_after(capsys, *words, "--config", str(tmp_path / "eval.yaml"))
    assert message.endswith("eval has no setting 'suits'; did you mean 'suites'?")


def test_env_as_json(capsys):
    assert main(["env", "--json"]) == 0
    assert {"versions", "devices", "backends"} == set(json.loads(capsys.readouterr().out))


def test_none_empties_a_list():
    assert flag_value(Flag("report_to", list[str]), ["none"]) == []
    assert flag_value(Flag("lora_target_modules", list[str] | None), ["none"]) is None
    assert flag_value(Flag("x", str), "1e5") == "1e5"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reward_funcs: exact_answer", "reward_funcs: expected list"),
        ("train_dataset: 5", "train_dataset: expected str"),
        ("policies: [a]", "policies: expected"),
    ],
)
def test_values_of_the_wrong_type_in_a_file(capsys, tmp_path, text, message):
    (tmp_path / "rl.yaml").write_text(text)
    assert main(["rl", "--config", str(tmp_path / "rl.yaml")]) == 2
    assert message in capsys.readouterr().err
