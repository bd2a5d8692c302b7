"""A stand-in for `vllm serve` 0.33 on this machine: the routes that fastmpi asks, over the stand-in
for vLLM's Python API."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
from local_server import Handler, listening
from vllm_standin import LLM, SamplingParams


@dataclass
class Server:
    """dev_mode, scale_out: how it was started. asked: (path, body) of every POST. broken: path ->
    (status, text) to answer instead."""

    llm: LLM
    dev_mode: bool = True
    scale_out: bool = True
    asked: list[tuple[str, dict]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    reset_works: bool = True

    def get(self, path: str) -> Any:
        if path == "/health":
            return ""
        if path == "/server_info?config_format=json" and self.dev_mode:
            return {"vllm_config": {"model_config": {"logprobs_mode": self.llm.logprobs_mode}}}
        return None

    def post(self, path: str, body: dict[str, Any]) -> Any:
        self.asked.append((path, body))
        if path == "/inference/v1/generate" and self.scale_out:
            return self.generate(body)
        if path == "/collective_rpc" and self.dev_mode:
            return {"results": self.llm.collective_rpc(body["method"], body["kwargs"])}
        if path == "/reset_prefix_cache" and self.dev_mode:
            self.llm.reset_prefix_cache()
            return {"success": self.reset_works}
        return None

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt_token_ids": body["token_ids"]}
        if parts := body.get("content_parts"):
            assert all(part["type"] == "image_url" for part in parts)
            prompt["multi_modal_data"] = {"image": [picture(part["url"]) for part in parts]}
            prompt["multi_modal_uuids"] = {"image": [part["uuid"] for part in parts]}
        (out,) = self.llm.generate([prompt], [SamplingParams(**body["sampling_params"])])
        (found,) = out.outputs
        content = [
            {"token_id": token, "logprob": position[token].logprob}
            for position, token in zip(found.logprobs, found.token_ids, strict=True)
        ]
        return {
            "prompt_token_ids": out.prompt_token_ids if body["return_token_ids"] else None,
            "choices": [
                {
                    "index": 0,
                    "token_ids": found.token_ids,
                    "finish_reason": found.finish_reason,
                    "logprobs": {"content": content},
                }
            ],
        }


def picture(url: str) -> PIL.Image.Image:
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    return PIL.Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


@contextmanager
def serving(folder: Path, **settings: Any) -> Iterator[Server]:
    """A server of the model in `folder`. settings: of `Server`, and logprobs_mode."""
    mode = settings.pop("logprobs_mode", "raw_logprobs")
    llm = LLM(str(folder), dtype="float32", logprobs_mode=mode, enable_prefix_caching=True)
    found = Server(llm, **settings)
    with listening(_handler(found)) as found.url:
        yield found


def _handler(server: Server) -> type[Handler]:
    class Served(Handler):
        def do_GET(self) -> None:
            self.answer(lambda: server.get(self.path))

        def do_POST(self) -> None:
            body = self.body()
            self.answer(lambda: server.post(self.path, body))

        def answer(self, make: Any) -> None:
            with server.lock:
                server.headers.append(dict(self.headers))
                if self.path in server.broken:
                    status, text = server.broken[self.path]
                else:
                    found = make()
                    status = 404 if found is None else 200
                    text = json.dumps(found) if found else ""
            self.reply(status, text.encode())

    return Served
