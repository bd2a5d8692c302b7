"""vLLM in this process, on the training GPU, behind the engine protocol.

Unusual: vLLM never reads the weights of a folder. It starts with none, in a folder of the model's
configuration and processors alone, and gets every weight from the model in training, by the names
of its checkpoint: a name that does not arrive shows at once.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fastmpi.data.pictures import picture
from fastmpi.data.samples import Prompt
from fastmpi.models.checkpoint_weights import checkpoint_weights
from fastmpi.rollout.engine import Response
from fastmpi.rollout.sampling import SamplingParams
from fastmpi.rollout.vllm_requests import (
    Request,
    answer,
    by_prompt,
    check_params,
    logprobs_mode,
    make_requests,
    sampling_values,
)

if TYPE_CHECKING:
    import PIL.Image

    from fastmpi.models.forest_model import ForestModel


class VLLMEngine:
    """See `Engine`; `sync` comes before the first `generate`.

    model: whose configuration and processors are taken, and nothing else. dtype: vLLM's.
    temperature: of the responses, which decides what log-probs vLLM keeps; see `vllm_requests.py`.
    gpu_memory_utilization: share of the GPU's memory for vLLM. max_model_len: longest prompt with
    its response; None: the model's own. sleep_mode: `sleep` gives weights and cache back to
    training. `ValueError` where vLLM is not installed.
    """

    def __init__(
        self,
        model: ForestModel,
        *,
        dtype: torch.dtype = torch.bfloat16,
        temperature: float = 1.0,
        gpu_memory_utilization: float = 0.3,
        max_model_len: int | None = None,
        sleep_mode: bool = False,
        trust_remote_code: bool = False,
        seed: int = 0,
    ) -> None:
        # One process, or weights would have to travel to the one that vLLM starts.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            import vllm
        except ImportError as error:
            raise ValueError("vLLM is not installed: pip install fastmpi[vllm]") from error
        self.processor = model.processor
        self.logprobs_mode = logprobs_mode(temperature)
        self.sleep_mode = sleep_mode
        self._params: type[Any] = vllm.SamplingParams
        self._awake = True
        self._pictures: dict[str, PIL.Image.Image] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="fastmpi-vllm-")
        _save_without_weights(model, self._folder.name)
        self.llm = vllm.LLM(
            self._folder.name,
            load_format="dummy",
            dtype=str(dtype).removeprefix("torch."),
            logprobs_mode=self.logprobs_mode,
            enable_prefix_caching=True,
            enable_sleep_mode=sleep_mode,
            gpu_memory_utilization=gpu_memory_utilization,
            max_model_len=max_model_len,
            limit_mm_per_prompt={"video": 0},  # else memory is kept for one
            trust_remote_code=trust_remote_code,
            seed=seed,
        )
        self.sleep()

    def sync(self, model: ForestModel) -> None:
        """Takes the weights of `model`, adapters merged, and forgets what was cached under the old
        ones. Wakes vLLM."""
        if not self._awake:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # what vLLM takes must be free for it
            self.llm.wake_up(tags=["weights"])
        weights = checkpoint_weights(model)
        self.llm.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": iter(weights.items())}
        )
        if not self._awake:
            self.llm.wake_up(tags=["kv_cache"])
        self._awake = True
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM could not reset its prefix cache: a request is still running")

    def sleep(self) -> None:
        """Under `sleep_mode`, frees vLLM's memory: weights and cache are gone until `sync`."""
        if self.sleep_mode and self._awake:
            self.llm.sleep(level=2)
            self._awake = False

    @property
    def awake(self) -> bool:
        """Whether vLLM has weights to sample with, if it had any."""
        return self._awake

    def generate(
        self,
        prompts: Sequence[Prompt],
        num_responses: int | Sequence[int],
        params: SamplingParams,
        *,
        streams: Sequence[int] | None = None,
    ) -> list[list[Response]]:
        """See `Engine`. Responses depend on their batch as far as vLLM's logits do."""
        assert self._awake, "vLLM sleeps: sync() first"
        check_params(params, self.logprobs_mode)
        requests = make_requests(prompts, num_responses, params, streams, self.processor)
        if not requests:
            return [[] for _ in prompts]
        outputs = self.llm.generate(
            [self._prompt(request) for request in requests],
            [
                self._params(**sampling_values(params, self.processor, request.seed))
                for request in requests
            ],
            use_tqdm=False,
        )
        self._pictures.clear()
        responses = [
            self._response(request, params, output)
            for request, output in zip(requests, outputs, strict=True)
        ]
        return by_prompt(requests, responses, len(prompts))

    def _prompt(self, request: Request) -> dict[str, Any]:
        """vLLM's prompt. Pictures are named by their keys, so it need not hash them again."""
        prompt: dict[str, Any] = {"prompt_token_ids": request.ids}
        images = request.prompt.images
        if images:
            for image in images:
                if image.key not in self._pictures:
                    self._pictures[image.key] = picture(image, self.processor.merge_size)
            prompt["multi_modal_data"] = {"image": [self._pictures[i.key] for i in images]}
            prompt["multi_modal_uuids"] = {"image": [i.key for i in images]}
        return prompt

    def _response(self, request: Request, params: SamplingParams, output: Any) -> Response:
        (found,) = output.outputs
        return answer(
            request,
            params,
            self.processor,
            prompt_ids=output.prompt_token_ids,
            ids=found.token_ids,
            logprobs=[
                position[token].logprob
                for position, token in zip(found.logprobs, found.token_ids, strict=True)
            ],
            finish_reason=found.finish_reason,
        )


def _save_without_weights(model: ForestModel, folder: str) -> None:
    """What vLLM reads of a model folder beside the weights."""
    config = copy.deepcopy(model.base.config)
    config.architectures = [type(model.base).__name__]
    config.save_pretrained(folder)
    model.processor.save_pretrained(folder)
