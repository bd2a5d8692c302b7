"""A language model behind an OpenAI-compatible endpoint: judge of responses, writer of reasoning.

The `openai` package sends, retries (408, 409, 429 and 5xx, with the pause that the server asks for)
and times out; here are the cache, the estimate of the cost before the first request, and care for
the key: it comes from the environment, and what the server says is stripped of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlsplit

from fastmpi.endpoint_cache import Reply, ReplyCache, request_key
from fastmpi.settings import Settings

KEY_VARIABLE = "OPENAI_API_KEY"
ADDRESS_VARIABLE = "OPENAI_BASE_URL"
OPENAI = "https://api.openai.com/v1"
MIN_SECRET = 8  # characters of a key worth hiding: a server of one's own is often given "x"
NO_KEY = "none"  # what a server of one's own is sent where there is no key
CHARACTERS_PER_TOKEN = 4
TOKENS_PER_PICTURE = 1000
MAX_REPLY = 100_000  # characters; what is longer was not asked for

Messages = Sequence[Mapping[str, Any]]
"""Chat turns {"role", "content"}, as the endpoint takes them."""


@dataclass(kw_only=True)
class EndpointConfig(Settings):
    """Which model to ask, and how."""

    model: str
    """Name of the model at the endpoint."""

    base_url: str | None = None
    """Address such as http://localhost:8000/v1; None: OPENAI_BASE_URL, else OpenAI's own."""

    prompt_price: float | None = None
    """US dollars for a million prompt tokens; None: the cost is given in tokens only."""

    completion_price: float | None = None
    """US dollars for a million completion tokens."""

    temperature: float | None = 0.0
    """None: not sent, for models that refuse it."""

    max_tokens: int = 1024
    """Most completion tokens of a reply, sent as max_completion_tokens."""

    concurrency: int = 4
    """Requests under way at once."""

    max_retries: int = 6
    """Further tries of a request that a busy or failing server refused."""

    timeout: float = 120.0
    """Seconds until a request counts as failed."""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "concurrency", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("prompt_price", "completion_price", "max_retries"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.base_url is not None:
            _check_address(self.base_url)


class Endpoint:
    """Asks questions. cache: file of the replies so far; say: where the cost is told."""

    def __init__(
        self,
        config: EndpointConfig,
        *,
        cache: str | Path | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.config = config
        self.cache = ReplyCache(cache)
        self.say = say
        self.address = _address(config)
        self._secret = os.environ.get(KEY_VARIABLE, "")

    def complete(self, conversations: Sequence[Messages]) -> list[Reply]:
        """One reply for each conversation, in order; known ones are not asked again.

        The cost is told before the first request and after the last. A conversation that the
        server refuses (400, 413, 422, no text) gets a reply with `error`, and the others go on.
        `ConnectionError` where nothing goes on: a wrong key or address, retries used up; replies
        so far are in the cache. `ValueError` without the openai package, and without a key where
        the address is OpenAI's own.
        """
        requests = [self._request(messages) for messages in conversations]
        keys = [request_key(request | {"base_url": self.address}) for request in requests]
        missing = {k: r for k, r in zip(keys, requests, strict=True) if k not in self.cache}
        self.say(self._estimate(len(requests), list(missing.values())))
        if missing:
            self._ask_all(missing)
            self.say(self._bill([self.cache[key] for key in missing]))
        return [self.cache[key] for key in keys]

    def _request(self, messages: Messages) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.config.model,
            "messages": [dict(message) for message in messages],
            "max_completion_tokens": self.config.max_tokens,
        }
        if self.config.temperature is not None:
            request["temperature"] = self.config.temperature
        return request

    def _ask_all(self, missing: Mapping[str, dict[str, Any]]) -> None:
        """The first failure ends it: requests that wait are not sent any more."""
        stopped = Event()

        def ask(client: Any, key: str, request: Mapping[str, Any]) -> None:
            if stopped.is_set():
                return
            try:
                self.cache.add(key, self._ask(client, request))
            except BaseException:
                stopped.set()
                raise

        with self._client() as client, ThreadPoolExecutor(self.config.concurrency) as threads:
            futures = [threads.submit(ask, client, *item) for item in missing.items()]
            try:
                for future in futures:
                    future.result()
            finally:  # also when somebody presses Ctrl-C
                stopped.set()

    def _ask(self, client: Any, request: Mapping[str, Any]) -> Reply:
        import openai

        refused = (openai.BadRequestError, openai.UnprocessableEntityError)
        try:
            reply = _reply(client.chat.completions.create(**request))
        except openai.APIStatusError as error:
            reason = self._clean(f"{error.status_code}: {error.message}")
            if not isinstance(error, refused) and error.status_code != 413:
                raise self._failure(reason) from None
            return Reply("", error=reason)
        except openai.OpenAIError as error:
            raise self._failure(self._clean(f"{type(error).__name__}: {error}")) from None
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            # What the server sent is no completion at all.
            return Reply("", error=f"no completion came back: {type(error).__name__}")
        return replace(reply, text=self._hidden(reply.text))

    def _client(self) -> Any:
        try:
            import openai
        except ImportError:
            raise ValueError(
                "asking an endpoint needs the openai package: pip install fastmpi[endpoint]"
            ) from None
        if not self._secret and self.address == OPENAI:
            raise ValueError(f"set {KEY_VARIABLE}, or give the address of a server without a key")
        return openai.OpenAI(
            api_key=self._secret or NO_KEY,
            base_url=self.address,
            max_retries=self.config.max_retries,
            timeout=self.config.timeout,
            # A server that sends the client elsewhere must not get the key there.
            http_client=openai.DefaultHttpxClient(follow_redirects=False),
        )

    def _estimate(self, asked: int, requests: Sequence[Mapping[str, Any]]) -> str:
        prompt = sum(_prompt_tokens(request["messages"]) for request in requests)
        completion = len(requests) * self.config.max_tokens
        known = f" ({asked - len(requests)} known or repeated)" if asked > len(requests) else ""
        return (
            f"{asked} requests to {self.config.model} at {self.address}{known}: "
            f"about {prompt:,} prompt and at most {completion:,} completion tokens"
            f"{self._cost(prompt, completion)}"
        )

    def _bill(self, replies: Sequence[Reply]) -> str:
        prompt = sum(reply.prompt_tokens for reply in replies)
        completion = sum(reply.completion_tokens for reply in replies)
        failed = sum(bool(reply.error) for reply in replies)
        refused = f"; {failed} refused" if failed else ""
        cost = self._cost(prompt, completion)
        return f"used {prompt:,} prompt and {completion:,} completion tokens{cost}{refused}"

    def _cost(self, prompt: int, completion: int) -> str:
        if self.config.prompt_price is None or self.config.completion_price is None:
            return ""
        prices = self.config.prompt_price * prompt + self.config.completion_price * completion
        return f", ${prices / 1e6:.2f}"

    def _failure(self, reason: str) -> ConnectionError:
        return ConnectionError(f"{self.address} failed: {reason}")

    def _clean(self, text: str) -> str:
        """One short line without the key."""
        return " ".join(self._hidden(text).split())[:300]

    def _hidden(self, text: str) -> str:
        return text.replace(self._secret, "***") if len(self._secret) >= MIN_SECRET else text


def _address(config: EndpointConfig) -> str:
    """Where requests go: the setting, else the environment, else OpenAI."""
    if config.base_url is not None:
        return config.base_url
    url = os.environ.get(ADDRESS_VARIABLE) or OPENAI
    _check_address(url, ADDRESS_VARIABLE)
    return url


def _check_address(url: str, name: str = "base_url") -> None:
    """Addresses are shown and saved, so they must hold no secret."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name} must begin with http:// or https:// and a host")
    if parts.username or parts.password or parts.query:
        raise ValueError(
            f"{name} holds no user, password or query; the key comes from {KEY_VARIABLE}"
        )


def _reply(completion: Any) -> Reply:
    """Of a completion as the package read it; it checks little of what a server sends."""
    choice = completion.choices[0]
    text = choice.message.content
    usage = getattr(completion, "usage", None)
    prompt, completed = (_count(getattr(usage, f"{k}_tokens", 0)) for k in ("prompt", "completion"))
    error = ""
    if not isinstance(text, str) or not text.strip():
        text, error = "", "the reply has no text"
    elif len(text) > MAX_REPLY:
        text, error = "", f"the reply has {len(text):,} characters"
    return Reply(text, choice.finish_reason == "stop", prompt, completed, error)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < 10**9 else 0


def _prompt_tokens(messages: Messages) -> int:
    """A guess: four characters a token, and a thousand tokens a picture."""
    tokens = 0
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        for part in parts:
            is_text = part["type"] == "text"
            tokens += len(part["text"]) // CHARACTERS_PER_TOKEN if is_text else TOKENS_PER_PICTURE
    return tokens
