"""vLLM as a server on other GPUs, behind the engine protocol; needs no vLLM in this process.

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out [--logprobs-mode processed_logprobs]

Written against vLLM 0.33. Unusual: tokens go in and come out (`/inference/v1/generate`), text and
pictures alike, so nothing is tokenised twice; a prompt's pictures travel beside it as PNG. Weights
travel as a model folder that both sides see and that vLLM reloads in place. No key is sent: the
address comes from a configuration, which may be somebody else's.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmpi.data.pictures import picture
from fastmpi.data.samples import Prompt
from fastmpi.files import removed_on_error
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
    from fastmpi.data.images import Image
    from fastmpi.data.processor import Processor
    from fastmpi.models.forest_model import ForestModel

_CONCURRENT = 256  # requests at a time; vLLM queues what it cannot batch
_RETRY_S = 1.0
_MAX_ERROR_CHARS = 500
_NEEDED = {
    "/inference/": "--enable-scale-out",
    "/": "VLLM_SERVER_DEV_MODE=1 in its environment",
}


class VLLMServerEngine:
    """See `Engine`; `sync` comes before the first `generate`.

    base_url: http(s)://host:port. weights_dir: where `sync` writes the weights, the newest kept;
    the server must see it under the same path. temperature: of the responses. timeout: seconds to
    wait for the server to be up. is_main, wait: of several processes one writes, and all wait.
    `ValueError` for a server that lacks what this engine needs, `ConnectionError` for none.
    """

    awake = True  # the server's memory is its own

    def __init__(
        self,
        processor: Processor,
        base_url: str,
        weights_dir: str | Path,
        *,
        temperature: float = 1.0,
        timeout: float = 240.0,
        is_main: bool = True,
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        if urllib.parse.urlsplit(base_url).scheme not in ("http", "https"):
            raise ValueError(f"the address of a vLLM server begins with http://, not {base_url!r}")
        self.base_url = base_url.rstrip("/")
        self.processor = processor
        self.weights_dir = Path(weights_dir).resolve()
        self.logprobs_mode = logprobs_mode(temperature)
        self.is_main, self.wait = is_main, wait
        self._check: Callable[[], None] = lambda: None
        self._written = 0
        self._wait_for_server(timeout)
        self._check_server()

    def sync(self, model: ForestModel) -> None:
        """Makes the server reload the weights of `model`, adapters merged, and forget what it
        cached under the old ones."""
        if self.is_main:
            self._written += 1
            folder = self.weights_dir / f"weights-{self._written}"
            shutil.rmtree(folder, ignore_errors=True)  # of a killed run
            with removed_on_error(folder):
                model.save_pretrained(folder)
            rpc = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            self._ask("/collective_rpc", rpc)
            for other in self.weights_dir.glob("weights-*"):
                if other != folder:  # which the server goes on naming as its model
                    shutil.rmtree(other)
            if not self._ask("/reset_prefix_cache", {})["success"]:
                raise RuntimeError(
                    f"the vLLM server at {self.base_url} could not reset its prefix cache; does "
                    "something else use it?"
                )
        self.wait()

    def checking(self, check: Callable[[], None]) -> VLLMServerEngine:
        """Itself, calling `check` before every request from here on; what that raises ends
        `generate`, after the requests that are on their way."""
        self._check = check
        return self

    def sleep(self) -> None:
        """Nothing: the server's memory is its own."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        num_responses: int | Sequence[int],
        params: SamplingParams,
        *,
        streams: Sequence[int] | None = None,
    ) -> list[list[Response]]:
        """See `Engine`. Responses depend on their batch as far as vLLM's logits do."""
        check_params(params, self.logprobs_mode)
        requests = make_requests(prompts, num_responses, params, streams, self.processor)
        if not requests:
            return [[] for _ in prompts]
        encoded = self._encoded(prompts)

        def ask(request: Request) -> Response:
            self._check()
            return self._response(request, params, encoded)

        with ThreadPoolExecutor(min(_CONCURRENT, len(requests))) as threads:
            responses = list(threads.map(ask, requests))
        return by_prompt(requests, responses, len(prompts))

    def _encoded(self, prompts: Sequence[Prompt]) -> dict[str, str]:
        """Each picture's key -> itself as a data URL."""
        images = {image.key: image for prompt in prompts for image in prompt.images}
        return {key: _data_url(image, self.processor) for key, image in images.items()}

    def _response(
        self, request: Request, params: SamplingParams, encoded: dict[str, str]
    ) -> Response:
        body: dict[str, Any] = {
            "token_ids": request.ids,
            "sampling_params": sampling_values(params, self.processor, request.seed),
            "return_token_ids": True,  # of the prompt, as the server reads it
        }
        if request.prompt.images:
            body["content_parts"] = [
                {"type": "image_url", "url": encoded[image.key], "uuid": image.key}
                for image in request.prompt.images
            ]
        found = self._ask("/inference/v1/generate", body)
        (choice,) = found["choices"]
        return answer(
            request,
            params,
            self.processor,
            prompt_ids=found["prompt_token_ids"],
            ids=choice["token_ids"],
            logprobs=[entry["logprob"] for entry in choice["logprobs"]["content"]],
            finish_reason=choice["finish_reason"],
        )

    def _wait_for_server(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            try:
                with urllib.request.urlopen(f"{self.base_url}/health", timeout=10):
                    return
            except (OSError, http.client.HTTPException) as error:
                if time.monotonic() >= end:
                    raise ConnectionError(
                        f"no vLLM server answers at {self.base_url} after {timeout:g} s: {error}"
                    ) from error
            time.sleep(min(_RETRY_S, timeout))

    def _check_server(self) -> None:
        """Whether the server's log-probs are ours."""
        mode = self._ask("/server_info?config_format=json")["vllm_config"]["model_config"][
            "logprobs_mode"
        ]
        if mode != self.logprobs_mode:
            raise ValueError(
                f"the vLLM server at {self.base_url} has logprobs_mode {mode!r}; start it with "
                f"--logprobs-mode {self.logprobs_mode}"
            )

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON answer of a GET, or of a POST of `body`; None where there is none."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(
            self.base_url + path, data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(asked) as found:
                text = found.read()
        except urllib.error.HTTPError as error:
            raise self._refused(path, error) from error
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(f"the vLLM server at {self.base_url}: {error}") from error
        return json.loads(text) if text else None

    def _refused(self, path: str, error: urllib.error.HTTPError) -> Exception:
        if error.code == 404:
            needed = next(what for begin, what in _NEEDED.items() if path.startswith(begin))
            return ValueError(
                f"the vLLM server at {self.base_url} has no {path.partition('?')[0]}; start it "
                f"with {needed}"
            )
        said = error.read(_MAX_ERROR_CHARS).decode(errors="replace")
        return RuntimeError(f"the vLLM server at {self.base_url} answers {error.code}: {said}")


def _data_url(image: Image, processor: Processor) -> str:
    file = io.BytesIO()
    picture(image, processor.merge_size).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
