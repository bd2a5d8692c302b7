"""vLLM as the engine of the rl stage: made when it is first needed, given the weights of now.

Unusual: weights are handed over when responses are next sampled, not after each update, so that
updates between two windows cost nothing; and vLLM sleeps from the end of a window's sampling to the
beginning of the next, however many batches one takes.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastmpi.rollout.vllm import VLLMEngine
from fastmpi.rollout.vllm_server import VLLMServerEngine
from fastmpi.stages.saving import exported

if TYPE_CHECKING:
    from fastmpi.stages.rl import PolicyRolloutTrainer


class VLLMRollouts:
    """sync_s: seconds that the last handing over took, vLLM's start included."""

    def __init__(self, trainer: PolicyRolloutTrainer) -> None:
        self.trainer = trainer
        self.engine: VLLMEngine | VLLMServerEngine | None = None
        self.sync_s = 0.0
        self._synced_at: int | None = None  # the optimiser step whose weights vLLM has

    def check(self) -> None:
        """`ValueError` for what would not work, before anything is done."""
        if self.trainer.args.vllm_mode == "server":
            return
        if find_spec("vllm") is None:
            raise ValueError("use_vllm: vLLM is not installed: pip install fastmpi[vllm]")
        if self.trainer.accelerator.num_processes > 1:
            raise ValueError(
                "vllm_mode: colocate is for one process; several share a server (vllm_mode: server)"
            )

    @contextmanager
    def awake(self) -> Iterator[VLLMEngine | VLLMServerEngine]:
        """Inside, the engine has the model's weights of now."""
        engine = self.synced()
        try:
            yield engine
        finally:
            engine.sleep()

    def synced(self) -> VLLMEngine | VLLMServerEngine:
        """The engine, awake and with the model's weights of now."""
        began = time.perf_counter()
        if self.engine is None:
            self.engine = self._make()
        step = self.trainer.state.global_step
        if step != self._synced_at or not self.engine.awake:
            with exported(self.trainer) as model:
                self.engine.sync(model)
            self._synced_at = step
        self.sync_s = time.perf_counter() - began
        return self.engine

    def close(self) -> None:
        """Lets go of vLLM and its memory: what comes after the stage needs it."""
        self.engine = self._synced_at = None
        if torch.cuda.is_available():
            gc.collect()  # vLLM's objects refer to each other
            torch.cuda.empty_cache()

    def _make(self) -> VLLMEngine | VLLMServerEngine:
        args, trainer = self.trainer.args, self.trainer
        if args.vllm_mode == "server":
            assert args.vllm_server_base_url is not None
            return VLLMServerEngine(
                trainer.processor,
                args.vllm_server_base_url,
                args.vllm_weights_dir or Path(args.output_dir) / "vllm_weights",
                temperature=args.temperature,
                timeout=args.vllm_server_timeout,
                is_main=trainer.accelerator.is_main_process,
                wait=trainer.accelerator.wait_for_everyone,
            )
        return VLLMEngine(
            trainer.model,
            dtype=self._dtype(),
            temperature=args.temperature,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_len=args.vllm_max_model_length,
            sleep_mode=args.vllm_enable_sleep_mode,
            trust_remote_code=args.trust_remote_code,
            seed=args.seed % 2**32,
        )

    def _dtype(self) -> torch.dtype:
        """What training computes in; float32 for float64, which vLLM has not."""
        if self.trainer.args.bf16:
            return torch.bfloat16
        dtype = self.trainer.model.dtype
        return torch.float32 if dtype == torch.float64 else dtype
