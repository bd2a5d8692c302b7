"""`fastmpi estimate` prints memory, tokens and time, and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastmpi.cli import main
from fastmpi.commands.estimate import _bytes, _span

RECIPE = """
model: {model}
output_dir: {output}
data:
  clevr_policy: {{world: tiny, depth: 2, num_policies: 2, num_train: 8, num_cot: 8, num_test: 2}}
sft: {{per_device_train_batch_size: 4, use_peft: false, gradient_checkpointing: false}}
rl: {{per_device_train_batch_size: 8, num_generations: 2, max_steps: 5}}
"""


@pytest.fixture
def recipe(tiny_folder, tmp_path) -> str:
    path = tmp_path / "r.yaml"
    values = {"model": tiny_folder("qwen2_5_vl"), "output": tmp_path / "run"}
    path.write_text(RECIPE.format(**values))
    return str(path)


def table(text: str, stage: str) -> dict[str, str]:
    """A stage's lines, by the words before the last column."""
    part = text.split(f"\n{stage}: ")[1] if f"\n{stage}: " in text else text.split(f"{stage}: ")[1]
    lines = [line.rsplit("  ", 1) for line in part.splitlines()[1:] if line.startswith("  ")]
    return {name.strip(): value.strip() for name, value in lines}


def test_prints_every_stage_and_writes_nothing(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", recipe, "--response-tokens", "6", "--rl.max-steps", "3"]) == 0
    out = capsys.readouterr().out
    sft = table(out.split("\nrl:")[0], "sft")
    assert sft["time"] == "unknown: --measure runs three steps"
    assert sft["weights"].endswith("KiB") and "keys and values of a rollout" not in sft
    rl = table(out, "rl")
    assert "rl: 3 steps; tokens and FLOPs are means of the first 3 of them" in out
    assert rl["responses of a window, and their tokens"] == "8, 48"
    assert rl["(gradient checkpointing of this stage)"] == "on"
    assert not (tmp_path / "run").exists()


def test_measures_time(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", recipe, "--measure", "--response-tokens", "4"]) == 0
    rl = table(capsys.readouterr().out, "rl")
    assert " to " in rl["time of the stage"] and "+-" in rl["seconds of a step"]
    assert float(rl["of it rollout and scoring"]) > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "estimate needs a recipe"),
        (["RECIPE", "--response-tokens", "0"], "--response-tokens must be at least 1"),
        (["RECIPE", "--device", "tpu"], "'tpu' is not one of cpu, cuda"),
        (["RECIPE", "--rl.lerning-rate", "1"], "did you mean 'learning_rate'"),
    ],
)
def test_mistakes(
    recipe: str, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["estimate", *(recipe if word == "RECIPE" else word for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_units() -> None:
    assert [_bytes(n) for n in (0, 1023, 2048, 3 * 2**20, 5 * 2**40)] == [
        "0 B",
        "1,023 B",
        "2.00 KiB",
        "3.00 MiB",
        "5,120.00 GiB",
    ]
    assert [_span(s) for s in (1.234, 119, 600, 7200)] == ["1.23 s", "119 s", "10.0 min", "2.0 h"]
