"""A stand-in for an OpenAI-compatible endpoint, on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from local_server import Handler, listening

Answer = str | tuple[int, Any] | bytes
"""Text of a completion; a status and what goes with it; or the raw body of a 200."""


@dataclass
class StandIn:
    """answer: called with the request's body. requests, keys: what came in."""

    answer: Callable[[dict], Answer]
    requests: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=lambda: {"retry-after-ms": "1"})
    url: str = ""

    def texts(self) -> list[str]:
        return [request["messages"][-1]["content"] for request in self.requests]


def completion(text: Any, finish: str = "stop") -> dict[str, Any]:
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "stand-in",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text},
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }


@contextmanager
def serving(answer: Callable[[dict], Answer]) -> Iterator[StandIn]:
    stand_in = StandIn(answer)
    with listening(_handler(stand_in)) as address:
        stand_in.url = f"{address}/v1"
        yield stand_in


def _handler(stand_in: StandIn) -> type[Handler]:
    class Endpoint(Handler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            request = self.body()
            stand_in.requests.append(request)
            stand_in.keys.append(self.headers["Authorization"])
            headers = {"Content-Type": "application/json", **stand_in.headers}
            self.reply(*_response(stand_in.answer(request)), headers)

    return Endpoint


def _response(answer: Answer) -> tuple[int, bytes]:
    if isinstance(answer, bytes):
        return 200, answer
    status, content = (200, completion(answer)) if isinstance(answer, str) else answer
    return status, json.dumps(content).encode()
