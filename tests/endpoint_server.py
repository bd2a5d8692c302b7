"""A stand-in for an OpenAI-compatible endpoint, on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stand_in))
    stand_in.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stand_in.requests.append(request)
            stand_in.keys.append(self.headers["Authorization"])
            status, body = _response(stand_in.answer(request))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in stand_in.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _response(answer: Answer) -> tuple[int, bytes]:
    if isinstance(answer, bytes):
        return 200, answer
    status, content = (200, completion(answer)) if isinstance(answer, str) else answer
    return status, json.dumps(content).encode()
