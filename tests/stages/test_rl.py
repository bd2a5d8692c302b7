"""PolicyRollout: what is sampled, scored, filtered and trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastmpi.rollout.engine import Response
from fastmpi.stages.scoring import logprobs, with_logprobs
from fastmpi.tracking import read_metrics

GROUP = 6  # 3 + 3


class ScriptedEngine:
    """Answers `answer(prompt's index among all so far, response)` token ids; keeps the prompts."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.prompts, self.streams = answer, [], []

    def generate(
        self, prompts: Any, num_responses: Any, params: Any, *, streams: Any = None, **_: Any
    ) -> list[list[Response]]:
        self.prompts += prompts
        self.streams += list(streams)
        return [
            [self.response(stream, i) for i in range(count)]
            for stream, count in zip(streams, num_responses, strict=True)
        ]

    def response(self, stream: int, index: int) -> Response:
        ids = np.array(self.answer(stream, index), np.int64)
        return Response(ids, np.full(len(ids), -1.0, np.float32), len(ids) < 6)


def begun(world: Any, **settings: Any) -> Any:
    trainer = world.trainer("rl", **settings)
    trainer.begin()
    return trainer


def test_groups_hold_both_arms(world) -> None:
    engine = ScriptedEngine(lambda stream, index: [30 + stream, 40 + index, 7])
    window = begun(world, engine=engine).next_window({})
    assert window.policy_aware.tolist() == [False] * 3 + [True] * 3 + [False] * 3 + [True] * 3
    assert window.rows[:GROUP].unique().numel() == 1
    # group 0 is sampled on streams 0 and 1, group 1 on 2 and 3
    assert [window.response(i)[0] - 30 for i in range(12)] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert engine.streams == [0, 2, 1, 3]


def test_advantages_are_pooled_over_both_arms(world) -> None:
    """Only the policy-aware arm is right: its three share the plus, the others the minus."""
    engine = ScriptedEngine(lambda stream, index: [30 + stream % 2, 7])

    def aware(arm: list[str], **_: Any) -> list[float]:
        return [float(name == "policy_aware") for name in arm]

    trainer = begun(world, engine=engine, reward_funcs=aware)
    metrics: dict[str, float] = {}
    window = trainer.next_window(metrics)
    deviation = np.std([0, 0, 0, 1, 1, 1], ddof=1) + 1e-4
    expected = np.array([-0.5] * 3 + [0.5] * 3) / deviation
    assert window.advantages[:GROUP].numpy() == pytest.approx(expected)
    assert metrics["reward"] == 0.5 and metrics["reward_std"] == pytest.approx(deviation - 1e-4)
    assert (metrics["accuracy/policy_free"], metrics["accuracy/policy_aware"]) == (0.0, 1.0)
    assert metrics["mpi/internalization"] == 0.0
    assert metrics["frac_reward_zero_std"] == 0.0


def test_rewards_see_the_columns(world) -> None:
    seen: dict[str, Any] = {}

    def spy(completions: list[str], log_metric: Any, **columns: Any) -> list[float]:
        seen.update(columns)
        log_metric("custom", 3.0)
        return [0.0] * len(completions)

    metrics: dict[str, float] = {}
    window = begun(world, reward_funcs=[spy]).next_window(metrics)
    ids = [world.rows[i]["id"] for i in window.rows.tolist()]
    assert seen["id"] == ids
    assert seen["policy_id"] == [world.rows[i]["policy_id"] for i in window.rows.tolist()]
    assert seen["answer"] == [world.rows[i]["answer"] for i in window.rows.tolist()]
    assert seen["arm"][:GROUP] == ["policy_free"] * 3 + ["policy_aware"] * 3
    assert metrics["custom"] == 3.0


def test_no_old_pass_in_a_window_of_one_step(world, monkeypatch: pytest.MonkeyPatch) -> None:
    assert begun(world).next_window({}).old_logprob is None
    assert begun(world, num_iterations=2).next_window({}).old_logprob is not None
    assert begun(world, steps_per_generation=4).next_window({}).old_logprob is not None


def test_logprobs_are_those_after_the_policy_free_prompt(world) -> None:
    """Against a forward of each unshared row, with a temperature."""
    from fastmpi.data.batch import ForestBatch

    trainer = begun(world, temperature=0.7, max_tokens_per_microbatch=70)
    window = trainer.next_window({})
    found = logprobs(trainer, window, trainer.model)
    expected = []
    with torch.no_grad():
        for index, row in enumerate(window.rows.tolist()):
            prompt = trainer.processor.prompt(
                [{"role": "user", "content": [{"type": "image"}, text_of(world.rows[row])]}],
                [trainer.processor.image(image) for image in world.rows[row]["images"]],
            )
            sample = window.sample(index)
            assert sample.ids.tolist() == prompt.ids.tolist() + window.response(index).tolist()
            batch = ForestBatch.from_samples([sample], trainer.processor, share=False)
            logits = trainer.model(batch, lambda hidden, head: hidden @ head.T) / 0.7
            logs = logits.log_softmax(-1)
            for place in range(len(prompt.ids), len(sample.ids)):
                expected.append(logs[place - 1, sample.ids[place]])
    assert found == pytest.approx(torch.stack(expected), abs=1e-5)
    free = ~window.policy_aware.repeat_interleave(window.lengths)
    assert found[free] == pytest.approx(window.sampled_logprob[free], abs=1e-4)
    assert not np.allclose(found[~free], window.sampled_logprob[~free], atol=1e-3)


def text_of(row: dict[str, Any]) -> dict[str, str]:
    return {"type": "text", "text": row["prompt"]}


@pytest.mark.parametrize("use_peft", [True, False])
def test_the_reference_is_the_start_of_the_stage(world, use_peft: bool) -> None:
    trainer = begun(world, beta=0.1, use_peft=use_peft, learning_rate=0.1)
    trainer.model.train()
    first = trainer.next_window({})
    assert first.ref_logprob.equal(logprobs(trainer, first, trainer.model))
    for _ in range(2):
        trainer.optimizer_step(trainer.next_step())
    again = with_logprobs(trainer, first)
    assert again.ref_logprob.equal(first.ref_logprob)
    assert not logprobs(trainer, first, trainer.model).allclose(first.ref_logprob, atol=1e-3)


def test_the_reference_survives_resuming(world) -> None:
    settings = {"beta": 0.1, "max_steps": 2, "save_strategy": "steps", "learning_rate": 1e-2}
    world.trainer("rl", **settings).train()
    trainer = world.trainer("rl", **{**settings, "max_steps": 3})
    trainer.train(resume_from_checkpoint="auto")
    line = read_metrics(trainer.args.output_dir)[-1]
    assert line["step"] == 3 and line["kl"] > 1e-4


def test_no_frozen_copy_without_beta(world) -> None:
    assert begun(world).reference is None
    assert begun(world, beta=0.1, use_peft=True).reference is None


def test_plain_groups_need_no_policies(world) -> None:
    rows = [{k: v for k, v in row.items() if k != "policy_id"} for row in world.rows]
    trainer = world.trainer(
        "rl", rows=rows, policies=None, num_generations=6, num_policy_generations=0, max_steps=1
    )
    metrics = trainer.train().metrics
    assert "reward/policy_aware" not in metrics and "mpi/policy_gap_logp" not in metrics
    assert metrics["mpi/prompt_tokens_saved"] == 0


def test_truncated_responses_can_be_left_out(world) -> None:
    engine = ScriptedEngine(lambda stream, index: [30, 31, 32, 33, 34, 35][: 6 if index else 3])
    trainer = begun(world, engine=engine, mask_truncated_completions=True, loss_type="grpo")
    step = trainer.next_step()
    # lengths 3, 6, 6; the long ones never finished
    weights = step.objective.token_weights
    assert weights[:3].tolist() == pytest.approx([1 / (12 * 3), 0, 0])
    trainer.model.train()
    metrics = trainer.optimizer_step(step)
    assert step.objective.sums["tokens"] == 4 * 3
    assert metrics["grad_norm"] >= 0


def test_loss_weights_of_a_step_add_up(world) -> None:
    for loss_type in ("dapo", "bnpo", "grpo"):
        trainer = begun(world, loss_type=loss_type, engine=ScriptedEngine(ragged))
        step = trainer.next_step()
        lengths = trainer.window.lengths
        assert float((step.objective.token_weights * lengths).sum()) == pytest.approx(1)


def ragged(stream: int, index: int) -> list[int]:
    return list(range(30, 31 + (stream + index) % 5))


class TestDynamicSampling:
    settings = {"dynamic_sampling": True, "max_resample_batches": 3, "max_steps": 5}

    def test_refills_with_further_rows(self, world) -> None:
        """Of every batch only the second group is half right."""

        def second(id: list[str], **_: Any) -> list[float]:
            return [float(i >= GROUP and i % 2) for i in range(len(id))]

        metrics: dict[str, float] = {}
        trainer = begun(world, reward_funcs=second, **self.settings)
        window = trainer.next_window(metrics)
        assert len(window) == 2 * GROUP and metrics["sampling/batches"] == 2
        assert set(window.rewards.tolist()) == {0.0, 1.0}
        assert metrics["reward"] == 0.25  # of all that was sampled
        assert trainer.sampler.batches_drawn == 2

    def test_format_does_not_pass(self, world) -> None:
        """The filter looks at accuracy: an all-wrong group whose format varies is dropped."""

        def wrong(completions: list[str], **_: Any) -> list[float]:
            return [0.0] * len(completions)

        def format(completions: list[str], **_: Any) -> list[float]:
            return [float(i % 2) for i in range(len(completions))]

        stopped = world.trainer("rl", reward_funcs=[wrong, format], **self.settings).train()
        assert stopped.global_step == 0
        other = world.trainer(
            "rl", reward_funcs=[wrong, format], accuracy_reward="format", **self.settings
        )
        assert other.train().global_step == 5

    def test_stops_early_and_says_why(self, world) -> None:
        calls = []

        def solved_later(completions: list[str], **_: Any) -> list[float]:
            calls.append(1)
            return [1.0 if len(calls) > 2 else float(i % 2) for i in range(len(completions))]

        trainer = world.trainer(
            "rl", reward_funcs=solved_later, save_strategy="steps", **self.settings
        )
        result = trainer.train()
        assert result.global_step == 2 and len(calls) == 2 + 3
        assert result.stopped == (
            "dynamic sampling found 0 of 2 groups with a mean solved_later in (0.01, 0.99) among "
            "3 batches of rows (max_resample_batches); the rest is solved, or out of reach"
        )
        assert (result.output_dir / "model.safetensors").exists()
        assert (result.output_dir / "checkpoint-2").exists()


def test_an_epoch_sees_whole_batches_of_rows(world) -> None:
    trainer = begun(world)
    assert (trainer.sampler.rows_per_batch, trainer.steps_per_epoch) == (2, 5)
    drawn = [row for _ in range(5) for row in trainer.next_window({}).rows[::GROUP].tolist()]
    assert sorted(drawn) == list(range(10))
    assert trainer.next_window({}).rows[::GROUP].tolist() != drawn[:2]


def test_windows_are_used_part_by_part(world) -> None:
    trainer = begun(world, steps_per_generation=4, num_iterations=2)
    assert trainer.steps_of_window == 4
    steps = [trainer.next_step() for _ in range(4)]
    window = trainer.window
    tokens = [[s.ids.tolist() for s in step.samples] for step in steps]
    assert tokens[0] == tokens[2] != tokens[1] == tokens[3]
    assert len(window) == 24 and [len(step.samples) for step in steps] == [12] * 4
    assert [bool(step.metrics) for step in steps] == [True, False, False, False]
    trainer.next_step()
    assert trainer.window is not window


def test_completions_are_written(world) -> None:
    import pyarrow.parquet

    result = world.trainer("rl", max_steps=4, logging_steps=2, log_completions=True).train()
    folder = result.output_dir / "completions"
    assert sorted(path.name for path in folder.iterdir()) == [
        "completions_00002.parquet",
        "completions_00004.parquet",
    ]
    rows = pyarrow.parquet.read_table(folder / "completions_00002.parquet").to_pylist()
    assert len(rows) == 12
    assert rows[0]["step"] == 2 and rows[0]["arm"] == "policy_free"
    assert rows[5]["arm"] == "policy_aware" and rows[0]["completion"]
    assert {"id", "policy_id", "prompt", "reward", "advantage", "letters", "short"} <= set(rows[0])


def test_metric_names(world) -> None:
    result = world.trainer("rl", max_steps=2, beta=0.1).train()
    line = read_metrics(result.output_dir)[0]
    trls = """reward reward_std rewards/letters/mean rewards/letters/std frac_reward_zero_std
        completions/mean_length completions/min_length completions/max_length
        completions/clipped_ratio entropy kl clip_ratio/low_mean clip_ratio/high_mean
        clip_ratio/region_mean grad_norm learning_rate loss num_tokens step_time epoch
        sampling/sampling_logp_difference/mean"""
    own = """reward/policy_free reward/policy_aware accuracy/policy_free accuracy/policy_aware
        mpi/policy_gap_logp mpi/prompt_tokens_saved perf/gen_s perf/logp_s perf/train_s
        perf/tokens_per_s perf/prefix_ratio cpu_seconds"""
    assert {*trls.split(), *own.split()} <= set(line)
    assert line["mpi/prompt_tokens_saved"] > 10
    assert line["perf/prefix_ratio"] > 1.5
    assert result.metrics["step"] == 2


def test_learns_what_is_rewarded(world) -> None:
    def low_ids(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(np.mean([token < 150 for token in ids])) for ids in completion_ids]

    result = world.trainer(
        "rl",
        reward_funcs=low_ids,
        max_steps=12,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
    ).train()
    curve = [line["reward"] for line in read_metrics(result.output_dir)]
    assert np.mean(curve[-3:]) > np.mean(curve[:3]) + 0.1
