"""Two processes take the steps that one takes, also where their work is unequal."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fastmpi.tracking import read_metrics

SCRIPT = """
import json, sys
from fastmpi.policies import Policy, PolicySet
from fastmpi.stages.cpt import CPTTrainer
from fastmpi.stages.rl import PolicyRolloutTrainer

job = json.load(open(sys.argv[1]))
policies = [Policy(n, [{"role": "system", "content": t}]) for n, t in job["policies"].items()]

def length(completion_ids, **_):
    return [float(len(ids)) for ids in completion_ids]

trainer = {"cpt": CPTTrainer, "rl": PolicyRolloutTrainer}[job["stage"]]
more = {"reward_funcs": length} if job["stage"] == "rl" else {}
settings = trainer.config_class(output_dir=sys.argv[2], **job["settings"])
more["policies"] = PolicySet.from_policies(policies)
trainer(job["model"], settings, job["rows"], **more).train()
"""


def launch(job: Path, output: Path, processes: int) -> Path:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), **common} if processes > 1 else {}
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, str(job), str(output)],
                env={**os.environ, **own, "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
            )
        )
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-3000:]
    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("cpt", {"per_device_train_batch_size": 4, "max_tokens_per_microbatch": 110}),
        (
            "rl",
            {
                "per_device_train_batch_size": 12,
                "num_generations": 3,
                "max_completion_length": 6,
                "beta": 0.1,
                "scale_rewards": "batch",
            },
        ),
    ],
)
def test_two_processes_equal_one(world, tmp_path: Path, stage: str, settings: dict) -> None:
    rows = [{**row, "images": [str(tmp_path / f"{i % 4}.png")]} for i, row in enumerate(world.rows)]
    for i, row in enumerate(world.rows[:4]):
        row["images"][0].save(tmp_path / f"{i}.png")
    settings = {
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        **settings,
    }
    found = []
    for processes in (1, 2):
        own = {"per_device_train_batch_size": settings["per_device_train_batch_size"] // processes}
        job = tmp_path / f"job-{processes}.json"
        texts = {name: policy.text for name, policy in world.policies.items()}
        job.write_text(
            json.dumps(
                {
                    "stage": stage,
                    "settings": {**settings, **own},
                    "rows": rows[:9],  # an odd number: the last step of CPT is uneven
                    "model": str(world.model),
                    "policies": texts,
                }
            )
        )
        found.append(launch(job, tmp_path / f"out-{processes}", processes))
    one, two = (load_file(folder / "model.safetensors") for folder in found)
    for name, tensor in one.items():
        assert two[name].allclose(tensor, rtol=1e-4, atol=2e-5), name
    names = ("loss", "reward", "reward_std", "kl", "num_tokens", "completions/max_length")
    for first, second in zip(*map(read_metrics, found), strict=True):
        for name in set(names) & set(first):
            assert second[name] == pytest.approx(first[name], rel=1e-3, abs=1e-6), name
    shards = sorted(path.name for path in (found[1] / "checkpoint-3" / "state").iterdir())
    assert "rng-00001-of-00002.safetensors" in shards and "optimizer.safetensors" in shards
