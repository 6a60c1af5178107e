"""The client against servers that behave and misbehave: other processes, or the test's own; real sockets, 127.0.0.1."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field, replace
from email.utils import formatdate
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest
from aiohttp import web

import chat.client
from chat.client import BadReply, Client, Failure, Question, Reply, Settings, Stopped, read_key, read_reply, retry_after
from recipe import UserError
from tests.conftest import ROOT
from tests.teacher import FAULTS, Options, Teacher, teacher

KEY = "sk-planted-0123456789abcdef"
FAST = {"model": "teacher", "concurrency": 8, "connect_timeout": 1, "first_token_timeout": 1, "timeout": 2}
FAST |= {"retry_seconds": 15, "outage_seconds": 15}
PATIENT = {"timeout": 20, "first_token_timeout": 20}
TEXT = "性别: 男\n年龄: 47\n主诉: 发热、咳嗽4天\n现病史: 淋雨后出现发热，最高39.2℃，伴畏寒，咳黄脓痰。"
JSON, SSE, HTML = "application/json", "text/event-stream", "text/html"
REMOTE, LOCAL = "https://api.deepseek.com/v1", "http://127.0.0.1:8000/v1"
Said = Callable[[web.Request], tuple[int, str | bytes, dict[str, str]]]  # status, body, headers


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Teacher]]:
    with teacher() as one, teacher() as two:
        yield [one, two]


@pytest.fixture
def servers(processes: list[Teacher]) -> list[Teacher]:
    """The module's two processes, as new."""
    for server in processes:
        server.set(**asdict(Options()))
        server.reset()
    return processes


@pytest.fixture
def server(servers: list[Teacher]) -> Teacher:
    return servers[0]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat.client, "BACKOFF", 0.05)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may be: time for a refusal that is sent at once."""
    monkeypatch.setitem(chat.client.REFUSAL_SECONDS, True, 1.0)


def question(i: int = 0, **more: Any) -> Question:
    message = {"role": "user", "content": f"{TEXT}\n既往史: 第{i}次住院。"}
    return Question(str(i), 0, {"model": "teacher", "messages": [message]} | more)


@dataclass
class Run:
    """What came of the questions, in the order in which it was handed out."""

    outcomes: list[tuple[str, Reply | Failure]] = field(default_factory=list)
    error: UserError | None = None
    errors: Counter[str] = field(default_factory=Counter)
    refusing: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def replies(self) -> dict[str, Reply]:
        return {id_: outcome for id_, outcome in self.outcomes if isinstance(outcome, Reply)}

    def is_whole(self, size: int) -> bool:
        """Whether each question has its answer, once."""
        asked = sorted(id_ for id_, _ in self.outcomes)
        return not self.error and asked == sorted(map(str, range(size))) == sorted(self.replies)


def connect(base_url: str | list[str], **settings: Any) -> Client:
    return Client(Settings(base_url=base_url, **FAST | settings), KEY)


async def collect(
    base_url: str | list[str],
    questions: int | Iterable[Question],
    each: Callable[[Client, Run], None] = lambda client, run: None,
    **settings: Any,
) -> Run:
    """Ask them all; `each` is called after every outcome."""
    run, began = Run(), time.monotonic()
    async with connect(base_url, **settings) as client:
        try:
            asked = map(question, range(questions)) if isinstance(questions, int) else questions
            async for one, outcome in client.ask_all(asked):
                run.outcomes.append((one.id, outcome))
                each(client, run)
        except UserError as error:
            run.error = error
        run.errors, run.refusing, run.seconds = client.errors, client.refusing, time.monotonic() - began
    return run


def ask(servers: Teacher | list[Teacher], questions: int | Iterable[Question], **more: Any) -> Run:
    urls = [server.base_url for server in servers] if isinstance(servers, list) else servers.base_url
    return asyncio.run(collect(urls, questions, **more))


@asynccontextmanager
async def serving(said: Said, context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """A server of this test's own: its base_url, and the requests that came (with their bodies read)."""
    seen: list[web.Request] = []

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        seen.append(request)
        status, body, headers = said(request)
        kind = {"Content-Type": JSON if body[:1] in ("{", b"{") else HTML}
        return web.Response(status=status, body=body, headers=kind | headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await (site := web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)).start()
    yield f"{site.name.rsplit(':', 1)[0]}:{runner.addresses[0][1]}/v1", seen
    await runner.cleanup()


def ask_own(said: Said, questions: int = 1, context: ssl.SSLContext | None = None, **more: Any) -> tuple[Run, list]:
    async def main() -> tuple[Run, list[web.Request]]:
        async with serving(said, context) as (base_url, seen):
            return await collect(base_url, questions, **more), seen

    return asyncio.run(main())


def body(content: Any, finish: str | None = "stop", **more: Any) -> bytes:
    choice = {"message": {"content": content} | more, "finish_reason": finish}
    return json.dumps({"choices": [choice]}, ensure_ascii=False).encode()


def sse(*events: Any, done: bool = False) -> bytes:
    lines = [*(json.dumps(event) for event in events), *["[DONE]"] * done]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


def hello(_: web.Request) -> tuple[int, bytes, dict[str, str]]:
    return 200, body("你好"), {}


# --- what an answer holds ---------------------------------------------------------------------------------------------

TOLD = {"reasoning": "reasoning", "reasoning_content": "reasoning_content", "inline": "inline"}
TOLD |= {"closing": "closing_tag", "none": ""}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("thought, told", TOLD.items())
def test_a_thought_is_found_wherever_it_stands(server: Teacher, thought: str, told: str, stream: bool) -> None:
    server.set(thought=thought, style="cot", latency=0.05)
    reply = ask(server, [question(logprobs=True, top_logprobs=2)], stream=stream).replies["0"]
    assert (reply.think_from, "鉴别" in reply.think) == (told, bool(told))
    assert reply.text.endswith("建议到门诊进一步检查。") and "think>" not in reply.text + reply.think
    assert ("</think>" in reply.raw) == (thought in ("inline", "closing")) and reply.finish_reason == "stop"
    assert reply.usage["total_tokens"] > reply.usage["prompt_tokens"] > 20 and reply.usage["completion_tokens"] > 20
    assert (reply.model, reply.fingerprint, reply.server) == ("teacher", "teacher", server.base_url)
    assert 0.05 <= reply.latency < 1 and reply.tries == 1
    assert b"".join(bytes(token["bytes"]) for token in reply.logprobs).decode() == reply.raw
    assert {len(token["top_logprobs"]) for token in reply.logprobs} == {2}


def test_chinese_survives_a_stream_that_is_cut_within_characters(server: Teacher) -> None:
    server.set(style="cot", truncated=0.3, thought="inline")
    calm = ask(server, 20)
    server.set(style="cot", truncated=0.3, thought="inline", faults=1.0, kinds="drip", drip=0.2)  # fifty pieces
    dripped = ask(server, 20, stream=True)
    assert calm.is_whole(20) and dripped.is_whole(20)
    assert Counter(reply.finish_reason for reply in calm.replies.values()).keys() == {"length", "stop"}
    for name in ("text", "think", "raw", "finish_reason", "usage"):
        told = [{id_: getattr(reply, name) for id_, reply in run.replies.items()} for run in (calm, dripped)]
        assert told[0] == told[1]


PARTS = [{"type": "text", "text": "感"}, {"type": "text", "text": "冒"}]
LONE = b'{"choices": [{"message": {"content": "\\ud83d\\ude00 \\ud83d \\\\ud83d"}}]}'
READ = [  # body, think, think_from, text, finish_reason
    (body("<think>先看发热"), "先看发热", "inline", "", "unclosed"),
    (body("<think>先看发热", "length"), "先看发热", "inline", "", "length"),
    (body("<think></think>\n\n感冒"), "", "", "感冒", "stop"),
    (body("感冒", reasoning="", reasoning_content=" 发热 "), "发热", "reasoning_content", "感冒", "stop"),
    (body("感冒", reasoning="发热", reasoning_content="发热"), "发热", "reasoning", "感冒", "stop"),
    (body(PARTS), "", "", "感冒", "stop"),
    (body(None, reasoning="发热"), "发热", "reasoning", "", "stop"),
    (body(None, "content_filter"), "", "", "", "content_filter"),
    (body(None, refusal="我不能回答"), "", "", "我不能回答", "stop"),
    (body("感冒", None), "", "", "感冒", ""),
    (LONE, "", "", "😀 � \\ud83d", ""),
]


@pytest.mark.parametrize("content, think, think_from, text, finish", READ)
def test_reading_a_reply(content: bytes, think: str, think_from: str, text: str, finish: str) -> None:
    reply = read_reply("application/json; charset=utf-8", content)
    assert (reply.think, reply.think_from, reply.text, reply.finish_reason) == (think, think_from, text, finish)


PART, END = {"choices": [{"delta": {"content": "感冒"}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}
SECOND = {"choices": [{"index": 1, "delta": {"content": "肺炎"}}]}


@pytest.mark.parametrize("content", [sse(PART, END), sse(PART, SECOND, done=True), b": hi\r\n" + sse(PART, END)])
def test_a_stream_is_whole_by_either_end(content: bytes) -> None:
    assert read_reply(SSE, content).text == "感冒"


ODD = [None, 1, "x", [], [1], {}, {"x": 1}, [{"delta": "x"}], [{"message": 1}], [[]]]
LESS = [(JSON, content) for content in (b"", b" \n", body("感冒")[:-9], b"[]", b"[" * 100_000, b'{"error": "busy"}')]
LESS += [(JSON, content) for content in (body(""), body("", None), body("<think></think>"), body("感冒", "error"))]
LESS += [(SSE, sse(PART)), (SSE, sse(PART) + b'data: {"choi'), (SSE, sse(END)), (SSE, sse(PART, "x", END))]
LESS += [(SSE, sse(PART, {"error": {"message": "busy"}}, END)), ("text/plain", body("感冒")), (HTML, b"<html>")]
LESS += [(JSON, json.dumps({"choices": odd}).encode()) for odd in ODD]
LESS += [(SSE, sse({"choices": odd}, done=True)) for odd in ODD]
LESS += [(SSE, sse({"choices": [{"delta": odd, "finish_reason": "stop"}]})) for odd in ODD]


@pytest.mark.parametrize("content_type, content", LESS)
def test_anything_less_is_a_bad_reply(content_type: str, content: bytes) -> None:
    with pytest.raises(BadReply):
        read_reply(content_type, content)


@pytest.mark.parametrize("odd", ODD)
def test_odd_extras_do_not_cost_an_answer(odd: Any) -> None:
    extras = {"usage": odd, "model": odd, "system_fingerprint": odd}
    choice = {"message": {"content": "感冒"}, "finish_reason": "stop", "logprobs": odd}
    part = {"delta": {"content": "感冒", "tool_calls": odd}, "logprobs": odd}
    assert read_reply(JSON, json.dumps({"choices": [choice]} | extras).encode()).text == "感冒"
    assert read_reply(SSE, sse({"choices": [part]} | extras, END)).text == "感冒"


# --- faults -----------------------------------------------------------------------------------------------------------

COUNTED = {"4": "rate_limit", "5": "server", "drop": "connection", "cut": "connection", "ha": "timeout"}
COUNTED |= {"half": "bad_reply", "drip": "timeout"}


@pytest.mark.parametrize(
    "kind, stream",
    [(kind, False) for kind in FAULTS] + [(kind, True) for kind in ("cut", "hang", "drip", "half", "error")],
)
def test_no_fault_loses_a_question_or_asks_one_twice(server: Teacher, kind: str, stream: bool, impatient: None) -> None:
    share, seed = (
        (0.3, 3) if kind.startswith("429") else (0.5, 1)
    )  # of more in a row a rate is learnt, which takes time
    server.set(faults=share, kinds=kind, max_faults=1, retry_after=0.2, drip=5.0, seed=seed)
    counted = next((name for start, name in reversed(COUNTED.items()) if kind.startswith(start)), "bad_reply")
    # Only where a time-out is meant may one come; the machine may be busy.
    first, whole = (1.5, 2.5) if counted == "timeout" else (30, 60)
    run = ask(server, 12, stream=stream, first_token_timeout=first, timeout=whole, concurrency=12)
    stats = server.stats()
    faults = stats["faults"][kind]
    assert run.is_whole(12) and stats["times_answered"] == {"1": 12} and faults >= 3 and stats["early"] == 0
    assert run.errors == {counted: faults} and sum(reply.tries - 1 for reply in run.replies.values()) == faults


SPELLED = [({"retry-after": value}, 0.0) for value in ("-1", "nan", "inf", "soon", "")]
SPELLED += [({"retry-after": "2"}, 2.0), ({"retry-after": "0.5"}, 0.5), ({}, 0.0)]
SPELLED += [({"retry-after-ms": "1500", "retry-after": "2"}, 1.5), ({"retry-after-ms": "x", "retry-after": "2"}, 2.0)]
SPELLED += [
    (
        {"retry-after": formatdate(1_000_000 + wait, usegmt=True), "date": formatdate(1_000_000, usegmt=True)},
        max(wait, 0),
    )
    for wait in (7, -7)
]


@pytest.mark.parametrize("headers, seconds", SPELLED)
def test_retry_after_in_every_spelling(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(httpx2.Headers(headers)) == seconds
    in_100 = formatdate(time.time() + 100, usegmt=True)
    assert 98 < retry_after(httpx2.Headers({"retry-after": in_100})) <= 100


@pytest.mark.parametrize("name, value", [("Retry-After", "0.4"), ("Retry-After-MS", "400")])
def test_nothing_is_sent_before_retry_after_ends(name: str, value: str, impatient: None) -> None:
    times: list[float] = []

    def said(request: web.Request) -> tuple[int, bytes, dict[str, str]]:
        times.append(time.monotonic())
        return (429, b'{"message": "slower"}', {name: value}) if len(times) == 1 else hello(request)

    assert ask_own(said)[0].is_whole(1) and 0.4 <= times[1] - times[0] < 0.8


ENDS = [  # faults, kind of failure, settings
    ("500", "server", {"max_tries": 3}),
    ("drop", "connection", {"max_tries": 3}),
    ("half", "bad_reply", {"max_tries": 3}),
    ("hang", "timeout", {"max_tries": 2, "first_token_timeout": 0.15}),
    ("drip", "timeout", {"max_tries": 2, "timeout": 0.15}),
    ("500", "server", {"retry_seconds": 0.3}),
    ("429", "rate_limit", {"max_tries": 2, "retry_seconds": 0.5}),
]


@pytest.mark.parametrize("kinds, kind, settings", ENDS)
def test_tries_end(server: Teacher, kinds: str, kind: str, settings: dict[str, float], impatient: None) -> None:
    server.set(faults=1.0, kinds=kinds, max_faults=99)
    run = ask(server, 1, **settings)
    ((_, failure),) = run.outcomes
    assert not run.error and isinstance(failure, Failure) and failure.kind == kind and run.seconds < 8
    assert "\n" not in failure.message and server.base_url in failure.message
    assert bool(failure.raw) == (kind in ("server", "bad_reply", "rate_limit"))
    if "retry_seconds" in settings:  # and a rate limit does not use tries up
        assert failure.tries > 2
    else:
        assert failure.tries == settings["max_tries"] == server.stats()["requests"]


def test_a_question_that_is_refused_fails_alone(server: Teacher) -> None:
    server.set(refuses="top_k")
    run = ask(server, [question(i, **{"top_k": 5} if i == 3 else {}) for i in range(8)])
    failure = dict(run.outcomes)["3"]
    assert not run.error and len(run.replies) == 7 and isinstance(failure, Failure)
    assert (failure.kind, failure.tries) == ("refused_request", 1) and "top_k" in failure.message


# --- what no question can go round ------------------------------------------------------------------------------------

MISSING = "The model `teacher` does not exist or you do not have access to it.; set model to one that it has: r1, v3"
HOPELESS = [
    (
        {"key": "another", "leak": True},
        "HTTP 401, Incorrect API key provided: ***.; set a valid key in $OPENAI_API_KEY",
    ),
    ({"models": "r1,v3"}, MISSING),
    ({"account": "balance"}, "HTTP 402, Insufficient Balance; top up the account"),
    ({"account": "quota"}, "HTTP 429, You exceeded your current quota.; top up the account"),
    ("path", "HTTP 404, Invalid URL (POST /chat/completions); set base_url to"),
    ("nobody", "Connection refused; start the server"),
]


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("concurrency", [4, 64])
@pytest.mark.parametrize("options, words", HOPELESS)
def test_what_no_question_can_go_round_ends_all(
    server: Teacher, options: dict[str, Any] | str, words: str, concurrency: int
) -> None:
    url = server.base_url.removesuffix("/v1") if options == "path" else server.base_url
    if options == "nobody":
        url = f"http://127.0.0.1:{free_port()}/v1"
    elif options != "path":
        server.set(**options, latency=0.2)
    run = asyncio.run(collect(url, 200, concurrency=concurrency))
    assert words in str(run.error) and url in str(run.error) and "\n" not in str(run.error)
    assert not run.outcomes and run.seconds < 15 and server.stats()["requests"] <= 5
    assert KEY[:9] not in f"{run.error}{run.errors}{run.refusing}"


def key_of(request: web.Request) -> str:
    return request.headers["Authorization"].removeprefix("Bearer ")


REFUSING: list[tuple[Said, str]] = [
    (lambda _: (200, "<html><title>请登录</title>", {}), "HTTP 200, but it is text/html, a page with the title '请"),
    (lambda _: (403, '{"message": "not\\nin your plan"}', {}), "HTTP 403, not in your plan; see what the key"),
    (lambda sent: (307, "", {"Location": f"/login/{key_of(sent)}"}), "HTTP 307, redirected to /login/***; set base"),
    (lambda sent: (401, "x" * 190 + key_of(sent), {}), "HTTP 401, xxx"),
]


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("said, words", REFUSING)
def test_other_servers_that_refuse_all(said: Said, words: str) -> None:
    run, seen = ask_own(said, 200, concurrency=64)
    assert words in str(run.error) and "\n" not in str(run.error) and len(seen) <= 5 and run.seconds < 15
    assert KEY[:9] not in str(run.error)


def test_a_server_that_takes_no_connection_is_out_of_reach() -> None:
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        run = asyncio.run(collect(url, 200, concurrency=64, connect_timeout=0.5))
    assert f"{url}: " in str(run.error) and "; start the server" in str(run.error) and 0.5 <= run.seconds < 5


def test_an_account_that_empties_on_the_way(server: Teacher) -> None:
    server.set(account="balance", account_after=20, latency=0.05)
    run, stats = ask(server, 200), server.stats()
    assert "Insufficient Balance" in str(run.error) and 20 <= stats["answers"] <= 28 and run.seconds < 15
    assert len(run.replies) == len(run.outcomes) == stats["answers"] and set(stats["times_answered"]) == {"1"}
    assert set(stats["outcomes"]) == {"answered", "refused"}  # what was in flight is waited for


def test_the_key_is_in_nothing_that_comes_back() -> None:
    def said(request: web.Request) -> tuple[int, str | bytes, dict[str, str]]:
        sent = key_of(request)
        return (500, "x" * 170 + sent, {}) if next(numbers) % 2 else (200, body(f"钥匙是{sent}"), {})

    numbers = count()
    run, seen = ask_own(said, 6, max_tries=1)
    assert {request.headers["Authorization"] for request in seen} == {f"Bearer {KEY}"}
    assert 0 < len(run.replies) < 6 == len(run.outcomes) and KEY[:9] not in repr(run)


# --- how fast ---------------------------------------------------------------------------------------------------------


def test_requests_per_minute_are_kept(server: Teacher) -> None:
    run = ask(server, 40, requests_per_minute=2400)
    assert run.is_whole(40) and 0.7 < run.seconds < 8  # 10 at once, then 39 a second


def test_tokens_per_minute_are_kept(server: Teacher) -> None:
    used = sum(reply.usage["total_tokens"] for reply in ask(server, 30).replies.values())
    run = ask(server, 30, tokens_per_minute=used * 60, concurrency=2)
    assert run.is_whole(30) and 0.7 < run.seconds < 8  # a second's worth, and a quarter of it is there at first


def test_concurrency_is_not_exceeded(server: Teacher) -> None:
    server.set(latency=0.1, jitter=0.5)
    assert ask(server, 40, concurrency=7).is_whole(40) and server.stats()["max_in_flight"] == 7


def test_a_server_that_takes_less_gets_less(server: Teacher, impatient: None) -> None:
    server.set(latency=0.05, max_concurrent=8)
    run = ask(server, 100, concurrency=64)
    assert run.is_whole(100) and set(run.errors) == {"server"} and run.errors["server"] < 100


def test_questions_are_taken_when_they_can_be_sent(server: Teacher) -> None:
    taken: list[int] = []
    ahead: list[int] = []

    def questions() -> Iterator[Question]:
        for i in range(40):
            taken.append(i)
            yield question(i)

    server.set(latency=0.05)
    run = ask(server, questions(), each=lambda _, run: ahead.append(len(taken) - len(run.outcomes)))
    assert run.is_whole(40) and 4 <= max(ahead) <= 8


# --- several servers --------------------------------------------------------------------------------------------------


def test_servers_share_by_their_speed(servers: list[Teacher]) -> None:
    for server, latency in zip(servers, (0.05, 0.2), strict=True):
        server.set(latency=latency)
    run = ask(servers, 100, concurrency=4)
    fast, slow = (server.stats() for server in servers)
    assert run.is_whole(100) and fast["max_in_flight"] == slow["max_in_flight"] == 4
    assert 2.5 < fast["answers"] / slow["answers"] < 6
    assert Counter(reply.server for reply in run.replies.values())[servers[0].base_url] == fast["answers"]


@pytest.mark.parametrize(
    "options, words",
    [({"key": "another"}, "401"), ({"models": "r1"}, "does not exist"), ({"account": "balance"}, "402")],
)
@pytest.mark.usefixtures("impatient", "busy")
def test_the_others_go_on_without_one_that_refuses(servers: list[Teacher], options: dict[str, str], words: str) -> None:
    good, bad = servers
    good.set(latency=0.02)
    bad.set(**options)
    run = ask([bad, good], 60)
    assert run.is_whole(60) and list(run.refusing) == [bad.base_url] and words in run.refusing[bad.base_url]
    assert good.stats()["answers"] == 60 and bad.stats()["requests"] <= 5


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("up", [True, False])
def test_one_dies_or_is_not_up_yet_and_comes_back(server: Teacher, up: bool, impatient: None) -> None:
    server.set(latency=0.1)
    port = free_port()
    command = [sys.executable, "-m", "tests.teacher", "--port", str(port), "--latency", "0.1"]
    url, processes, by = f"http://127.0.0.1:{port}/v1", [], []  # by: the servers of the answers

    def start() -> None:
        processes.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE))

    def kill() -> None:
        processes[-1].send_signal(signal.SIGKILL)
        processes[-1].communicate()

    def each(client: Client, run: Run) -> None:
        by.append(run.outcomes[-1][1].server)
        if len(by) == 20:
            if up:
                kill()
            start()

    def questions() -> Iterator[Question]:
        """Until the new process has answered some."""
        for i in range(400):
            if by[40:].count(url) < 5:
                yield question(i)

    if up:
        start()
        processes[0].stdout.readline()
    try:
        run = asyncio.run(collect([server.base_url, url], questions(), each=each, concurrency=4))
    finally:
        kill()
    assert run.is_whole(len(by)) and by[40:].count(url) >= 5 and run.errors["connection"] >= 1 and not run.refusing
    assert (by[:20].count(url) > 4) == up and by[24:28].count(url) == 0


def test_answers_that_nobody_takes_are_not_piled_up(server: Teacher) -> None:
    async def main() -> None:
        async with connect(server.base_url, **PATIENT) as client:
            async for _ in client.ask_all(map(question, range(200))):
                await asyncio.sleep(0.5)
                break

    asyncio.run(main())
    assert server.stats()["answers"] <= 3 * 8


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency, grace, answered", [(0.6, 2.0, 8), (9.0, 0.2, 0)])
def test_stop_hands_out_what_is_in_flight_or_drops_it(
    server: Teacher, latency: float, grace: float, answered: int
) -> None:
    server.set(latency=latency)

    async def main() -> int:
        async with connect(server.base_url, **PATIENT) as client:
            asyncio.get_running_loop().call_later(0.4, client.stop, grace)
            return len([1 async for _, outcome in client.ask_all(map(question, count())) if isinstance(outcome, Reply)])

    began = time.monotonic()
    assert asyncio.run(main()) == answered and time.monotonic() - began < 4 + min(grace, latency)
    assert server.stats()["outcomes"] == {"answered" if answered else "abandoned": 8}


@pytest.mark.parametrize(
    "call", [lambda client: client.ask(question()), lambda client: client.supports_schema("teacher")]
)
def test_stop_ends_a_single_question_too(server: Teacher, call: Callable) -> None:
    server.set(latency=9.0)

    async def main() -> None:
        async with connect(server.base_url, **PATIENT) as client:
            asyncio.get_running_loop().call_later(0.2, client.stop, 0.2)
            with pytest.raises(Stopped):
                await call(client)

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("how", ["close", "forget"])
@pytest.mark.parametrize("latency", [0.0, 0.1])
def test_an_iteration_that_is_left_early_leaves_nothing(
    server: Teacher, how: str, latency: float, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    server.set(latency=latency)

    async def main() -> None:
        async with connect(server.base_url) as client:
            answers = client.ask_all(map(question, count()))
            async for _ in answers:
                break
            if how == "close":
                await answers.aclose()
                assert client.in_flight == 0 and len(asyncio.all_tasks()) == 1
                assert isinstance(await client.ask(question()), Reply)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    gc.collect()
    assert not caplog.records and capsys.readouterr().err == ""


def test_questions_that_raise_end_it_after_what_was_asked(server: Teacher) -> None:
    def questions() -> Iterator[Question]:
        yield from map(question, range(5))
        raise OSError("the disk is gone")

    server.set(latency=0.2)
    seen: list[str] = []
    with pytest.raises(OSError, match="the disk is gone"):
        ask(server, questions(), each=lambda _, run: seen.append(run.outcomes[-1][0]))
    assert sorted(seen) == list("01234")


# --- structured output ------------------------------------------------------------------------------------------------


def supports_schema(base_url: str) -> bool:
    async def main() -> bool:
        async with connect(base_url) as client:
            return await client.supports_schema("teacher")

    return asyncio.run(main())


PROSE = {"ignores": "response_format", "style": "cot"}


@pytest.mark.parametrize("options, told", [({}, True), ({"refuses": "json_schema"}, False), (PROSE, False)])
def test_whether_a_schema_is_held_to_is_told_apart(server: Teacher, options: dict[str, str], told: bool) -> None:
    server.set(**options)
    assert supports_schema(server.base_url) is told and server.stats()["requests"] == 1


@pytest.mark.parametrize(
    "status, message", [(404, "No endpoint supports it."), (400, "The model does not support it.")]
)
@pytest.mark.usefixtures("impatient")
def test_a_schema_may_be_refused_as_a_model_is(status: int, message: str) -> None:
    def said(request: web.Request) -> tuple[int, bytes, dict[str, str]]:
        refused = b"response_format" in request._read_bytes
        return (status, json.dumps({"message": message}).encode(), {}) if refused else hello(request)

    async def main() -> bool:
        async with serving(said) as (base_url, _), connect(base_url) as client:
            return await client.supports_schema("teacher")

    assert asyncio.run(main()) is False


@pytest.mark.parametrize(
    "options, words", [({"key": "another"}, "401"), ({"models": "r1"}, "it has: r1"), ({"account": "quota"}, "quota")]
)
@pytest.mark.usefixtures("impatient")
def test_what_ends_all_questions_ends_that_one(server: Teacher, options: dict[str, str], words: str) -> None:
    server.set(**options)
    with pytest.raises(UserError, match=words):
        supports_schema(server.base_url)
    assert server.stats()["requests"] <= 5


# --- the key, and what else is sent -----------------------------------------------------------------------------------


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    monkeypatch.setenv("MINE", "a key")
    monkeypatch.delenv("OURS", raising=False)
    settings = Settings(base_url=REMOTE, model="r1")
    key, file, empty, link = read_key(settings), tmp_path / "key", tmp_path / "empty", tmp_path / "link"
    assert key == KEY and KEY not in repr(key) and KEY not in repr({"key": key})
    file.write_text(f"{KEY}2\n", encoding="utf-8")
    empty.write_text("\n", encoding="utf-8")
    link.symlink_to(ROOT / "README.md")
    assert read_key(replace(settings, api_key_file=str(file))) == f"{KEY}2"
    for url in (LOCAL, "http://localhost:1/v1", "http://[::1]:1/v1"):
        assert read_key(replace(settings, base_url=url, api_key_env="OURS"))
    for change, words in [
        ({"api_key_env": "OURS"}, r"^\$OURS \(api_key_env\): no key for .*not set"),
        ({"api_key_env": "OURS", "base_url": [LOCAL, REMOTE]}, r"^\$OURS"),
        ({"api_key_env": "MINE"}, "without blanks"),
        ({"api_key_file": str(ROOT / "README.md")}, "move the key out of it"),
        ({"api_key_file": str(link)}, "move the key out of it"),
        ({"api_key_file": str(empty)}, "it is empty"),
        ({"api_key_file": str(tmp_path / "missing")}, "missing"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            read_key(replace(settings, **change))
        assert "\n" not in str(caught.value) and "a key" not in str(caught.value)


POSITIVE = ("concurrency", "max_tries", "retry_seconds", "timeout")
WRONG = [({name: value}, f"{name} must be a number of more than 0") for name in POSITIVE for value in (0, -1)]
WRONG += [({"requests_per_minute": -1}, "requests_per_minute must be 0"), ({"base_url": []}, "expected one URL")]
WRONG += [
    ({"base_url": url}, "is no URL") for url in ("", "127.0.0.1:8000", "ftp://x/v1", "http:///v1", "http://x:y/v1")
]
WRONG += [
    ({"base_url": f"https://me:{KEY}@x.com/v1"}, "x.com holds a password"),
    ({"base_url": f"https://x.com/?k={KEY}"}, "query"),
]


@pytest.mark.parametrize("settings, words", WRONG)
def test_settings_are_checked(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        Settings(**{"base_url": LOCAL, "model": "r1"} | settings)
    assert KEY not in str(caught.value)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that would send requests elsewhere, and more with them."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv(name, "" if name == "no_proxy" else "http://127.0.0.1:9")
    for name in ("ORG_ID", "PROJECT_ID", "PROJECT", "BASE_URL", "ADMIN_KEY"):
        monkeypatch.setenv(f"OPENAI_{name}", "planted")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Planted: planted")


SENT = {"host", "accept", "content-type", "content-length", "accept-encoding", "user-agent", "connection"}


@pytest.mark.parametrize("stream", [False, True])
def test_the_key_and_the_question_are_sent_and_nothing_else(stream: bool, planted: None) -> None:
    run, (request,) = ask_own(hello, stream=stream)
    asked = question().asked | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})
    assert run.is_whole(1) and (request.method, request.path_qs) == ("POST", "/v1/chat/completions")
    assert json.loads(request._read_bytes) == asked and "淋雨" in request._read_bytes.decode()
    headers = {name.lower(): value for name, value in request.headers.items()}
    assert headers.pop("authorization") == f"Bearer {KEY}" and set(headers) <= SENT
    assert not any(word in str(headers).lower() for word in ("planted", "linux", KEY))


def test_a_redirect_is_not_followed() -> None:
    async def main() -> tuple[Run, list[web.Request]]:
        async with (
            serving(hello) as (there, seen),
            serving(lambda _: (307, "", {"Location": f"{there}/chat/completions"})) as (base_url, _),
        ):
            return await collect(base_url, 1), seen

    run, seen = asyncio.run(main())
    assert "redirected to http://127.0.0.1" in str(run.error) and not seen


def test_a_proxy_is_for_what_is_not_this_machine(
    planted: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (netrc := tmp_path / "netrc").write_text("machine teacher.invalid login me password planted", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(netrc))

    async def main() -> tuple[Run, list[web.Request]]:
        async with serving(hello) as (proxy, seen):
            monkeypatch.setenv("http_proxy", proxy.removesuffix("/v1"))
            return await collect("http://teacher.invalid/v1", 1), seen

    run, (request,) = asyncio.run(main())
    assert run.is_whole(1) and request.headers["Host"] == "teacher.invalid"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:9")
    with pytest.raises(UserError, match="SOCKS"):
        asyncio.run(collect(REMOTE, 1))


def test_a_certificate_that_is_not_trusted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -keyout key -out certificate"
    flags = ["-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run([*command.split(), *flags], cwd=tmp_path, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the openssl command")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    run, seen = ask_own(hello, 20, context)
    assert "certificate refused, self" in str(run.error) and "\n" not in str(run.error)
    assert run.seconds < 15 and not seen
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate"))
    run, _ = ask_own(hello, 20, context)
    assert run.is_whole(20)
