"""Sharded processes take the steps that one takes, with and without an adapter, where only one of
them has a picture or a sample too; each holds its share; and any run goes on with any other's
state, sharded or not."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastmpi.config import TrainingConfig
from fastmpi.data.batch import ForestBatch
from fastmpi.data.prompts import render
from fastmpi.models.forest_model import ForestModel
from fastmpi.stages.launching import make_accelerator
from fastmpi.stages.sharding import Shards, is_sharded
from fastmpi.tracking import read_metrics

sys.path.insert(0, str(Path(__file__).parent))
from processes import launch, run, start  # noqa: E402
from test_processes import SAME, into, make_jobs, relative, weights  # noqa: E402

FULL = {"use_peft": False, "freeze_vision": False, "freeze_merger": False}
LORA = {"use_peft": True, "lora_r": 6}


def sharded_jobs(world: Any, folder: Path) -> dict[str, dict[str, Any]]:
    """All stages, all weights (the tower's with them) or an adapter, in numbers precise enough to
    see what is wrong rather than rounded. Of three processes one at most has a picture in stages 1
    and 2; in the second step one alone has a sample."""
    plain = make_jobs(world, folder, dtype="float64", save_steps=1)
    jobs = {}
    for stage, job in plain.items():
        rows = job["rows"]
        if stage != "rl":
            rows = [
                {**row, "images": row["images"] if row["id"] == "row-3" else []} for row in rows
            ]
        steps = {"max_steps": 2 + (stage == "rl")}  # the start is not the weights of now any more
        for kind, settings in {"full": FULL, "lora": LORA}.items():
            settings = {**job["settings"], **settings, **steps}
            jobs[f"{stage}-{kind}"] = {**job, "rows": rows, "settings": settings, "exact": True}
    return jobs


@pytest.mark.slow
def test_shards_equal_one_process_and_go_on_anywhere(world, tmp_path: Path) -> None:
    jobs = sharded_jobs(world, tmp_path)
    cut = {
        n: {**into(j, tmp_path / f"3-{n}", fsdp=True), "held": str(tmp_path / n)}
        for n, j in jobs.items()
    }
    middle = into(cut["rl-full"], tmp_path / "3+3", tmp_path / "3-rl-full" / "checkpoint-1")
    launch([*cut.values(), middle], tmp_path / "jobs-3", 3)
    for name, job in jobs.items():
        run({**into(job, tmp_path / f"1-{name}"), "held": str(tmp_path / f"whole-{name}")})
        assert relative(tmp_path / f"3-{name}", tmp_path / f"1-{name}") < 1e-10, name
        same_metrics(tmp_path / f"3-{name}", tmp_path / f"1-{name}")
        shares(tmp_path, name)
    assert weights(tmp_path / "3+3").equal(weights(tmp_path / "3-rl-full"))
    for name in ("rl-full", "rl-lora"):
        given, saved = load_file(tmp_path / f"{name}.safetensors"), tmp_path / f"3-{name}"
        saved = load_file(saved / "model.safetensors")
        assert given.keys() == saved.keys() and all(given[k].equal(saved[k]) for k in saved)
    goes_on_anywhere(jobs, tmp_path)


def goes_on_anywhere(jobs: dict[str, dict[str, Any]], folder: Path) -> None:
    """From three processes' shards on two and without shards, and from a whole state on two."""
    some = {name: jobs[name] for name in ("cpt-full", "sft-lora", "rl-full", "rl-lora")}
    at = {f"{n}-{name}": folder / f"{n}-{name}" / "checkpoint-1" for n in (1, 3) for name in some}
    state = {path.name for path in (at["3-cpt-full"] / "state").iterdir()}
    files = {f"optimizer-{rank:05d}-of-00003.safetensors" for rank in (1, 2, 3)}
    assert files < state and "optimizer.safetensors" not in state
    on_two = [
        into(job, folder / f"{n}+2-{name}", at[f"{n}-{name}"], fsdp=True)
        for n in (1, 3)
        for name, job in some.items()
    ]
    # bfloat16, twice: in shards a layer is gathered in the type that it is multiplied in
    half = {**jobs["sft-full"]["settings"], "dtype": "float32", "bf16": True}
    half = {**jobs["sft-full"], "settings": half}
    both = [into(half, folder / f"half-{fsdp}", fsdp=fsdp) for fsdp in (False, True)]
    launch([*on_two, *both], folder / "jobs-2", 2)
    for name, job in some.items():
        run(into(job, folder / f"3+1-{name}", at[f"3-{name}"]))
        for other in ("1+2", "3+2", "3+1"):
            found = relative(folder / f"{other}-{name}", folder / f"1-{name}")
            assert found < 1e-10, (name, other)
    assert relative(folder / "half-True", folder / "half-False") < 1e-7


def same_metrics(found: Path, expected: Path) -> None:
    for first, other in zip(read_metrics(expected), read_metrics(found), strict=True):
        for key in {*SAME, "grad_norm"} & set(first):
            assert other[key] == pytest.approx(first[key], rel=1e-6, abs=1e-9), key


def shares(folder: Path, name: str) -> None:
    """A third of the matrices, and all vectors, on each process; no more than 8 % over a third."""
    whole = json.loads((folder / f"whole-{name}-0.json").read_text())
    held = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(3)]
    for kind, all_bytes in enumerate(whole):
        if name.endswith("full") or kind == 1:  # without training the tower stays whole
            assert all(of[kind] < 1.08 * all_bytes / 3 for of in held), (name, held, whole)
        assert sum(of[kind] for of in held) >= all_bytes or kind == 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_one_process_of_one(world, tmp_path: Path, device: str) -> None:
    """In mixed precision, with and without a picture: as without shards, on any device."""
    backend, store = "nccl" if device == "cuda" else "gloo", f"file://{tmp_path}/store"
    torch.distributed.init_process_group(backend, init_method=store, rank=0, world_size=1)
    try:
        whole, model = world.load(), world.load().to("cpu")  # the shards go to the device
        row = world.rows[0]
        prompts = [render(row, whole.processor), render({**row, "images": []}, whole.processor)]
        for forest in (whole.to(device), model):
            forest.set_trainable(False, False, False)
            forest.train()
        start = {name: p.detach().cpu().clone() for name, p in whole.named_parameters()}
        shards = Shards(model, torch.device(device), torch.bfloat16)
        for prompt in prompts:
            batch = ForestBatch.from_prompts([prompt], whole.processor).to(device)
            losses = [_backward(forest, batch) for forest in (whole, model)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        for (name, one), other in zip(whole.named_parameters(), model.parameters(), strict=True):
            grad = other.grad.full_tensor() if is_sharded(other) else other.grad
            assert torch.allclose(one.grad, grad, rtol=1e-3, atol=1e-6), name
        with shards.gathered() as copy, torch.no_grad(), torch.autocast(device, torch.bfloat16):
            assert copy.hidden(batch).equal(whole.eval().hidden(batch))
        with shards.exported(is_main=True) as copy:
            assert all(p.cpu().equal(start[name]) for name, p in copy.named_parameters())
    finally:
        torch.distributed.destroy_process_group()


def _backward(forest: ForestModel, batch: ForestBatch) -> float:
    def loss(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return (hidden.float() @ head.T).logsumexp(1).mean()

    with torch.autocast(batch.tokens.device.type, torch.bfloat16):
        value = forest(batch, loss)
    value.backward()
    return float(value.detach())


@pytest.mark.slow
def test_a_shard_that_dies_ends_the_others(world, tmp_path: Path) -> None:
    """Launched as `accelerate launch --use_fsdp --fsdp_version 2` does."""
    job = into(make_jobs(world, tmp_path, save_steps=1)["cpt"], tmp_path / "out")
    death = {"rank": 1, "how": "kill", "where": "backward", "log": str(tmp_path / "death")}
    accelerate = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    efficient = {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    jobs = [{**job, "death": death}]
    processes = start(jobs, tmp_path / "jobs", 2, **accelerate, **efficient)
    errors = processes[0].end(timeout=300)
    took = time.time() - float((tmp_path / "death").read_text())
    processes[1].end(timeout=60)
    assert took < 60 and processes[0].returncode == 1
    assert "process 1 died" in errors
    state = tmp_path / "out" / "checkpoint-1" / "state"
    assert (state / "optimizer-00002-of-00002.safetensors").exists()


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({}, r"FSDP version 1: launch with --fsdp_version 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
    ],
)
def test_other_ways_of_sharding_are_refused(monkeypatch, variables: dict[str, str], why: str):
    for name, value in {"ACCELERATE_USE_FSDP": "true", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=why):
        make_accelerator(TrainingConfig())


def test_deepspeed_is_refused_by_name(monkeypatch) -> None:
    kind = SimpleNamespace(value="DEEPSPEED")
    monkeypatch.setattr(
        "accelerate.Accelerator", lambda **_: SimpleNamespace(distributed_type=kind)
    )
    with pytest.raises(ValueError, match="cannot train under DEEPSPEED"):
        make_accelerator(TrainingConfig())


def test_sampling_beside_the_update_needs_weights_elsewhere(world, monkeypatch) -> None:
    monkeypatch.setattr("fastmpi.stages.loop.is_sharded_run", lambda *_: True)
    with pytest.raises(ValueError, match="async_generate under fsdp needs a vLLM server"):
        world.trainer("rl", async_generate=True, vllm_importance_sampling_mode="token_truncate")
