"""Windows that are sampled beside the updates, by a vLLM server and on several processes."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from processes import launch, run  # noqa: E402
from test_processes import into, make_jobs, relative  # noqa: E402
from test_rollouts import ASYNC, BEHIND, lines, no_thread_stays  # noqa: E402, F401
from vllm_server_standin import serving  # noqa: E402

from fastmpi.tracking import read_metrics  # noqa: E402


def test_a_server_samples_beside_the_update(world) -> None:
    with serving(world.model) as server:
        trainer = world.trainer(
            "rl",
            **{**ASYNC, "learning_rate": 0.3},
            max_steps=4,
            use_vllm=True,
            vllm_mode="server",
            vllm_server_base_url=server.url,
        )
        threads: set[str] = set()
        batch = trainer.sampler.batch

        def where(*args: Any) -> Any:
            threads.add(threading.current_thread().name)
            return batch(*args)

        trainer.sampler.batch = where
        trainer.train()
        asked = [path for path, _ in server.asked if "generate" not in path]
    assert threads == {"MainThread", "fastmpi-rollouts"}
    # the first two windows are of the first weights, the others of those before the last update
    assert asked == ["/collective_rpc", "/reset_prefix_cache"] * 3
    assert lines(trainer, BEHIND) == [0, 1, 1, 1]
    gaps = lines(trainer, "sampling/sampling_logp_difference/max")
    assert gaps[0] < 1e-3 < 0.05 < min(gaps[1:])
    assert sum("perf/sync_s" in line for line in read_metrics(trainer.args.output_dir)) == 4


def test_an_interrupted_update_leaves_no_request_waiting(world) -> None:
    with serving(world.model) as server:
        trainer = world.trainer(
            "rl", **ASYNC, max_steps=3, per_device_train_batch_size=30, use_vllm=True,
            vllm_mode="server", vllm_server_base_url=server.url,
        )  # fmt: skip
        begun = threading.Event()

        def interrupted(step: Any) -> Any:
            begun.wait(10)
            raise KeyboardInterrupt

        trainer.optimizer_step = interrupted
        batch = trainer.sampler.batch

        def tell(*args: Any) -> Any:
            if threading.current_thread().name == "fastmpi-rollouts":
                begun.set()
            return batch(*args)

        trainer.sampler.batch = tell
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        count = sum("generate" in path for path, _ in server.asked)
        time.sleep(0.3)
        assert sum("generate" in path for path, _ in server.asked) == count


@pytest.mark.slow
def test_two_processes_equal_one(world, tmp_path: Path) -> None:
    """Also where dynamic sampling refills; and a resumed run is the same bit for bit."""
    job = make_jobs(world, tmp_path, **ASYNC, max_steps=4)["rl"]
    at_two = tmp_path / "broken" / "checkpoint-2"
    launch(
        [
            into(job, tmp_path / "2"),
            into(job, at_two.parent, max_steps=3),
        ],
        tmp_path / "jobs",
        2,
    )
    shutil.rmtree(tmp_path / "broken" / "checkpoint-3")
    launch([into(job, at_two.parent, at_two, max_steps=4)], tmp_path / "jobs", 2)
    run(into(job, tmp_path / "1"))
    assert relative(tmp_path / "2", tmp_path / "1") < 1e-5
    assert relative(tmp_path / "broken", tmp_path / "2") == 0
    assert [line[BEHIND] for line in read_metrics(tmp_path / "2") if BEHIND in line][-1] > 0
