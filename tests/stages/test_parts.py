"""The small parts of the stages: rows, windows, learning rates, optimiser state."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastmpi.config import CPTConfig
from fastmpi.data.samples import Prompt
from fastmpi.stages.optimizer import (
    learning_rate,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
)
from fastmpi.stages.rows import Rows, shuffled
from fastmpi.stages.shares import lazy_prompts
from fastmpi.stages.window import Window


def test_rows_fill_in_what_may_be_left_out() -> None:
    rows = Rows([{"prompt": "a"}, {"prompt": "b", "id": 7, "images": None}], ["prompt"])
    assert rows[0] == {"id": "0", "prompt": "a", "images": []}
    assert rows[1] == {"id": 7, "prompt": "b", "images": []}
    assert rows.digest != Rows([{"prompt": "a"}], ["prompt"]).digest


def test_rows_of_a_hugging_face_data_set() -> None:
    from datasets import Dataset

    rows = Rows(Dataset.from_list([{"id": "x", "prompt": "a"}] * 2), ["prompt"])
    assert rows[1] == {"id": "x", "prompt": "a", "images": []} and len(list(rows)) == 2


def test_shuffles_repeat_and_differ() -> None:
    assert shuffled(50, 1, 0).tolist() == shuffled(50, 1, 0).tolist()
    assert sorted(shuffled(50, 1, 0)) == list(range(50))
    assert shuffled(50, 1, 0).tolist() != shuffled(50, 1, 1).tolist()
    assert shuffled(50, 1, 0).tolist() != shuffled(50, 2, 0).tolist()


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_schedules_are_transformers(kind: str) -> None:
    from transformers import get_scheduler

    name = "constant_with_warmup" if kind == "constant" else kind
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=10)
    args = CPTConfig(learning_rate=2.0, lr_scheduler_type=kind, warmup_steps=3)
    for step in range(10):
        assert learning_rate(args, step, 10) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step(), scheduler.step()


def test_warmup_ratio_rounds_up() -> None:
    args = CPTConfig(learning_rate=1.0, lr_scheduler_type="constant", warmup_ratio=0.25)
    rates = [learning_rate(args, step, 10) for step in range(4)]
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_optimizer_state_round_trip_and_decay() -> None:
    def make() -> tuple[dict, torch.optim.AdamW]:
        parameters = {
            name: torch.nn.Parameter(torch.ones(shape))
            for name, shape in (("w", (2, 2)), ("b", (2,)))
        }
        return parameters, make_optimizer(parameters, CPTConfig(weight_decay=0.5))

    def step(parameters: dict, optimizer: torch.optim.AdamW) -> None:
        for parameter in parameters.values():
            parameter.grad = parameter.detach() * 0.1
        optimizer.step()

    parameters, optimizer = make()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert optimizer.param_groups[1]["params"] == [parameters["b"]]
    step(parameters, optimizer)
    kept = {name: t.clone() for name, t in optimizer_tensors(optimizer, parameters).items()}
    again, other = make()
    for name, parameter in again.items():
        parameter.data.copy_(parameters[name])
    load_optimizer_tensors(other, again, kept.items())
    step(parameters, optimizer), step(again, other)
    assert all(again[name].equal(parameters[name]) for name in again)
    with pytest.raises(ValueError, match="optimizer state of unknown parameter 'w'"):
        load_optimizer_tensors(other, {"b": again["b"]}, kept.items())


def window() -> Window:
    lengths = torch.tensor([2, 1, 3, 2])
    return Window(
        prompts=[Prompt(np.arange(n)) for n in (4, 4, 3, 3)],
        rows=torch.tensor([5, 5, 6, 6]),
        policy_aware=torch.tensor([False, True, False, True]),
        ids=torch.arange(8),
        sampled_logprob=-torch.arange(8.0),
        lengths=lengths,
        finished=torch.tensor([True, False, True, True]),
        parts={"exact": torch.tensor([0.0, 1.0, float("nan"), 1.0], dtype=torch.float64)},
        rewards=torch.arange(4.0, dtype=torch.float64),
        advantages=torch.arange(4.0, dtype=torch.float64),
        old_logprob=torch.arange(8.0),
        extra={"note": list("abcd")},
    )


def test_windows_are_cut_and_joined() -> None:
    whole = window()
    part = whole.part(1, 3)
    assert part.ids.tolist() == [2, 3, 4, 5] and part.old_logprob.tolist() == [2, 3, 4, 5]
    assert part.response(1).tolist() == [3, 4, 5] and part.extra == {"note": ["b", "c"]}
    assert part.first_column.tolist() == [0 - 4, 1 - 3]
    sample = part.sample(1)
    assert sample.ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert sample.weights.tolist() == [0, 0, 0, 1, 1, 1]
    joined = Window.join([whole.part(0, 1), whole.part(1, 3), whole.part(3, 4), whole.part(0, 0)])
    assert joined.tensors().keys() == whole.tensors().keys()
    for name, values in whole.tensors().items():
        torch.testing.assert_close(joined.tensors()[name], values, equal_nan=True)
    assert joined.extra == whole.extra and list(joined.prompts) == list(whole.prompts)


def test_responses_are_taken_in_any_order() -> None:
    whole = window()
    taken = whole.take([2, 0])
    assert taken.ids.tolist() == [3, 4, 5, 0, 1] and taken.rows.tolist() == [6, 5]
    assert whole.columns([2, 0]).tolist() == [3, 4, 5, 0, 1]
    assert len(whole.take([])) == 0 and len(whole.columns([])) == 0
    assert whole.take([]).first_column.dtype == torch.int64


def test_prompts_are_made_when_they_are_looked_at() -> None:
    made: list[int] = []

    def prompt(row: int) -> Prompt:
        made.append(row)
        return Prompt(np.full(row, 7))

    prompts = lazy_prompts([2, 3, 2], prompt)
    assert not made and isinstance(prompts[0], Prompt)
    assert len(prompts[2].ids) == len(prompts[0].ids) == 2 and prompts[2].images == ()
    assert made == [2]


def test_windows_survive_a_checkpoint(tmp_path) -> None:
    from fastmpi.checkpoint import read_tensors, write_tensors

    whole = window()
    write_tensors(tmp_path / "w.safetensors", whole.tensors())
    again = Window.from_tensors(read_tensors(tmp_path / "w.safetensors"), whole.prompts)
    for name, values in whole.tensors().items():
        torch.testing.assert_close(again.tensors()[name], values, equal_nan=True)
    assert again.ref_logprob is None


def test_evaluation_rows(world) -> None:
    """Measured at the start and the end of a run: the loss of rows falls, rewards are logged."""
    from fastmpi.tracking import read_metrics

    settings = {"eval_dataset": world.rows[:3], "eval_steps": 3, "max_steps": 6}
    result = world.trainer("sft", **settings).train()
    first, last = [line for line in read_metrics(result.output_dir) if "eval/loss" in line]
    assert (first["step"], last["step"]) == (3, 6) and last["eval/loss"] < first["eval/loss"]

    def right(completion_ids, arm, answer, **_):
        assert set(arm) == {"policy_free"} or len(arm) == 12
        return [float(ids[0] % 2) for ids in completion_ids]

    settings = {**settings, "eval_steps": 2, "max_steps": 2}
    result = world.trainer(
        "rl", reward_funcs=right, evaluate=lambda model, step: {"x": step}, **settings
    ).train()
    (line,) = [line for line in read_metrics(result.output_dir) if "eval/x" in line]
    assert line["eval/x"] == 2 and line["eval/reward"] == line["eval/rewards/right/mean"]
    assert 1 <= line["eval/completions/mean_length"] <= 6


def test_a_single_picture_is_a_list_of_one() -> None:
    rows = Rows([{"prompt": "a", "images": "a.png"}, {"prompt": "b", "images": {"path": "b"}}], [])
    assert rows[0]["images"] == ["a.png"] and rows[1]["images"] == [{"path": "b"}]
