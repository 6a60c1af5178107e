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
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream, DefaultAioHttpClient, Omit

from chat.limits import UNREACHABLE, Limiter, Permit
from preprocess import think
from recipe import UserError, read_text

T = TypeVar("T")
PROBE_TOKENS = 2048  # of the answer that shows whether a server holds to a schema, thought and all
PROBES = 4  # questions to a server that has not answered yet, until it has had time to refuse one
REFUSAL_SECONDS = {True: 0.1, False: 1.0}  # that time, for a server on this machine, and for another
AHEAD = 4  # questions taken from the iterator and not yet handed back, in multiples of `concurrency`
BACKOFF, LONGEST_BACKOFF = 0.5, 60.0  # seconds
LONGEST_IN_TURN = 4.0  # after a 429 or a Retry-After: how fast all of them ask, the limiter knows
DRAINING = 60.0  # seconds for what is in flight when a run ends that had answers
FATAL_TRIES = 3  # for a question that is refused for good while others are answered
DONE = object()
UNREACHED = -1  # instead of an HTTP status
MOST_TOKENS = 1 << 32
# What other servers than OpenAI's call `stop` and `length`.
FINISHED = dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence"), "stop")
FINISHED |= dict.fromkeys(("length", "max_tokens", "max_length"), "length")
RAW = 20_000  # characters kept of what came instead of an answer
# Providers don't agree on the status of these.
ACCOUNT = re.compile(
    r"insufficient.?(quota|balance)|balance.{0,20}insufficient|exceeded.{0,6}current.?quota|billing|arrear"
    r"|欠费|余额不足",
    re.IGNORECASE,
)
MODEL = re.compile(
    r"model.{0,80}(not.?(found|exist|support)|n.t exist|unknown)|unknown.model|模型.{0,20}不存在",
    re.IGNORECASE | re.DOTALL,
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
    "certificate": (
        2,
        NEVER,
        "set base_url to a host whose certificate is trusted, or SSL_CERT_FILE to its authority's",
    ),
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
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be a number of more than 0, got {getattr(self, name)}")
        for name in ("requests_per_minute", "tokens_per_minute"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name} must be 0 (no limit) or more, got {getattr(self, name)}")
        if not self.urls:
            raise UserError("base_url: expected one URL or a list of them, e.g. http://127.0.0.1:8000/v1")
        for url in self.urls:
            _check_url(url)

    @property
    def key_place(self) -> str:
        """Where the key is set, for messages."""
        return f"api_key_file {self.api_key_file}" if self.api_key_file else f"${self.api_key_env} (api_key_env)"

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
    usage           as the server gave it, but for counts that can't be
    lost_tokens     prompt and completion tokens of earlier tries that the server counted and that held no answer
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
    lost_tokens: tuple[int, int] = (0, 0)
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
    lost_tokens: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class _Refusal:
    """One try that failed; `hopeless` is a key of HOPELESS, or "" where trying again may help."""

    kind: str
    message: str
    raw: str = ""
    status: int = 200
    retry_after: float = 0.0  # seconds
    hopeless: str = ""
    usage: dict[str, Any] = field(default_factory=dict)


class Stopped(Exception):
    """The client was stopped before this question had its answer."""


class BadReply(Exception):
    """HTTP 200, and no whole answer in it; `usage` is what it cost all the same, where the server says so."""

    def __init__(self, message: str, usage: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.usage = usage or {}


# --- the key ----------------------------------------------------------------------------------------------------------


class Secret(str):
    """A string that doesn't show among a traceback's locals."""

    def __repr__(self) -> str:
        return "'***'"


def read_key(settings: Settings) -> Secret:
    """The key from `api_key_file`, else from the variable `api_key_env`; servers on this machine may go without."""
    if settings.api_key_file:
        path = Path(settings.api_key_file).expanduser()
        if path.resolve().is_relative_to(Path(__file__).parent.parent.resolve()):
            raise UserError(f"api_key_file: {path} lies in this project's folder; move the key out of it")
        key = Secret(read_text(path).strip())
    else:
        key = Secret(os.environ.get(settings.api_key_env, "").strip())
        if not key and all(is_local(url) for url in settings.urls):
            return Secret("none")
    if not re.fullmatch(r"[!-~]+", key):
        fault = "expected printable ASCII without blanks" if key else "it is empty or not set"
        raise UserError(f"{settings.key_place}: no key for {', '.join(settings.urls)}: {fault}")
    return key


def _check_url(url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise UserError(f"base_url: {url!r} is no URL; expected one like https://api.deepseek.com/v1")
    if parts.username or parts.password or parts.query:
        raise UserError(
            f"base_url: the one at {parts.hostname} holds a password or a query; put the key in api_key_env"
        )


def is_local(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


# --- one server -------------------------------------------------------------------------------------------------------


class _Api(AsyncOpenAI):
    """The official client, sending the key and the question, and nothing about this machine."""

    @property
    def default_headers(self) -> dict[str, str | Omit]:
        return {"Accept": "application/json", "Content-Type": "application/json"}


class _Server:
    """Where it is, how fast it may be asked, and how it has behaved."""

    def __init__(self, url: str, settings: Settings, key: str) -> None:
        self.url, self.local = url, is_local(url)
        self.limiter = Limiter(settings.concurrency, settings.requests_per_minute, settings.tokens_per_minute)
        self.limiter.ceiling = min(PROBES, settings.concurrency)
        self.asked = self.answered = False
        self.hopeless: list[_Refusal] = []  # in a row, the latest ones
        scheme = urllib.parse.urlsplit(url).scheme
        proxies = {} if self.local else urllib.request.getproxies()
        through = proxies.get(scheme) or proxies.get("all") or ""
        self.proxy = urllib.parse.urlsplit(through).netloc.rpartition("@")[2]  # without a password
        if through.startswith("socks"):
            raise UserError(f"{scheme}_proxy, all_proxy: a SOCKS proxy is not supported; set an http:// one")
        timeout = httpx2.Timeout(None, connect=settings.connect_timeout, read=settings.first_token_timeout)
        limits = httpx2.Limits(max_connections=0, keepalive_expiry=4.0)  # to aiohttp, 0 is no limit
        # A proxy that is set for the outside world is not asked about this machine.
        http = DefaultAioHttpClient(
            timeout=timeout,
            limits=limits,
            trust_env=not self.local,
            verify=httpx2.create_ssl_context(),  # SSL_CERT_FILE holds for any server
            follow_redirects=False,
        )
        self.api = _Api(base_url=url, api_key=key, max_retries=0, timeout=timeout, http_client=http)

    @property
    def given_up(self) -> bool:
        """Whether it refuses every question, for a reason that no question escapes."""
        return bool(self.hopeless) and len(self.hopeless) >= HOPELESS[self.hopeless[-1].hopeless][self.answered]

    @property
    def excluded(self) -> bool:
        """Whether it is asked no more; one that can't be reached may come back."""
        return self.given_up and self.hopeless[-1].hopeless not in ("unreachable", "page")

    async def models(self) -> list[str]:
        """The models that it names, or [] where it doesn't."""
        with suppress(openai.APIError, aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError):
            async with asyncio.timeout(2.0):
                response = await self.api.get("/models", cast_to=httpx2.Response, options=BARE)
            return [str(model["id"]) for model in json.loads(response.content)["data"]]
        return []


# --- all of them ------------------------------------------------------------------------------------------------------


class Client:
    """Asks the servers of `settings` with `key`, within one `async with`. To be looked at meanwhile:

    errors          tries that failed so far, by the kind of failure
    in_flight       questions that a server is answering
    allowed         how many may be at the moment
    refusing        servers that refuse everything: {url: what they say}
    """

    def __init__(self, settings: Settings, key: str) -> None:
        self.settings, self._key = settings, Secret(key)
        self.errors: Counter[str] = Counter()
        self._servers: list[_Server] = []
        self._waiting: tuple[deque[asyncio.Future], ...] = (deque(), deque())  # for a permit: what was begun, new ones
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task] = set()
        self._stopping = asyncio.Event()
        self._ending, self._error = False, None
        self._answered, self._failing_since = False, math.inf

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
        return sum(server.limiter.room for server in self._servers if not server.excluded)

    @property
    def refusing(self) -> dict[str, str]:
        return {server.url: server.hopeless[-1].message for server in self._servers if server.given_up}

    def stop(self, grace: float = 4.0) -> None:
        """Send nothing more. What is in flight may be answered for `grace` seconds, then `ask_all` ends."""
        self._stopping.set()
        for queue in self._waiting:
            while queue:
                if not (future := queue.popleft()).done():
                    future.set_exception(Stopped())
        asyncio.get_running_loop().call_later(grace, self._drop)

    def _drop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _end(self, error: Exception) -> None:
        """Stop for a reason, which `ask_all` and `ask` raise."""
        self._error = self._error or error
        self.stop(DRAINING if self._answered else 0.0)

    async def ask_all(self, questions: Iterable[Question | None]) -> AsyncIterator[tuple[Question, Reply | Failure]]:
        """Every question with what came of it, as it comes. A question is taken from `questions` when it can be sent;
        a None among them lets the others go on, where the next one takes a while to be found.

        Where answers are not taken, no more are asked for than `concurrency`, beside those in flight. Raises UserError
        when no server can answer any more, and what `questions` raises, each after handing out what was in flight.
        After `stop` it ends early; a question that is missing then was not answered.
        """
        done: asyncio.Queue[tuple[Question, Reply | Failure] | None] = asyncio.Queue()
        room, taken = asyncio.Semaphore(AHEAD * self.settings.concurrency * len(self._servers)), asyncio.Event()
        tasks: set[asyncio.Task] = set()
        feeding = asyncio.create_task(self._feed(iter(questions), done, room, taken, tasks))
        try:
            while item := await done.get():
                room.release()
                taken.set()
                yield item
            await feeding
            if self._error:
                raise self._error
        finally:
            feeding.cancel()
            await asyncio.sleep(0)  # cancelled before its first step, a task would keep its permit
            for task in (feeding, *tasks):
                task.cancel()
            await asyncio.gather(feeding, *tasks, return_exceptions=True)

    async def _feed(
        self,
        questions: Iterator[Question | None],
        done: asyncio.Queue,
        room: asyncio.Semaphore,
        taken: asyncio.Event,
        tasks: set[asyncio.Task],
    ) -> None:
        """Start a task a question, as permits come, and end when the last one has."""

        async def ask(question: Question, server: _Server, permit: Permit) -> None:
            handed = False
            try:
                done.put_nowait((question, await self._ask(question, server, permit)))
                handed = True
            except Stopped:
                pass
            except Exception as error:
                self._end(error)
            finally:
                if not handed:
                    room.release()

        try:
            while True:
                while done.qsize() >= self.settings.concurrency:
                    taken.clear()
                    await taken.wait()
                await room.acquire()
                server, permit = await self._permit(new=True)
                question = None
                try:
                    question = next(questions, DONE)
                finally:
                    if not isinstance(question, Question):
                        self._give_back(server, permit)
                if question is DONE:
                    return
                if question is None:
                    room.release()
                    await asyncio.sleep(0)
                    continue
                task = asyncio.create_task(ask(question, server, permit))
                for group in (tasks, self._tasks):
                    group.add(task)
                    task.add_done_callback(group.discard)
                await asyncio.sleep(0)  # it is sent, and a refusal is heard, before the next one
        except Stopped:
            pass
        finally:
            while tasks:
                await asyncio.wait(tasks)
            done.put_nowait(None)

    async def ask(self, question: Question) -> Reply | Failure:
        """One question, ahead of the new ones of `ask_all`. Raises UserError when no server can answer any more, and
        Stopped after `stop`."""

        async def ask() -> Reply | Failure:
            return await self._ask(question, *await self._permit())

        return await self._unless_stopped(ask())

    async def supports_schema(self, model: str) -> bool:
        """Whether an answer is held to a JSON schema, by one short question that calls for prose.

        Raises UserError for a wrong key, an unknown model, an empty account, a server that can't be reached, and
        Stopped after `stop`.
        """
        return await self._unless_stopped(self._supports_schema(model))

    async def _unless_stopped(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Its result; as a task of its own, which `stop` can drop."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await task
        except (Stopped, asyncio.CancelledError):
            if self._stopping.is_set() and not asyncio.current_task().cancelling():
                raise self._error or Stopped() from None
            raise

    async def _supports_schema(self, model: str) -> bool:
        schema = {"type": "object", "properties": {"greeting": {"type": "string"}}, "required": ["greeting"]}
        schema |= {"additionalProperties": False}
        asked = {"model": model, "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": PROBE_TOKENS}
        asked |= {"response_format": {"type": "json_schema", "json_schema": {"name": "hello", "schema": schema}}}
        for tries in range(1, self.settings.max_tries + 1):
            outcome = await self._try(*await self._permit(), self._body(asked))
            if isinstance(outcome, Reply):
                return "response_format" in asked and (outcome.finish_reason != "stop" or _is_object(outcome.text))
            if outcome.hopeless == "request":
                return False
            if outcome.hopeless in ("model", "url"):  # is that what it lacks, or does it say so of the schema?
                asked.pop("response_format", None)
            await self._sleep(_wait(outcome, tries))
        raise UserError(f"{outcome.message}; it can't be asked whether it holds to a schema, run it again later")

    # --- one question -------------------------------------------------------------------------------------------------

    async def _ask(self, question: Question, server: _Server, permit: Permit) -> Reply | Failure:
        body, began, tries, counted, lost = self._body(question.asked), time.monotonic(), 0, 0, (0, 0)
        while True:
            tries += 1
            outcome = await self._try(server, permit, body)
            if isinstance(outcome, Reply):
                return replace(outcome, tries=tries, lost_tokens=lost)
            told = (outcome.usage.get("prompt_tokens", 0), outcome.usage.get("completion_tokens", 0))
            lost = (lost[0] + told[0], lost[1] + told[1])
            counted += outcome.kind != "rate_limit" and outcome.status != UNREACHED and outcome.hopeless != "account"
            most = 1 if outcome.kind == "refused_request" else self.settings.max_tries
            if server.answered and outcome.hopeless in RETRIED_RARELY:
                most = min(most, FATAL_TRIES)
            wait = _wait(outcome, tries)
            if counted >= most or time.monotonic() + wait - began > self.settings.retry_seconds:
                return Failure(outcome.kind, outcome.message, tries, outcome.raw, lost)
            await self._sleep(wait)
            server, permit = await self._permit(avoid=server)

    def _body(self, asked: dict[str, Any]) -> bytes:
        if self.settings.stream:
            asked = asked | {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(asked, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        if self._stopping.is_set():
            raise Stopped

    async def _try(self, server: _Server, permit: Permit, body: bytes) -> Reply | _Refusal:
        """Send it once, learn from what comes. Raises Stopped where that shows that nothing can be had any more."""
        limiter, began = server.limiter, time.monotonic()
        limiter.reserve(permit, len(body) / 3)
        try:
            outcome = await self._send(server, body)
        except BaseException:
            self._give_back(server, permit)
            raise
        now = time.monotonic()
        if isinstance(outcome, Reply):
            limiter.ok(permit, now, outcome.usage.get("total_tokens", 0))
            self._answered = server.answered = True
            self._failing_since, server.hopeless = math.inf, []
            self._open(server)
            return replace(outcome, latency=round(now - began, 3), server=server.url)
        self.errors[outcome.kind] += 1
        if outcome.kind in ("rate_limit", "timeout") or outcome.status in (503, 529):
            limiter.refused(permit, now, outcome.retry_after, outcome.status == 429 or outcome.retry_after > 0)
        elif outcome.status == UNREACHED:
            limiter.failed(permit, now, UNREACHABLE)
        elif outcome.kind in ("refused_request", "fatal"):
            limiter.dropped(permit)
        else:
            limiter.failed(permit, now)
        await self._judge(server, outcome, now)
        self._wake()
        return outcome

    async def _judge(self, server: _Server, refusal: _Refusal, now: float) -> None:
        """End all if no server can answer: each refuses whatever is asked, or nothing has come for too long."""
        server.hopeless = [*server.hopeless[-16:], refusal] if refusal.hopeless else []
        if refusal.hopeless and not server.answered:
            server.limiter.ceiling = 1
        if all(server.given_up for server in self._servers) and not self._ending:
            self._ending = True
            models = await server.models() if refusal.hopeless == "model" else []
            named = f": {', '.join(models[:8])}{', …' * (len(models) > 8)}" if models else ""
            advice = HOPELESS[refusal.hopeless][2].format(key=self.settings.key_place, models=named)
            self._end(UserError(f"{refusal.message}; {advice}"))
        self._failing_since = min(self._failing_since, now)
        waited = now - self._failing_since
        idle = self.in_flight == 0 or refusal.kind == "timeout"
        if idle and max(waited, refusal.retry_after) > self.settings.outage_seconds:
            asked = f", and asks to wait {refusal.retry_after:.0f} s" if refusal.retry_after > waited else ""
            self._end(UserError(f"no answer for {waited:.0f} s: {refusal.message}{asked}; run it again later"))
        if self._error:
            raise Stopped

    # --- permits ------------------------------------------------------------------------------------------------------

    async def _permit(self, new: bool = False, avoid: _Server | None = None) -> tuple[_Server, Permit]:
        """Wait until a server may be asked; a question that was begun goes before a new one."""
        if self._stopping.is_set():
            raise Stopped
        if not (new and any(self._waiting)) and (server := self._free(avoid)):
            return self._take(server)
        future = asyncio.get_running_loop().create_future()
        self._waiting[new].append(future)
        self._wake()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                self._give_back(*future.result())
            raise

    def _free(self, avoid: _Server | None = None) -> _Server | None:
        """The server that is likely to answer first, of those that may be asked now."""
        now = time.monotonic()
        free = [server for server in self._servers if not server.excluded and not server.limiter.wait(now)]
        return min(
            free, key=lambda s: (s is avoid, (s.limiter.in_flight + 1) * (s.limiter.latency or 0.1)), default=None
        )

    def _take(self, server: _Server) -> tuple[_Server, Permit]:
        if not server.asked:
            server.asked = True
            asyncio.get_running_loop().call_later(REFUSAL_SECONDS[server.local], self._open, server)
        return server, server.limiter.take(time.monotonic())

    def _open(self, server: _Server) -> None:
        """Let it be asked as much as its limits allow, once it has answered, or could have refused and did not."""
        if not server.hopeless:
            server.limiter.ceiling = server.limiter.most
        self._wake()

    def _give_back(self, server: _Server, permit: Permit) -> None:
        server.limiter.dropped(permit)
        self._wake()

    def _wake(self) -> None:
        """Hand permits to those who wait, as long as there are any; come back when there is the next one."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while any(self._waiting):
            queue = self._waiting[0] or self._waiting[1]
            if queue[0].done():
                queue.popleft()
            elif server := self._free():
                queue.popleft().set_result(self._take(server))
            else:
                now = time.monotonic()
                wait = min((s.limiter.wait(now) for s in self._servers if not s.excluded), default=math.inf)
                if wait < math.inf:
                    self._timer = asyncio.get_running_loop().call_later(wait, self._wake)
                return

    # --- one try ------------------------------------------------------------------------------------------------------

    async def _send(self, server: _Server, body: bytes) -> Reply | _Refusal:
        """One request and what came back, whatever that is."""
        try:
            async with asyncio.timeout(self.settings.timeout):
                response = await server.api.post(
                    "/chat/completions",
                    cast_to=httpx2.Response,
                    content=body,
                    options=BARE,
                    stream=self.settings.stream,
                    stream_cls=AsyncStream[Any],
                )
                content = self._cleared(await response.aread())
        except openai.APIStatusError as error:
            return self._refused(server, error.response)
        except TimeoutError:
            return self._lost(server, "timeout", f"no whole answer within {self.settings.timeout:g} s")
        except (openai.APIConnectionError, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            return self._broken(server, error)
        try:
            return read_reply(response.headers.get("content-type", ""), content)
        except BadReply as error:
            page = "page" if b"<html" in content[:2000].lower() else ""
            lost = self._lost(server, "bad_reply", f"HTTP 200, but {error}", content, hopeless=page)
            return replace(lost, usage=error.usage)

    def _refused(self, server: _Server, response: httpx2.Response) -> _Refusal:
        """What a status other than 2xx means; ERROR texts tell an empty account and an unknown model apart."""
        status, content = response.status_code, self._cleared(response.content)
        said, code = error_of(content)
        told, hopeless = f"{said} {code}", ""
        if status in (400, 402, 403, 429) and (status == 402 or ACCOUNT.search(told)):
            kind, hopeless = "fatal", "account"
        elif status in (400, 403, 404, 422) and MODEL.search(told):
            kind, hopeless = "fatal", "model"
        elif status in (401, 403):
            kind, hopeless = "fatal", "key" if status == 401 else "forbidden"
        elif status < 400 or status in (404, 405):
            kind, hopeless = "fatal", "url"
        elif status in (408, 504):
            kind = "timeout"
        elif status == 429:
            kind = "rate_limit"
        elif status >= 500 or status in (409, 425):
            kind = "server"
        else:
            kind, hopeless = "refused_request", "request"
        if status < 400:
            said = f"redirected to {response.headers.get('location', 'another address')}"
        message = f"HTTP {status}, {said}" if said else f"HTTP {status}"
        return self._lost(server, kind, message, content, status, retry_after(response.headers), hopeless)

    def _broken(self, server: _Server, error: BaseException) -> _Refusal:
        """What a request that brought no response means: aiohttp's own exception, behind the others, says it."""
        cause = error
        while cause.__cause__ and not isinstance(cause, aiohttp.ClientError):
            cause = cause.__cause__
        said = str(cause) or type(cause).__name__
        if isinstance(cause, aiohttp.ClientConnectorCertificateError):
            reason = getattr(cause.certificate_error, "verify_message", "") or said
            return self._lost(server, "connection", f"certificate refused, {reason}", hopeless="certificate")
        if isinstance(cause, aiohttp.ClientConnectorError):
            reason = cause.os_error
            said = os.strerror(reason.errno) if (reason.errno or 0) > 0 else reason.strerror or str(reason)
        if not server.local and (proxy := server.proxy):
            said = f"{said} (by the proxy {proxy} of the environment)"
        if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError | ssl.SSLError):
            return self._lost(server, "connection", said, status=UNREACHED, hopeless="unreachable")
        if isinstance(cause, aiohttp.ServerTimeoutError | TimeoutError | httpx2.TimeoutException):
            silence = f"no byte for {self.settings.first_token_timeout:g} s"
            return self._lost(server, "timeout", silence)
        return self._lost(server, "connection", said)

    def _lost(
        self,
        server: _Server,
        kind: str,
        said: str,
        content: bytes = b"",
        status: int = 200,
        retry_after: float = 0.0,
        hopeless: str = "",
    ) -> _Refusal:
        """A _Refusal with the server's address, in one line, and without the key, which some servers repeat."""
        line = " ".join(f"{server.url}: {self._scrubbed(said)}".split())
        line = "".join(char if char.isprintable() else "?" for char in line[:500])
        return _Refusal(kind, line, content.decode(errors="replace")[:RAW], status, retry_after, hopeless)

    def _scrubbed(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) > 7 else text

    def _cleared(self, content: bytes) -> bytes:
        """What came, without the key: before a part of it is taken, which could hold half the key."""
        return content.replace(self._key.encode(), b"***") if len(self._key) > 7 else content


def _wait(refusal: _Refusal, tries: int) -> float:
    """Seconds until the next try: what the server asks for, and a random share of what doubles with every try."""
    limited = refusal.kind == "rate_limit" or refusal.retry_after
    longest = LONGEST_IN_TURN if limited else LONGEST_BACKOFF
    return refusal.retry_after + random.uniform(0.0, min(longest, BACKOFF * 2 ** min(tries - 1, 10)))


def retry_after(headers: httpx2.Headers) -> float:
    """Seconds that the server asks to wait, in any of the three spellings, 0.0 for none.

    >>> retry_after(httpx2.Headers({"retry-after-ms": "1500"}))
    1.5
    """
    for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
        with suppress(ValueError):
            seconds = float(headers.get(name, "")) / unit
            return seconds if 0 < seconds < math.inf else 0.0
    with suppress(ValueError, TypeError):
        until = parsedate_to_datetime(headers.get("retry-after", ""))
        now = parsedate_to_datetime(headers["date"]).timestamp() if "date" in headers else time.time()
        return max(0.0, until.timestamp() - now)
    return 0.0


# --- what a reply holds -----------------------------------------------------------------------------------------------


def read_reply(content_type: str, content: bytes) -> Reply:
    """A whole answer, from a JSON body or a stream of events. Raises BadReply for anything less."""
    if not content.strip():
        raise BadReply("the body is empty")
    if "json" in content_type:
        value = _json(content)
    elif "event-stream" in content_type:
        value = _joined(content)
    else:
        raise BadReply(f"it is {content_type or 'of no type'}{_title(content)}, not JSON")
    if not isinstance(value, dict) or value.get("error"):
        raise BadReply(f"an error: {error_of(content)[0]}" if isinstance(value, dict) else "the JSON is no object")
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        raise BadReply("there is no choice in it")
    raw, finish = _text(message.get("content")) or _text(message.get("refusal")), _text(choice.get("finish_reason"))
    finish, usage = FINISHED.get(finish.lower(), finish), _counted(value.get("usage"))
    parts = think.split(raw)
    source = next((name for name in ("reasoning", "reasoning_content") if _text(message.get(name))), "")
    thought = _text(message.get(source)).strip() or parts.think
    if not source and think.has_tag(raw):
        source = "closing_tag" if parts.fault == "unopened" else "inline"
    if finish == "error":
        raise BadReply("it ended with an error", usage)
    if finish in ("stop", "") and not thought and not parts.answer:
        raise BadReply("the answer is empty", usage)
    return Reply(
        text=parts.answer,
        think=thought,
        think_from=source if thought else "",
        raw=raw,
        finish_reason="unclosed" if finish == "stop" and parts.fault == "unclosed" else finish,
        usage=usage,
        model=_text(value.get("model")),
        fingerprint=_text(value.get("system_fingerprint")),
        logprobs=_tokens(choice) or None,
    )


def _counted(usage: Any) -> dict[str, Any]:
    """A `usage` without counts that can't be: negative, no integers, more than any answer has."""
    given = usage if isinstance(usage, dict) else {}
    return {name: value for name, value in given.items() if not name.endswith("_tokens") or _is_count(value)}


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MOST_TOKENS


def _json(content: bytes) -> Any:
    """The value, lone surrogates (half an emoji, in \\u escapes) replaced: no file takes them."""
    if b"\\ud" in content or b"\\uD" in content:
        content = LONE_SURROGATE.sub(lambda found: rb"\ufffd" if found[1] else found[0], content)
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadReply(f"the JSON is cut or broken ({error})") from None


def _joined(content: bytes) -> dict[str, Any]:
    """The events of a stream as the one body that would have come without; BadReply where the end is missing."""
    value: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    finish, logprobs, whole = "", [], False
    for line in content.splitlines():
        if not line.startswith(b"data:"):
            continue
        if (data := line.removeprefix(b"data:").strip()) == b"[DONE]":
            whole = True
            continue
        event = _json(data)
        if not isinstance(event, dict) or event.get("error"):
            raise BadReply(f"an error in the stream: {error_of(data)[0]}")
        value |= {name: event[name] for name in ("model", "system_fingerprint", "usage") if event.get(name)}
        for choice in _objects(event.get("choices")):
            if choice.get("index"):  # without a stream, too, the first one is taken
                continue
            for delta in _objects([choice.get("delta")]):
                for name, text in delta.items():
                    texts.setdefault(name, []).append(_text(text))
            finish = choice.get("finish_reason") or finish
            logprobs += _tokens(choice)
    if not (whole or finish):
        raise BadReply("the stream was cut")
    message = {name: "".join(parts) for name, parts in texts.items()}
    told = {"content": logprobs} if logprobs else None
    return value | {"choices": [{"message": message, "finish_reason": finish, "logprobs": told}]}


def _objects(value: Any) -> list[dict[str, Any]]:
    """The JSON objects of a list; [] for anything else."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _tokens(choice: dict[str, Any]) -> list[dict[str, Any]]:
    """What a choice says of its tokens' probabilities."""
    logprobs = choice.get("logprobs")
    return _objects(logprobs.get("content")) if isinstance(logprobs, dict) else []


def _text(value: Any) -> str:
    """A string, the texts of a list of parts, or ""."""
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in _objects(value))
    return value if isinstance(value, str) else ""


def error_of(content: bytes) -> tuple[str, str]:
    """What an error body says, and its code and type, in whichever of the usual places they stand."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return _title(content).strip(" ,") or content[:200].decode(errors="replace"), ""
    value = value if isinstance(value, dict) else {}
    error = value.get("error") if isinstance(value.get("error"), dict) else value
    said = next((text for name in ("message", "error", "detail", "msg") if (text := _text(error.get(name)))), "")
    return said or content[:200].decode(errors="replace"), f"{error.get('code')} {error.get('type')}"


def _title(content: bytes) -> str:
    """Of an HTML page, for a message."""
    found = TITLE.search(content[:5000])
    return f", a page with the title {found[1].decode(errors='replace').strip()!r}" if found else ""


def _is_object(text: str) -> bool:
    with suppress(ValueError):
        return isinstance(json.loads(text), dict)
    return False
