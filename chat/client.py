"""Asks an OpenAI-compatible server, or a row of them, many questions at once, and loses none.

    async with Client(settings, read_key(settings)) as client:
        async for question, outcome in client.ask_all(questions):      # as they are answered
            match outcome:
                case Reply(text=text, think=think): ...
                case Failure(kind=kind, message=message): ...

What is tried again is told apart from what is not; how fast a server is asked, chat/limits.py decides. What no question
can go round (a wrong key, an unknown model, an empty account, a wrong URL) ends all with one UserError.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import random
import re
import ssl
import time
import urllib.parse
import urllib.request
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, DefaultAioHttpClient, Omit

from chat.limits import BROKEN, UNREACHABLE, Limiter, Permit
from preprocess import think
from recipe import UserError, read_text

PROBES = 4  # questions to a server that has not answered yet, until it has had time to refuse one
REFUSAL_SECONDS = {True: 0.1, False: 1.0}  # that time, for a server on this machine, and for another
AHEAD = 4  # questions taken from the iterator and not yet handed back, in multiples of `concurrency`
BACKOFF, LONGEST_BACKOFF = 0.5, 60.0  # seconds
DRAINING = 60.0  # seconds for what is in flight when a run ends that had answers
FATAL_TRIES = 3  # for a question that is refused for good while others are answered
UNREACHED = -1  # instead of an HTTP status
RAW = 20_000  # characters kept of what came instead of an answer
# Providers don't agree on the status of these.
ACCOUNT = re.compile(
    r"insufficient.?(quota|balance)|balance.{0,20}insufficient|exceeded.{0,6}current.?quota|billing|arrear"
    r"|欠费|余额不足",
    re.IGNORECASE,
)
MODEL = re.compile(
    r"model.{0,80}(not.?(found|exist|support)|n.t exist|unknown)|unknown.model|模型.{0,20}不存在", re.IGNORECASE | re.DOTALL
)
TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.IGNORECASE | re.DOTALL)
# What a setting is to blame for: so many in a row, before the first answer and after it, and nothing else is tried.
NEVER = 1 << 30
HOPELESS = {
    "key": (2, 3, "set a valid key in {key}"),
    "account": (2, 3, "top up the account, or set another key in {key}"),
    "forbidden": (2, 8, "see what the key in {key} is allowed to do"),
    "model": (2, 8, "set model to one that it has{models}"),
    "url": (2, 8, "set base_url to the address up to and with /v1"),
    "page": (4, NEVER, "set base_url to the address up to and with /v1"),
    "unreachable": (4, NEVER, "start the server, or set base_url to the right address"),
    "request": (16, NEVER, "change what is asked"),
}
RETRIED_RARELY = ("forbidden", "model", "url")  # that may be one question's fault, once others were answered
BARE = {"headers": {"x-stainless-retry-count": Omit(), "x-stainless-read-timeout": Omit()}}
LONE_SURROGATE = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The servers and how they are asked; times in seconds, 0 requests or tokens a minute for no limit."""

    base_url: str | list[str]  # up to and with /v1; the questions are spread over several
    model: str
    api_key_env: str = "OPENAI_API_KEY"  # the name of the environment variable that holds the key
    api_key_file: str = ""  # a file outside this folder that holds it
    concurrency: int = 16  # questions at a time to each server, at first and at most
    requests_per_minute: int = 0  # to each server
    tokens_per_minute: int = 0  # likewise, question and answer
    stream: bool = False  # for servers that think only in a stream, or sit behind a proxy that cuts long silence
    max_tries: int = 10  # of one question, not counting those that a rate limit or a server that is away refused
    retry_seconds: float = 7200.0  # for all tries of one question
    outage_seconds: float = 600.0  # without any answer, then the run ends
    connect_timeout: float = 4.0
    first_token_timeout: float = 1800.0  # of silence; without `stream` most servers are silent until they answer
    timeout: float = 3600.0  # of one try, from its start to its last byte

    def __post_init__(self) -> None:
        numbers = "concurrency max_tries retry_seconds outage_seconds connect_timeout first_token_timeout timeout"
        for name in numbers.split():
            if getattr(self, name) <= 0:
                raise UserError(f"{name} must be more than 0, got {getattr(self, name)}")
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be 0 (no limit) or more, got {getattr(self, name)}")
        if not self.urls:
            raise UserError("base_url: expected one URL or a list of them, e.g. http://127.0.0.1:8000/v1")
        for url in self.urls:
            _check_url(url)

    @property
    def urls(self) -> list[str]:
        """The servers, each once, without a final slash."""
        urls = [self.base_url] if isinstance(self.base_url, str) else self.base_url
        return list(dict.fromkeys(url.strip().rstrip("/") for url in urls))


@dataclass(frozen=True)
class Question:
    """What is asked: `asked` is the request's body (model, messages, temperature, …); `sample` counts repetitions."""

    id: str
    sample: int
    asked: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """A whole answer, with nothing judged but its form.

    think_from      the field `reasoning` or `reasoning_content`, `inline` for tags, `closing_tag` for the second one
                    alone, "" where there is no thought
    text            the answer without the thought; "" where a thought was opened and never closed
    finish_reason   as the server gave it, but `unclosed` for such a thought that it ended by `stop`
    raw             the content as it came
    logprobs        as the server gave them: one object a token, or None
    """

    text: str
    think: str
    think_from: str
    raw: str
    finish_reason: str
    usage: dict[str, Any]
    model: str
    fingerprint: str
    latency: float = 0.0  # seconds of the try that succeeded
    tries: int = 1
    server: str = ""
    logprobs: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Failure:
    """Why a question got no answer, in one line without the key; `raw` is what came instead.

    timeout             silence, or more time than `timeout`
    rate_limit          429 until the time ran out
    server              5xx
    connection          refused, dropped, cut
    bad_reply           HTTP 200 and no answer in it: HTML, half a JSON, an error, no choices, nothing
    refused_request     400, 422: this question, whatever the server
    fatal               401, 402, 403, 404, though other questions were answered
    """

    kind: str
    message: str
    tries: int
    raw: str = ""


@dataclass(frozen=True)
class _Refusal:
    """One try that failed. `hopeless`: which setting is to blame, "" where trying again may help."""

    kind: str
    message: str
    raw: str = ""
    status: int = 0
    retry_after: float = 0.0
    hopeless: str = ""


class Stopped(Exception):
    """The client was stopped before this question had its answer."""


class _BadReply(Exception):
    pass


# --- the key ----------------------------------------------------------------------------------------------------------


class Secret(str):
    """A string that doesn't show in a traceback's locals."""

    def __repr__(self) -> str:
        return "'***'"


def read_key(settings: Settings) -> Secret:
    """The key from `api_key_file`, else from the variable `api_key_env`; servers on this machine may go without."""
    if settings.api_key_file:
        path = Path(settings.api_key_file).expanduser()
        if path.resolve().is_relative_to(Path(__file__).parent.parent.resolve()):
            raise UserError(f"api_key_file: {path} lies in this project's folder; move the key out of it")
        place, key = f"api_key_file {path}", Secret(read_text(path).strip())
    else:
        place, key = f"${settings.api_key_env}", Secret(os.environ.get(settings.api_key_env, "").strip())
    if not key and not settings.api_key_file and all(_is_local(url) for url in settings.urls):
        return Secret("none")
    if not key:
        raise UserError(f"{place} holds no key for {', '.join(settings.urls)}; set it to one")
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"{place} holds no key: expected printable ASCII characters without blanks")
    return key


def _check_url(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known:
        raise UserError(f"base_url: {url!r} is no URL; expected one like https://api.deepseek.com/v1")
    if parts.username or parts.password or parts.query:
        raise UserError(f"base_url: {parts.hostname}: a key doesn't belong into the URL; set it by api_key_env")


def _is_local(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


# --- one server -------------------------------------------------------------------------------------------------------


class _Api(AsyncOpenAI):
    """The official client, sending the key and the question and nothing about this machine."""

    @property
    def default_headers(self) -> dict[str, str | Omit]:
        return {"Accept": "application/json", "Content-Type": "application/json"}


class _Server:
    """Where it is, how fast it may be asked, and how it has behaved."""

    def __init__(self, url: str, settings: Settings, key: str) -> None:
        self.url, self.local = url, _is_local(url)
        self.limiter = Limiter(settings.concurrency, settings.requests_per_minute, settings.tokens_per_minute)
        self.limiter.ceiling = min(PROBES, settings.concurrency)
        self.answered = self.probed = False
        self.hopeless: list[_Refusal] = []  # in a row
        timeout = httpx2.Timeout(None, connect=settings.connect_timeout, read=settings.first_token_timeout)
        # In aiohttp 0 connections stand for any number; a proxy for the outside is not asked about this machine.
        limits = httpx2.Limits(max_connections=0, keepalive_expiry=4.0)
        proxies = {} if self.local else urllib.request.getproxies()
        scheme = urllib.parse.urlsplit(url).scheme
        if (proxies.get(scheme) or proxies.get("all") or "").startswith("socks"):
            raise UserError(f"{scheme.upper()}_PROXY: a SOCKS proxy is not spoken here; set it to an http:// one")
        http = DefaultAioHttpClient(timeout=timeout, limits=limits, trust_env=not self.local, follow_redirects=False)
        self.api = _Api(base_url=url, api_key=key, max_retries=0, timeout=timeout, http_client=http)

    @property
    def given_up(self) -> bool:
        """Whether all it does is refuse: twice what a setting is to blame for, more often if it ever answered."""
        if not self.hopeless:
            return False
        certain = self.hopeless[-1].status not in (0, 200, 400, 422)
        return len(self.hopeless) >= (8 if self.answered else 2 if certain else PROBES)

    async def models(self) -> list[str]:
        """The models it names, or [] where it doesn't."""
        with suppress(openai.APIError, ValueError, LookupError, TypeError, TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(2.0):
                response = await self.api.get("/models", cast_to=httpx2.Response, options=OMITTED)
            return [str(model["id"]) for model in json.loads(response.content)["data"]]
        return []


# --- the client -------------------------------------------------------------------------------------------------------


@dataclass
class _Waiting:
    """Who waits for a permit: what was begun first, then new questions."""

    begun: deque[asyncio.Future] = field(default_factory=deque)
    new: deque[asyncio.Future] = field(default_factory=deque)

    def pop(self) -> asyncio.Future | None:
        """The next one that still waits."""
        for queue in (self.begun, self.new):
            while queue:
                if not (future := queue.popleft()).done():
                    return future
        return None


class Client:
    """Asks `settings`' servers with `key`; for one event loop, as `async with`.

    errors          tries that failed so far, by kind
    in_flight       questions that are being answered now
    allowed         how many may be, as the limits stand
    refusing        servers that are no longer asked, and why
    """

    def __init__(self, settings: Settings, key: str) -> None:
        self.settings, self._key = settings, Secret(key)
        self.errors: Counter[str] = Counter()
        self._servers: list[_Server] = []
        self._waiting = _Waiting()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task] = set()
        self._stopping = asyncio.Event()
        self._error: BaseException | None = None
        self._answered, self._failing_since = False, 0.0

    async def __aenter__(self) -> Client:
        self._servers = [_Server(url, self.settings, self._key) for url in self.settings.urls]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop(grace=0.0)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            await server.api.close()

    @property
    def in_flight(self) -> int:
        return sum(server.limiter.in_flight for server in self._servers)

    @property
    def allowed(self) -> int:
        return sum(server.limiter.room for server in self._servers)

    @property
    def refusing(self) -> dict[str, str]:
        return {server.url: server.hopeless[-1].message for server in self._servers if server.given_up}

    def stop(self, grace: float = 4.0) -> None:
        """Send nothing more; what is in flight may still be answered for `grace` seconds. `ask_all` then ends."""
        if not self._stopping.is_set():
            self._stopping.set()
            while waiting := self._waiting.pop():
                waiting.set_exception(Stopped())
        if grace:
            asyncio.get_running_loop().call_later(grace, self._cancel)
        else:
            self._cancel()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def ask_all(self, questions: Iterable[Question]) -> AsyncIterator[tuple[Question, Reply | Failure]]:
        """Every question with what came of it, as it comes. A question is taken from `questions` when it can be sent.

        Raises UserError when no server can answer any more, and what `questions` raises, each after what was in flight
        has been handed out. After `stop` it ends early; what is then missing was not answered.
        """
        done: asyncio.Queue[tuple[Question, Reply | Failure] | None] = asyncio.Queue()
        room = asyncio.Semaphore(AHEAD * self.settings.concurrency * len(self._servers))
        tasks: set[asyncio.Task] = set()
        feeding = asyncio.create_task(self._feed(iter(questions), done, room, tasks))
        try:
            while item := await done.get():
                room.release()
                yield item
            await feeding
            if self._error:
                raise self._error
        finally:
            for task in (feeding, *tasks):
                task.cancel()
            await asyncio.gather(feeding, *tasks, return_exceptions=True)

    async def _feed(
        self, questions: Iterator[Question], done: asyncio.Queue, room: asyncio.Semaphore, tasks: set[asyncio.Task]
    ) -> None:
        async def ask(question: Question, server: _Server, permit: Permit) -> None:
            try:
                done.put_nowait((question, await self._ask(question, server, permit)))
            except Stopped:
                room.release()
            except Exception as error:
                room.release()
                self._end(error, CLOSING)

        try:
            while True:
                await room.acquire()
                server, permit = await self._permit(self._waiting.new)
                try:
                    question = next(questions, None)
                except BaseException:
                    self._give_back(server, permit)
                    raise
                if question is None:
                    self._give_back(server, permit)
                    break
                task = asyncio.create_task(ask(question, server, permit))
                for tasks_ in (tasks, self._tasks):
                    tasks_.add(task)
                    task.add_done_callback(tasks_.discard)
                await asyncio.sleep(0)  # so that it is sent, and a refusal heard, before the next
        except Stopped:
            pass
        finally:
            while tasks:
                await asyncio.wait(tasks)
            done.put_nowait(None)

    async def ask(self, question: Question) -> Reply | Failure:
        """One question, before any new one of `ask_all`. Raises UserError when no server can answer, Stopped after
        `stop`."""
        try:
            return await self._ask(question, *await self._permit(self._waiting.begun))
        except Stopped:
            raise self._error or Stopped() from None

    async def supports_schema(self, model: str) -> bool:
        """Whether the servers hold an answer to a JSON schema: asked once, with a question that calls for prose.

        Raises UserError for what would end a run as well: a wrong key, an empty account, a wrong URL.
        """
        schema = {"type": "object", "properties": {"hello": {"type": "string"}}, "required": ["hello"]}
        schema |= {"additionalProperties": False}
        asked = {
            "model": model,
            "messages": [{"role": "user", "content": "Say hello."}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "greeting", "schema": schema}},
        }
        outcome = await self.ask(Question("supports_schema", 0, asked))
        if isinstance(outcome, Failure):
            return False
        if outcome.finish_reason != "stop":
            return True
        with suppress(ValueError):
            return isinstance(json.loads(outcome.text), dict)
        return False

    # --- one question -------------------------------------------------------------------------------------------------

    async def _ask(self, question: Question, server: _Server, permit: Permit) -> Reply | Failure:
        body = question.asked
        if self.settings.stream:
            body = body | {"stream": True, "stream_options": {"include_usage": True}}
        content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
        began, tries, counted = time.monotonic(), 0, 0
        while True:
            tries += 1
            outcome = await self._try(server, permit, content)
            if isinstance(outcome, Reply):
                return replace(outcome, tries=tries)
            await self._judge(server, outcome)
            counted += not (outcome.kind == "rate_limit" or outcome.status == UNREACHED)
            most = 1 if outcome.kind == "refused_request" else self.settings.max_tries
            most = min(most, FATAL_TRIES) if outcome.hopeless and server.answered else most
            wait = outcome.retry_after + random.uniform(0.0, min(LONGEST_BACKOFF, BACKOFF * 2 ** min(tries, 10)))
            if counted >= most or time.monotonic() + wait - began > self.settings.retry_seconds:
                return Failure(outcome.kind, outcome.message, tries, outcome.raw)
            await self._sleep(wait)
            server, permit = await self._permit(self._waiting.begun, avoid=server)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        if self._stopping.is_set():
            raise Stopped

    async def _try(self, server: _Server, permit: Permit, content: bytes) -> Reply | _Refusal:
        """Send it once, and settle the permit."""
        limiter, began = server.limiter, time.monotonic()
        limiter.reserve(permit, len(content) / 3)
        try:
            outcome = await self._send(server, content)
        except BaseException:
            self._give_back(server, permit)
            raise
        now = time.monotonic()
        if isinstance(outcome, Reply):
            limiter.ok(permit, now, outcome.usage.get("total_tokens") or 0)
            outcome = replace(outcome, latency=round(now - began, 3), server=server.url)
            self._answered, self._failing_since, server.hopeless = True, 0.0, []
            server.answered = True
            self._open(server)
        else:
            self.errors[outcome.kind] += 1
            if outcome.kind == "rate_limit" or outcome.status in (503, 529) or outcome.kind == "timeout":
                limiter.refused(permit, now, outcome.retry_after, outcome.status == 429 or outcome.retry_after > 0)
            elif outcome.kind == "refused_request" or outcome.hopeless:
                limiter.dropped(permit)
            else:
                limiter.failed(permit, now, UNREACHABLE if outcome.status == UNREACHED else BROKEN)
        self._wake()
        return outcome
