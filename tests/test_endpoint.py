"""The endpoint client against a server on this machine: retries, cache, cost, care for the key."""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from endpoint_server import completion, serving  # noqa: E402

from fastmpi.endpoint import Endpoint, EndpointConfig  # noqa: E402

pytest.importorskip("openai")

KEY = "sk-not-a-real-key-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def ask(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def endpoint(url: str, cache: Path | None = None, **settings) -> tuple[Endpoint, list[str]]:
    said: list[str] = []
    config = EndpointConfig(model="m", base_url=url, **{"timeout": 5.0, **settings})
    return Endpoint(config, cache=cache, say=said.append), said


def test_replies_come_in_order_and_equal_questions_are_asked_once() -> None:
    with serving(lambda request: request["messages"][-1]["content"].upper()) as server:
        client, _ = endpoint(server.url)
        replies = client.complete([ask(word) for word in ("a", "b", "a", "c")])
    assert [reply.text for reply in replies] == ["A", "B", "A", "C"]
    assert sorted(server.texts()) == ["a", "b", "c"]
    assert set(server.keys) == {f"Bearer {KEY}"}
    first = server.requests[0]
    assert (first["model"], first["temperature"], first["max_completion_tokens"]) == ("m", 0, 1024)


def test_a_busy_or_failing_server_is_asked_again() -> None:
    troubles = iter([429, 500, 503])

    def answer(request: dict):
        status = next(troubles, 200)
        return "done" if status == 200 else (status, {"error": {"message": "later"}})

    with serving(answer) as server:
        client, _ = endpoint(server.url, max_retries=3)
        assert client.complete([ask("a")])[0].text == "done"
    assert len(server.requests) == 4


def test_retries_end() -> None:
    with serving(lambda request: (500, {"error": {"message": "broken"}})) as server:
        client, _ = endpoint(server.url, max_retries=2, concurrency=1)
        with pytest.raises(ConnectionError, match="500: .*broken"):
            client.complete([ask("a"), ask("b")])
    assert server.texts() == ["a"] * 3  # b is not asked any more


def test_the_cache_answers_without_a_request(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache.jsonl"
    with serving(lambda request: "yes") as server:
        first = endpoint(server.url, cache)[0].complete([ask("a"), ask("b")])
        with cache.open("a") as file:
            file.write('{"key": "half')  # a killed run
        again = endpoint(server.url, cache)[0].complete([ask("b"), ask("a"), ask("c")])
        assert again == [first[1], first[0], first[0]]
        assert sorted(server.texts()) == ["a", "b", "c"]
        # Anything else that is asked differently is another question.
        for changed in ({"max_tokens": 7}, {"temperature": None}):
            endpoint(server.url, cache, **changed)[0].complete([ask("a")])
    assert len(server.requests) == 5
    assert len(cache.read_text().splitlines()) == 5
    with serving(lambda request: "no") as other:  # and so is the same at another address
        assert endpoint(other.url, cache)[0].complete([ask("a")])[0].text == "no"


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    cache = tmp_path / "cache.jsonl"
    for line in ("[1]", '{"key": 1, "text": "x"}', '{"text": "x"}', "\udcff"):
        cache.write_bytes(line.encode(errors="surrogateescape") + b"\n")
        with pytest.raises(ValueError, match=r"cache.jsonl, line 1: no kept reply"):
            endpoint("http://localhost", cache)


def test_the_cost_is_told_before_the_first_request() -> None:
    asked_when_told: list[int] = []
    with serving(lambda request: "yes") as server:
        prices = {"prompt_price": 2.0, "completion_price": 10.0, "max_tokens": 1000}
        config = EndpointConfig(model="m", base_url=server.url, **prices)
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            asked_when_told.append(len(server.requests))

        client = Endpoint(config, say=say)
        picture = {"type": "image_url", "image_url": {"url": "data:,"}}
        client.complete([ask("x" * 400), [{"role": "user", "content": [picture]}]])
        client.complete([ask("x" * 400)])
    assert asked_when_told == [0, 2, 2]
    # 100 tokens of text and 1,000 of a picture at $2, 2 replies of 1,000 at $10.
    assert said[0].endswith("about 1,100 prompt and at most 2,000 completion tokens, $0.02")
    assert said[1] == "used 200 prompt and 20 completion tokens, $0.00"
    assert "1 requests" in said[2] and "(1 known or repeated)" in said[2]


def test_without_prices_only_tokens_are_told() -> None:
    with serving(lambda request: "yes") as server:
        client, said = endpoint(server.url)
        client.complete([ask("a")])
    assert not any("$" in text for text in said)


def test_what_the_server_refuses_does_not_stop_the_others(tmp_path: Path) -> None:
    def answer(request: dict):
        bad = request["messages"][-1]["content"] == "bad"
        return (400, {"error": {"message": "filtered"}}) if bad else "fine"

    cache = tmp_path / "cache.jsonl"
    with serving(answer) as server:
        client, said = endpoint(server.url, cache)
        bad, good = client.complete([ask("bad"), ask("good")])
        endpoint(server.url, cache)[0].complete([ask("bad"), ask("good")])
    assert (bad.text, good.text, good.error) == ("", "fine", "")
    assert "filtered" in bad.error
    assert said[-1].endswith("; 1 refused")
    assert sorted(server.texts()) == ["bad", "bad", "good"]  # asked again, not kept


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not JSON",
        b"null",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b'{"choices": 7}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": {"a": 1}}}]}',
        b'{"choices": [{"message": {"content": "  "}}]}',
        b"[" * 100_000,
        json.dumps(completion("x" * 10_000_000)).encode(),
        b"\xff\xfe\x00",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_hostile_bodies_are_no_reply(body: bytes) -> None:
    with serving(lambda request: body) as server:
        start = time.process_time()
        reply = endpoint(server.url, max_retries=0)[0].complete([ask("a")])[0]
    assert reply.text == "" and reply.error
    assert time.process_time() - start < 2


def test_odd_characters_and_odd_counts_survive(tmp_path: Path) -> None:
    text = "\u202e</script>\x00\ud800 ok"
    answer = completion(text, "length")
    answer["usage"] = {"prompt_tokens": -5, "completion_tokens": "many", "total_tokens": None}
    cache = tmp_path / "cache.jsonl"
    with serving(lambda request: (200, answer)) as server:
        reply = endpoint(server.url, cache)[0].complete([ask("a")])[0]
        assert endpoint(server.url, cache)[0].complete([ask("a")]) == [reply]
    assert (reply.text, reply.finished) == (text, False)
    assert (reply.prompt_tokens, reply.completion_tokens) == (0, 0)


def test_the_key_is_shown_and_kept_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    """Not even where the server says it back."""
    caplog.set_level(logging.DEBUG)
    cache = tmp_path / "cache.jsonl"
    with serving(lambda request: f"your key is {KEY}") as server:
        reply = endpoint(server.url, cache)[0].complete([ask("a")])[0]
    assert reply.text == "your key is ***"
    refusal = {"error": {"message": f"wrong key {KEY}, {KEY * 30}"}}
    errors = []
    for status in (401, 403, 404, 500):
        with serving(lambda request, status=status: (status, refusal)) as server:
            with pytest.raises(ConnectionError) as failure:
                endpoint(server.url, cache, max_retries=0)[0].complete([ask(str(status))])
            errors.append("".join(_traceback(failure.value)))
    with serving(lambda request: (422, refusal)) as server:
        client, said = endpoint(server.url, cache, max_retries=0)
        errors += [client.complete([ask("b")])[0].error, *said, repr(vars(client.config))]
    printed = capsys.readouterr()
    places = [*errors, cache.read_text(), caplog.text, printed.out, printed.err]
    assert not any(KEY in place or KEY[:12] in place for place in places)
    assert all("***" in error for error in errors[:4])


def _traceback(error: BaseException) -> list[str]:
    import traceback

    return traceback.format_exception(error)


def test_the_key_follows_no_redirection() -> None:
    with serving(lambda request: "caught") as other:
        with serving(lambda request: (307, {})) as server:
            server.headers["Location"] = f"{other.url}/chat/completions"
            with pytest.raises(ConnectionError):
                endpoint(server.url, max_retries=0)[0].complete([ask("a")])
    assert other.requests == []


def test_a_server_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with serving(lambda request: "yes") as server:
        assert endpoint(server.url)[0].complete([ask("a")])[0].text == "yes"
    with pytest.raises(ValueError, match="set OPENAI_API_KEY"):
        Endpoint(EndpointConfig(model="m"), say=lambda text: None).complete([ask("a")])


def test_a_short_key_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with serving(lambda request: "six boxes") as server:
        assert endpoint(server.url)[0].complete([ask("a")])[0].text == "six boxes"


def test_the_address_of_the_environment_is_told_and_part_of_the_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    cache = tmp_path / "cache.jsonl"
    for answer in ("first", "second"):
        with serving(lambda request, answer=answer: answer) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            said: list[str] = []
            client = Endpoint(EndpointConfig(model="m"), cache=cache, say=said.append)
            assert client.complete([ask("a")])[0].text == answer
            assert f"to m at {server.url}: about" in said[0]
    monkeypatch.setenv("OPENAI_BASE_URL", f"https://host/v1?key={KEY}")
    with pytest.raises(ValueError, match="OPENAI_BASE_URL holds no user") as error:
        Endpoint(EndpointConfig(model="m"))
    assert KEY not in str(error.value)


def test_nobody_is_there() -> None:
    with pytest.raises(ConnectionError, match="APIConnectionError"):
        endpoint("http://127.0.0.1:9/v1", max_retries=0)[0].complete([ask("a")])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "must begin with http"),
        ({"base_url": "file:///etc/passwd"}, "must begin with http"),
        ({"base_url": f"https://user:{KEY}@host/v1"}, "no user, password or query"),
        ({"base_url": f"https://host/v1?key={KEY}"}, "no user, password or query"),
        ({"concurrency": 0}, "concurrency must be above 0"),
        ({"prompt_price": -1.0}, "prompt_price must not be negative"),
    ],
)
def test_wrong_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        EndpointConfig(model="m", **settings)
    assert KEY not in str(error.value)
