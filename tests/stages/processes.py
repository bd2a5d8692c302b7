"""Jobs that run alike in this process and in several, which find one another as under torchrun.

The jobs of one launch run one after the other, since starting processes costs more than they do. As
a program: `python processes.py jobs.json`. A job: stage, settings (whose batch is of all processes
together), rows, model, policies (name -> text), resume (a checkpoint, or None), exact (norms and
rotations in float64 too), held (a file for what each process held in the end, see `_write_held`),
and death, if one of its processes is to die: {"rank", "how": "kill" or an error's words, "where":
see `_deadly`}.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

RANK, SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def odd(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that a random model's responses differ in."""
    return [float(ids[0] % 2) for ids in completion_ids]


def run(job: dict[str, Any]) -> None:
    """Trains what `job` says."""
    from fastmpi.policies import Policy, PolicySet
    from fastmpi.stages import cpt, rl, sft

    makers = {"cpt": cpt.CPTTrainer, "sft": sft.SFTTrainer, "rl": rl.PolicyRolloutTrainer}
    make: Any = makers[job["stage"]]
    texts = job["policies"].items()
    policies = [Policy(name, [{"role": "system", "content": text}]) for name, text in texts]
    more: dict[str, Any] = {"policies": PolicySet.from_policies(policies)}
    if job["stage"] == "rl":
        more["reward_funcs"] = odd
    settings = dict(job["settings"])
    settings["per_device_train_batch_size"] //= SIZE
    trainer = make(job["model"], make.config_class(**settings), job["rows"], **more)
    if "death" in job:
        _deadly(trainer, **job["death"])
    with _without_casts() if job.get("exact") else contextlib.nullcontext():
        trainer.train(resume_from_checkpoint=job.get("resume"))
    if "held" in job:
        _write_held(trainer, job["held"])


@contextlib.contextmanager
def _without_casts() -> Iterator[None]:
    """The model's own casts to float32, of norms and of the tower's rotations, would make of an
    error of 1e-16 one of 1e-8 as soon as it changes how a number is rounded."""
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as stock

    def norm(self: Any, x: Any) -> Any:
        return self.weight * (x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt())

    def rotated(q: Any, k: Any, cos: Any, sin: Any) -> tuple[Any, Any]:
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
        return tuple(x * cos + stock.rotate_half(x) * sin for x in (q, k))

    with (
        mock.patch.object(stock.Qwen2_5_VLRMSNorm, "forward", norm),
        mock.patch.object(stock, "apply_rotary_pos_emb_vision", rotated),
    ):
        yield


def _write_held(trainer: Any, file: str) -> None:
    """ "{file}-{rank}.json": bytes of parameters and of AdamW's state on this process. "{file}.
    safetensors": the weights as vLLM is given them (rl)."""
    from safetensors.torch import save_file

    from fastmpi.models.checkpoint_weights import checkpoint_weights
    from fastmpi.stages.sharding import local

    moments = [v for s in trainer.optimizer.state.values() for n, v in s.items() if n != "step"]
    held = [sum(local(t).nbytes for t in ts) for ts in (trainer.model.parameters(), moments)]
    Path(f"{file}-{RANK}.json").write_text(json.dumps(held))

    class Engine:
        awake = True

        def sync(self, model: Any) -> None:
            if RANK == 0:
                save_file(checkpoint_weights(model), f"{file}.safetensors")

        def sleep(self) -> None:
            pass

    if hasattr(trainer, "vllm"):
        trainer.vllm.engine = Engine()
        with trainer.vllm.awake():
            pass


def _deadly(trainer: Any, rank: int, how: str, where: str, log: str) -> None:
    """Makes process `rank` die in step 2. where: "rollout" (the others are busy for two minutes),
    "backward" or "saving"."""
    from fastmpi.stages import saving

    def die(*_: Any) -> None:
        if trainer.state.global_step < 1:
            return
        if RANK != rank:
            time.sleep(120 if where == "rollout" else 0)
            return
        Path(log).write_text(str(time.time()))
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(how)

    def after(function: Callable[..., Any]) -> Callable[..., Any]:
        def both(*args: Any, **named: Any) -> Any:
            result = function(*args, **named)
            die()
            return result

        return both

    if where == "rollout":
        trainer.sampler.batch = after(trainer.sampler.batch)
    elif where == "backward":
        trainer.forward = after(trainer.forward)
    else:
        saving.checkpoints.rng_state = after(saving.checkpoints.rng_state)  # type: ignore[attr-defined]


class Process(subprocess.Popen):
    """One of a launch. What it says goes to a file, so that none waits for a reader."""

    def __init__(self, command: list[str], environment: dict[str, str], said: Path, store: Any):
        self.said, self.store = said, store  # which lives as long as any process
        with said.open("wb") as file:
            super().__init__(command, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def end(self, timeout: float) -> str:
        """Waits until it has ended, and ends it when that takes too long; what it said."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        return self.said.read_text(errors="replace")


def start(
    jobs: list[dict[str, Any]], file: Path, processes: int, **variables: str
) -> list[Process]:
    """`processes` processes that run `jobs`. variables: more of their environment.

    As torchrun does, this process listens where they find one another, so that no port has to be
    free a second time.
    """
    from torch.distributed import TCPStore

    file.write_text(json.dumps(jobs))
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    return [
        Process(
            [sys.executable, __file__, str(file)],
            {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            file.with_name(f"{file.name}-{rank}.txt"),
            store,
        )
        for rank in range(processes)
    ]


def launch(jobs: list[dict[str, Any]], file: Path, processes: int) -> None:
    """Runs all jobs in `processes` processes; an error of any of them is an AssertionError that
    shows how each ended."""
    started = start(jobs, file, processes)
    said = [process.end(timeout=1200) for process in started]  # a busy machine takes ten minutes
    ends = [f"{p.returncode}: {text[-3000:]}" for p, text in zip(started, said, strict=True)]
    assert not any(process.returncode for process in started), "\n".join(ends)


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(job)
