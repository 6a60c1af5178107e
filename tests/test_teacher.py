"""The fault-injecting server itself: what it says on the wire, and whether its figures add up."""

from __future__ import annotations

import asyncio
import email.utils
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import aiohttp
import openai
import pytest

from recipe import UserError
from tests.conftest import ROOT
from tests.teacher import FAULTS, Options, Teacher, teacher

RECORD = "性别: 男\n年龄: 47\n主诉: 发热、咳嗽4天\n现病史: 4天前淋雨后出现发热，体温最高39.2℃，伴畏寒，咳黄脓痰。"
KEY = "sk-planted-0123456789"


@pytest.fixture(scope="module")
def process() -> Iterator[Teacher]:
    with teacher() as server:
        yield server


@pytest.fixture
def server(process: Teacher) -> Teacher:
    """The module's one process, as new."""
    process.set(**asdict(Options()))
    process.reset()
    return process


def client(server: Teacher, key: str = "any") -> openai.OpenAI:
    http = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=server.base_url, api_key=key, max_retries=0, timeout=10, http_client=http)


def body(text: str = RECORD, **more: Any) -> dict[str, Any]:
    return {"model": "teacher", "messages": [{"role": "user", "content": text}]} | more


def ask(server: Teacher, *bodies: dict[str, Any], timeout: float = 5.0) -> list[tuple[Any, Any, bytes]]:
    """(status, headers, body) of requests sent at once; (the exception's class, None, b"") where there is no answer."""

    async def one(session: aiohttp.ClientSession, body: dict[str, Any]) -> tuple[Any, Any, bytes]:
        try:
            async with session.post(f"{server.base_url}/chat/completions", json=body) as response:
                return response.status, response.headers, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            return type(error), None, b""

    async def every() -> list[tuple[Any, Any, bytes]]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout)) as session:
            return await asyncio.gather(*(one(session, body) for body in bodies))

    return asyncio.run(every())


def content(raw: bytes) -> str:
    return json.loads(raw)["choices"][0]["message"]["content"]


def test_a_label_quotes_its_record(server: Teacher) -> None:
    completion = client(server).chat.completions.create(**body(f"请诊断。\n\n{RECORD}\n请只输出JSON。"), n=2, seed=3)
    label = json.loads(completion.choices[0].message.content)
    quotes = [part.split(" ", 1)[1].rsplit("，支持", 1)[0] for part in label["reason"].split("；")]
    assert len(quotes) == 3 and all(quote in RECORD for quote in quotes) and label["diseases"]
    assert completion.choices[1].message.content != completion.choices[0].message.content
    assert completion.usage.completion_tokens_details.reasoning_tokens > 40 and completion.model == "teacher"
    assert [model.id for model in client(server).models.list()] == ["teacher"]


@pytest.mark.parametrize("thought", ["reasoning_content", "reasoning", "inline", "closing", "none"])
def test_where_the_thought_goes(server: Teacher, thought: str) -> None:
    server.set(thought=thought, style="cot")
    message = json.loads(ask(server, body("头晕三天，要紧吗？"))[0][2])["choices"][0]["message"]
    assert [name for name in ("reasoning_content", "reasoning") if name in message] == [thought] * (len(message) == 3)
    text = message["content"]
    assert ("<think>" in text, "</think>" in text) == (thought == "inline", thought in ("inline", "closing"))
    assert ("鉴别" in json.dumps(message, ensure_ascii=False)) == (thought != "none")


def test_a_disturbed_run_gets_the_same_bytes(server: Teacher) -> None:
    bodies = [body(f"{RECORD}\n既往史: 第{i}次住院", seed=i % 3) for i in range(30)]
    calm = [raw for _, _, raw in ask(server, *bodies)]
    server.set(faults=0.6, kinds="429,500,drop,half,empty,html,error", max_faults=2)
    disturbed, tries = {}, 0
    while len(disturbed) < 30:
        left = [i for i in reversed(range(30)) if i not in disturbed]
        tries += len(left)
        for i, (status, _, raw) in zip(left, ask(server, *(bodies[i] for i in left)), strict=True):
            if status == 200 and raw in calm:
                disturbed[i] = raw
    assert [disturbed[i] for i in range(30)] == calm and 40 < tries <= 90
    stats = server.stats()
    assert stats["times_answered"] == {"2": 30} and sum(stats["faults"].values()) == tries - 30
    server.set(faults=0.0)
    other = [content(raw) for _, _, raw in ask(server, *(body(RECORD, seed=i) for i in range(8)))]
    assert len(set(other)) > 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_on_the_wire(server: Teacher, kind: str, stream: bool) -> None:
    right = ask(server, body(stream=stream))[0][2]
    server.set(faults=1.0, kinds=kind, max_faults=1, drip=0.2, retry_after=7)
    began = time.monotonic()
    status, headers, raw = ask(server, body(stream=stream), timeout=0.5 if kind == "hang" else 5.0)[0]
    took = time.monotonic() - began
    expected = {
        "drop": aiohttp.ServerDisconnectedError,
        "cut": aiohttp.ClientPayloadError,
        "hang": asyncio.TimeoutError,
        "500": 500,
        "503": 503,
    }
    assert status == expected.get(kind, 429 if kind.startswith("429") else 200)
    if kind == "429_date":
        assert 6 <= email.utils.parsedate_to_datetime(headers["Retry-After"]).timestamp() - time.time() <= 8
    elif headers is not None:
        assert headers.get("Retry-After") == ("7" if kind == "429_seconds" else None)
    if status == 200:
        types = {"html": "text/html", "type": "text/plain"}
        assert headers["Content-Type"].startswith(
            types.get(kind, "text/event-stream" if stream else "application/json")
        )
        assert (raw == right) == (kind in ("drip", "type")) and (raw == b"") == (kind == "empty")
        assert right.startswith(raw) == (kind in ("drip", "type", "half", "empty")) and (b'"error"' in raw) == (
            kind == "error"
        )
    assert took > 0.19 or kind not in ("drip", "hang")
    assert ask(server, body(stream=stream))[0][2] == right, "one in a row at most"
    stats = server.stats()
    assert stats["faults"] == {kind: 1} and stats["early"] == kind.startswith("429_")
    whole = 2 + (kind == "drip")
    outcomes = {"answered": whole} | ({"faulted": 1} if kind != "drip" else {})
    assert stats["outcomes"] == outcomes and stats["times_answered"] == {str(whole): 1}


def test_a_stream_says_the_same(server: Teacher) -> None:
    whole = client(server).chat.completions.create(**body(), logprobs=True, top_logprobs=2)
    chunks = list(
        client(server).chat.completions.create(
            **body(), stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=2
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    message = whole.choices[0].message
    assert "".join(delta.content for delta in deltas) == message.content and len(deltas) == 9
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == message.reasoning_content
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("token_ids", ["never", "asked"])
def test_logprobs_make_up_the_text(server: Teacher, token_ids: str) -> None:
    server.set(token_ids=token_ids)
    asked = body(logprobs=True, top_logprobs=20, return_tokens_as_token_ids=True)
    choice = json.loads(ask(server, asked)[0][2])["choices"][0]
    entries = choice["logprobs"]["content"]
    assert all(len({one["token"] for one in entry["top_logprobs"]}) == 20 for entry in entries)
    assert all(sorted(a, reverse=True) == a for a in ([one["logprob"] for one in e["top_logprobs"]] for e in entries))
    if token_ids == "asked":
        ids = [int(entry["token"].removeprefix("token_id:")) for entry in entries]
        text = b"".join(number.to_bytes(4, "big").lstrip(b"\0") for number in ids if number < 1 << 24)
        assert all(bytes(one["bytes"]).startswith(b"token_id:") for e in entries for one in e["top_logprobs"])
        assert "支持".encode() in text
    else:
        assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == choice["message"]["content"]
        assert any(entry["token"].startswith("\\xe6") and len(entry["bytes"]) == 2 for entry in entries)


def test_a_reply_that_ends_too_early(server: Teacher) -> None:
    whole = json.loads(ask(server, body())[0][2])
    cut = json.loads(ask(server, body(max_tokens=whole["usage"]["completion_tokens"] - 3))[0][2])
    assert cut["choices"][0]["finish_reason"] == "length" and whole["choices"][0]["finish_reason"] == "stop"
    assert cut["usage"]["completion_tokens"] <= whole["usage"]["completion_tokens"] - 3
    server.set(truncated=1.0)
    assert json.loads(ask(server, body())[0][2])["choices"][0]["finish_reason"] == "length"
    server.set(truncated=0.0, malformed=1.0)
    choice = json.loads(ask(server, body())[0][2])["choices"][0]
    with pytest.raises(ValueError):
        json.loads(choice["message"]["content"])
    assert choice["finish_reason"] == "stop"
    assert json.loads(content(ask(server, body(response_format={"type": "json_object"}))[0][2]))


def test_limits(server: Teacher) -> None:
    server.set(rate=2.0, burst=5)
    answers = ask(server, *(body(user=str(i)) for i in range(12)))
    assert 5 <= [status for status, _, _ in answers].count(200) <= 7
    assert {headers["Retry-After"] for status, headers, _ in answers if status == 429} == {"1"}
    time.sleep(0.6)
    assert 1 <= [status for status, _, _ in ask(server, *[body()] * 6)].count(200) <= 3
    server.set(rate=0.0, latency=0.5, max_concurrent=3)
    assert [status for status, _, _ in ask(server, *[body()] * 5)].count(503) == 2
    server.set(latency=0.0, max_concurrent=0, tokens_per_minute=600)
    answers = ask(server, *[body()] * 4)
    assert 1 <= [status for status, _, _ in answers].count(200) <= 2
    assert all(1 <= int(headers["Retry-After"]) <= 60 for status, headers, _ in answers if status == 429)
    stats = server.stats()
    assert set(stats["refused"]) == {"rate", "concurrent", "tokens"} and stats["max_in_flight"] >= 4
    assert stats["requests"] == sum(stats["outcomes"].values()) == 27
    assert stats["outcomes"] == {"answered": stats["answers"], "refused": sum(stats["refused"].values())}


def test_what_never_succeeds(server: Teacher) -> None:
    completions = client(server, KEY).chat.completions
    server.set(key="another")
    with pytest.raises(openai.AuthenticationError, match=r"sk-\*\*\*6789") as caught:
        completions.create(**body())
    assert KEY not in str(caught.value) and caught.value.code == "invalid_api_key"
    server.set(leak=True)
    with pytest.raises(openai.AuthenticationError, match=KEY):
        completions.create(**body())
    assert KEY not in json.dumps(server.stats()) and list(server.stats()["keys"].values()) == [2]
    server.set(key=KEY, account="balance", account_after=1)
    assert completions.create(**body()).choices
    with pytest.raises(openai.APIStatusError, match="Insufficient Balance") as caught:
        completions.create(**body())
    assert caught.value.status_code == 402
    server.set(account="quota")
    with pytest.raises(openai.RateLimitError) as caught:
        completions.create(**body())
    assert caught.value.code == "insufficient_quota" and "retry-after" not in caught.value.response.headers
    server.set(account="good", refuses="json_schema,n")
    with pytest.raises(openai.NotFoundError, match="no-such"):
        completions.create(**body(model="no-such"))
    schema = {"type": "json_schema", "json_schema": {"name": "label", "schema": {"type": "object"}}}
    for more in ({"response_format": schema}, {"n": 2}, {"logprobs": True, "top_logprobs": 21}):
        with pytest.raises(openai.BadRequestError):
            completions.create(**body(**more))
    server.set(refuses="", ignores="n", usage=False)
    reply = completions.create(**body(n=2), extra_body={"enable_thinking": True})
    assert len(reply.choices) == 1 and reply.usage is None
    assert server.stats()["unknown_keys"] == {"enable_thinking": 1}
    with pytest.raises(openai.NotFoundError):
        client(server, KEY).with_options(base_url=server.base_url + "/v1").chat.completions.create(**body())


def test_a_client_that_goes_away_is_not_answered(server: Teacher) -> None:
    server.set(latency=0.5)
    assert ask(server, body(), timeout=0.1)[0][0] is asyncio.TimeoutError
    deadline = time.monotonic() + 0.4
    while server.stats()["in_flight"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.stats()["outcomes"] == {"abandoned": 1} and server.stats()["answers"] == 0
    server.set(latency=0.35, keepalive=0.1)
    _, _, raw = ask(server, body())[0]
    assert raw.startswith(b"\n\n\n{") and content(raw)
    assert 0.3 < server.stats()["span"] < 2 and server.stats()["bodies"] == []
    server.set(keep=2)
    ask(server, body("一"), body("二"), body("三"))
    assert len(server.stats()["bodies"]) == 2


def test_it_ends_with_the_process_that_started_it() -> None:
    code = (
        "import time\nfrom tests.teacher import teacher\n"
        "with teacher() as server:\n    print(server.base_url, flush=True); time.sleep(99)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    port = int(parent.stdout.readline().split(":")[2].split("/")[0])
    socket.create_connection(("127.0.0.1", port)).close()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    with pytest.raises(ConnectionRefusedError):
        for _ in range(100):
            socket.create_connection(("127.0.0.1", port)).close()
            time.sleep(0.05)


def test_a_wrong_option_is_one_line(server: Teacher) -> None:
    with pytest.raises(UserError, match="style=poem: expected one of diagnosis"):
        server.set(style="poem")
    with pytest.raises(TypeError):
        server.set(latnecy=1.0)
    command = [sys.executable, "-m", "tests.teacher", "--kinds=429,501"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert run.returncode == 1 and run.stderr.startswith(b"error: kinds=429,501: expected one of 429,")
    assert run.stderr.count(b"\n") == 1
