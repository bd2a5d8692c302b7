"""A stand-in for the module `vllm` 0.33: the part of its Python API that fastmpi calls.

Models are transformers' own, weights are loaded under the names of checkpoints by transformers' own
loading, pictures go through transformers' image processors, and a response is sampled token by
token with a generator of its seed. What vLLM forgets, forgets: weights while it sleeps, and the
first token's logits of a prompt are taken from a cache until that is reset.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessorPil,
    Qwen2VLImageProcessorPil,
)


@dataclass
class SamplingParams:
    """Only arguments that vLLM has; its defaults, which must not be what a test relies on."""

    n: int = 1
    seed: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int = 16
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    detokenize: bool = True
    logit_bias: dict[int, float] | None = None

    def __post_init__(self) -> None:
        assert 0 <= self.temperature <= 2 and 0 < self.top_p <= 1 and self.max_tokens >= 1
        if self.logit_bias is not None:
            self.logit_bias = {int(token): value for token, value in self.logit_bias.items()}


@dataclass
class Logprob:
    logprob: float


@dataclass
class CompletionOutput:
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]]
    finish_reason: str
    index: int = 0


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


@dataclass
class LLM:
    """`calls`: what was asked of it, in order. `prompts`, `params`: of every request."""

    model: str
    load_format: str = "auto"
    dtype: str = "auto"
    logprobs_mode: str = "raw_logprobs"
    enable_prefix_caching: bool = False
    enable_sleep_mode: bool = False
    gpu_memory_utilization: float = 0.92
    max_model_len: int | None = None
    limit_mm_per_prompt: dict[str, int] = field(default_factory=dict)
    trust_remote_code: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self.calls: list[Any] = []
        self.prompts: list[Any] = []
        self.params: list[SamplingParams] = []
        self.multiprocessing = os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        config = AutoConfig.from_pretrained(self.model)
        assert config.architectures, "vLLM finds its model class by this name"
        self.tokenizer = AutoTokenizer.from_pretrained(self.model)
        kind = CLIPImageProcessorPil if config.model_type == "llava" else Qwen2VLImageProcessorPil
        self.image_processor = kind.from_pretrained(self.model)
        if self.load_format == "dummy":
            self.network = AutoModelForImageTextToText.from_config(config, dtype=self._dtype)
        else:
            self.network = AutoModelForImageTextToText.from_pretrained(
                self.model, dtype=self._dtype
            )
        self.network.eval()
        self.config = config
        self.asleep: set[str] = set()
        self.cached: dict[Any, torch.Tensor] = {}
        self.counted_hits = 0

    @property
    def _dtype(self) -> torch.dtype:
        assert self.dtype in ("float32", "float16", "bfloat16"), self.dtype
        return getattr(torch, self.dtype)

    # ---- memory and weights -----------------------------------------------------------------

    def sleep(self, level: int = 1) -> None:
        assert self.enable_sleep_mode and level == 2 and not self.asleep
        self.calls.append("sleep")
        self.asleep = {"weights", "kv_cache"}
        self.cached.clear()
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.fill_(torch.nan)

    def wake_up(self, tags: list[str] | None = None) -> bool:
        assert self.enable_sleep_mode
        self.calls.append(("wake_up", tuple(tags or ())))
        self.asleep -= set(tags) if tags else self.asleep
        return not self.asleep

    def reset_prefix_cache(self) -> bool:
        self.calls.append("reset_prefix_cache")
        self.cached.clear()
        return True

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[None]:
        assert method == "reload_weights" and "weights" not in self.asleep
        self.calls.append("reload_weights")
        self._reload(**kwargs)
        return [None]

    def _reload(
        self,
        weights_iterator: Iterable[tuple[str, torch.Tensor]] | None = None,
        weights_path: str | None = None,
    ) -> None:
        """In place, from a folder or by name; transformers says which names it does not know."""
        if weights_iterator is None:
            assert weights_path is not None
            return self._load(weights_path)
        with tempfile.TemporaryDirectory() as folder:
            weights = {name: value.contiguous() for name, value in weights_iterator}
            save_file(weights, Path(folder) / "model.safetensors", {"format": "pt"})
            self.config.save_pretrained(folder)
            return self._load(folder)

    def _load(self, folder: str) -> None:
        new, info = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=self._dtype, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        self.network.load_state_dict(new.state_dict())

    # ---- sampling ---------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Any],
        sampling_params: Sequence[SamplingParams],
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        assert not self.asleep, f"asleep: {self.asleep}"
        self.calls.append("generate")
        self.prompts.extend(prompts)
        self.params.extend(sampling_params)
        return [
            self._request(prompt, params)
            for prompt, params in zip(prompts, sampling_params, strict=True)
        ]

    @torch.no_grad()
    def _request(self, prompt: dict[str, Any], params: SamplingParams) -> RequestOutput:
        assert params.n == 1 and params.logprobs == 0
        ids, inputs = self._expanded(prompt)
        names = tuple(prompt.get("multi_modal_uuids", {}).get("image", ()))
        generator = torch.Generator().manual_seed(params.seed or 0)
        stops = set(params.stop_token_ids or ())
        if not params.ignore_eos:
            stops.add(self.tokenizer.eos_token_id)
        found: list[int] = []
        logprobs: list[dict[int, Logprob]] = []
        while len(found) < params.max_tokens and not (found and found[-1] in stops):
            logits = self._logits([*ids, *found], inputs, (tuple(ids), names) if not found else ())
            token, logprob = self._sample(logits, params, generator)
            found.append(token)
            logprobs.append({token: Logprob(logprob)})
        reason = "stop" if found[-1] in stops else "length"
        return RequestOutput(ids, [CompletionOutput(found, logprobs, reason)])

    def _expanded(self, prompt: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
        """The prompt with each placeholder repeated, and the pictures as the network takes them."""
        ids, token = prompt["prompt_token_ids"], self.config.image_token_id
        pictures = prompt.get("multi_modal_data", {}).get("image", [])
        names = prompt.get("multi_modal_uuids", {}).get("image", [])
        assert ids.count(token) == len(pictures) == len(names)
        if not pictures:
            return list(ids), {}
        inputs = dict(self.image_processor(images=pictures, return_tensors="pt"))
        inputs["pixel_values"] = inputs["pixel_values"].to(self._dtype)
        rows = self.network.model.get_image_features(**inputs, return_dict=True).pooler_output
        counts = iter([len(of_picture) for of_picture in rows])
        return [i for id_ in ids for i in [id_] * (next(counts) if id_ == token else 1)], inputs

    def _logits(self, ids: list[int], inputs: dict[str, Any], cache_key: Any) -> torch.Tensor:
        """Of the next token. A prompt's own are cached, if prefix caching is on."""
        if cache_key and self.enable_prefix_caching and cache_key in self.cached:
            self.counted_hits += 1
            return self.cached[cache_key]
        row = torch.tensor([ids])
        if self.config.model_type != "llava":
            inputs = {**inputs, "mm_token_type_ids": (row == self.config.image_token_id).int()}
        out = self.network(input_ids=row, attention_mask=torch.ones_like(row), **inputs)
        logits = out.logits[0, -1].float()
        if cache_key:
            self.cached[cache_key] = logits
        return logits

    def _sample(
        self, raw: torch.Tensor, params: SamplingParams, generator: torch.Generator
    ) -> tuple[int, float]:
        logits = raw.clone()
        for token, bias in (params.logit_bias or {}).items():
            logits[token] += bias
        logits = logits / (params.temperature or 1.0)
        if params.temperature and params.top_k:
            logits[logits < logits.topk(params.top_k).values[-1]] = -torch.inf
        if params.temperature and params.top_p < 1:
            ordered, order = logits.softmax(-1).sort(descending=True)
            logits[order[ordered.cumsum(-1) - ordered >= params.top_p]] = -torch.inf
        if params.temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial(logits.softmax(-1), 1, generator=generator))
        scored = raw if self.logprobs_mode == "raw_logprobs" else logits
        return token, float(scored.log_softmax(-1)[token])


def module() -> ModuleType:
    """The stand-in as a module for sys.modules; `made` lists the LLMs that it made."""
    found = ModuleType("vllm")
    made: list[LLM] = []

    def make(*args: Any, **kwargs: Any) -> LLM:
        made.append(LLM(*args, **kwargs))
        return made[-1]

    found.__spec__ = ModuleSpec("vllm", None)
    found.LLM, found.SamplingParams, found.made = make, SamplingParams, made  # type: ignore[attr-defined]
    return found
