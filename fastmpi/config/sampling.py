"""Settings of sampling: from which distribution, and by which engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastmpi.config.checks import check_at_least, check_between, check_gib
from fastmpi.config.training import TrainingConfig


@dataclass(kw_only=True)
class SamplingConfig(TrainingConfig):
    """How the responses of stage 3 are sampled; see `PolicyRolloutConfig`."""

    max_completion_length: int = 256
    """Most tokens of a response."""

    temperature: float = 1.0
    """Temperature of sampling, and of every log-probability of the loss."""

    top_p: float = 1.0
    """Sample from the most likely tokens that hold this much probability."""

    top_k: int = 0
    """Sample from this many most likely tokens; 0: from all."""

    rollout_memory_gib: float | None = None
    """GiB for keys and values while the model itself samples: allocated once, and kept during
    updates. As many responses as fit are written together, which changes none of them. None: what
    they need, on a GPU half of what is free at most, freed before the update."""

    use_vllm: bool = False
    """Sample with vLLM (`pip install fastmpi[vllm]`) instead of the model itself. It gets the
    weights before each window that follows an update."""

    vllm_mode: Literal["colocate", "server"] = "colocate"
    """"colocate": vLLM in this process, on its GPU; "server": `vllm serve` elsewhere."""

    vllm_server_base_url: str | None = None
    """Address of the server, http://host:port."""

    vllm_server_timeout: float = 240.0
    """Seconds to wait for the server to be up."""

    vllm_weights_dir: str | None = None
    """Folder through which the server gets the weights; it must see it under the same path. None:
    output_dir/vllm_weights."""

    vllm_gpu_memory_utilization: float = 0.3
    """Share of the GPU's memory for vLLM in this process."""

    vllm_max_model_length: int | None = None
    """Longest prompt with its response that vLLM in this process makes room for; None: the model's
    own limit."""

    vllm_enable_sleep_mode: bool = False
    """vLLM in this process gives its memory back during the update."""

    async_generate: bool = False
    """Sample the next window while the model trains on this one, by the weights from before (one
    window off-policy; ms-swift's name). Keeps a copy of what trains, or takes a vLLM server."""

    vllm_importance_sampling_correction: bool = True
    """Where vLLM samples, or async_generate: multiply the loss of policy-free responses by the
    ratio of training's probability before the update to the sampler's; costs one more forward pass
    where windows last one step. Policy-aware ones never are."""

    vllm_importance_sampling_mode: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "sequence_mask"
    """Ratios of tokens or of whole responses; "truncate": clipped to the bounds, "mask": 0 outside
    of them."""

    vllm_importance_sampling_clip_max: float | None = 3.0
    """Upper bound of these ratios; None: none."""

    vllm_importance_sampling_clip_min: float | None = None
    """Lower bound of these ratios; None: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "max_completion_length")
        check_at_least(self, 0, "top_k", "vllm_server_timeout")
        if self.vllm_max_model_length is not None:
            check_at_least(self, 1, "vllm_max_model_length")
        check_between(self, 1e-4, 10_000, "temperature")  # logits over it must stay finite
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], not {self.top_p}")
        check_gib(self, "rollout_memory_gib")
        if self.use_vllm:
            self._check_vllm()
        if self.corrects_sampling:
            self._check_importance_sampling()

    @property
    def corrects_sampling(self) -> bool:
        """Whether policy-free responses carry importance weights."""
        return (self.use_vllm or self.async_generate) and self.vllm_importance_sampling_correction

    @property
    def keeps_copy(self) -> bool:
        """Whether a copy of what trains samples while the model is updated."""
        return self.async_generate and not self.use_vllm

    @property
    def kept_rollout_bytes(self) -> int:
        """What sampling holds during updates."""
        return 0 if self.use_vllm else int((self.rollout_memory_gib or 0) * 2**30)

    def _check_vllm(self) -> None:
        if self.rollout_memory_gib is not None:
            raise ValueError("rollout_memory_gib is of the built-in engine, not of use_vllm")
        if self.vllm_mode == "server":
            self._check_server()
        if self.vllm_mode == "colocate" and self.async_generate:
            raise ValueError(
                "async_generate: vLLM in this process cannot sample during the update, when it may "
                "be asleep; take vllm_mode: server, or use_vllm: false"
            )
        if not 0.01 <= self.temperature <= 2:
            raise ValueError(f"use_vllm: temperature must be in [0.01, 2], not {self.temperature}")
        if self.temperature != 1 and (self.top_p < 1 or self.top_k):
            raise ValueError(
                "use_vllm: at a temperature other than 1 vLLM gives no log-probabilities over all "
                "tokens when top_p or top_k cut some; take temperature 1, or neither of the two"
            )
        if not 0 < self.vllm_gpu_memory_utilization <= 1:
            raise ValueError(
                f"vllm_gpu_memory_utilization must be in (0, 1], not "
                f"{self.vllm_gpu_memory_utilization}"
            )

    def _check_server(self) -> None:
        address = self.vllm_server_base_url
        if not address:
            raise ValueError("vllm_mode: server needs vllm_server_base_url")
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"vllm_server_base_url: {address!r} does not begin with http://")

    def _check_importance_sampling(self) -> None:
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if low is None and high is None:
            raise ValueError(
                "vllm_importance_sampling_correction needs vllm_importance_sampling_clip_max or "
                "vllm_importance_sampling_clip_min"
            )
        if not (0.0 if low is None else low) < (float("inf") if high is None else high):
            raise ValueError(
                f"vllm_importance_sampling_clip_max: {high} is not above "
                f"{'0' if low is None else f'vllm_importance_sampling_clip_min = {low}'}"
            )
        if low is not None and low < 0:
            raise ValueError(f"vllm_importance_sampling_clip_min must be at least 0, not {low}")
