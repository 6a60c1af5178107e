"""A teacher that misbehaves on demand: an OpenAI-compatible chat server, a process of its own on 127.0.0.1.

    python -m tests.teacher --port 0 --latency 0.2 --faults 0.3     # prints {"base_url": "http://127.0.0.1:PORT/v1"}

    with teacher(faults=0.3, kinds="429_seconds,drop") as server:
        openai.OpenAI(base_url=server.base_url, api_key="any").chat.completions.create(model="teacher", messages=[...])
        server.set(faults=0.0)
        print(server.stats()["answers"])

What it says depends on the messages and the request's `seed` alone, so a disturbed run and an undisturbed one get the
same texts. Beside /v1/chat/completions and /v1/models: GET /stats, POST /reset, POST /options.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import hashlib
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from email.utils import formatdate
from functools import lru_cache
from pathlib import Path
from typing import Any

from aiohttp import web

from recipe import UserError, one_line_errors

FAULTS = ("429", "429_seconds", "429_date", "500", "503", "drop", "cut", "hang", "drip")
FAULTS += ("half", "empty", "html", "type", "error")
CHOICES = {
    "style": ("diagnosis", "cot", "echo", "judge"),
    "judge": ("first", "random", "perfect", "longer", "broken", "refusing"),
    "thought": ("reasoning_content", "reasoning", "inline", "closing", "none"),
    "account": ("good", "balance", "quota"),
    "token_ids": ("never", "asked", "always"),
    "kinds": FAULTS,
}
INVALID, LIMITED = "invalid_request_error", "rate_limit_exceeded"
ERRORS = {  # status, type, code, message
    "path": (404, INVALID, None, "Invalid URL ({})"),
    "key": (401, INVALID, "invalid_api_key", "Incorrect API key provided: {}."),
    "body": (400, INVALID, None, "We could not parse the JSON body of your request."),
    "model": (404, INVALID, "model_not_found", "The model `{}` does not exist or you do not have access to it."),
    "parameter": (400, INVALID, "unsupported_parameter", "This server does not support {}."),
    "balance": (402, "unknown_error", INVALID, "Insufficient Balance"),
    "quota": (429, "insufficient_quota", "insufficient_quota", "You exceeded your current quota."),
    "concurrent": (503, "server_error", "overloaded", "The server is overloaded."),
    "rate": (429, "requests", LIMITED, "Rate limit reached for teacher on requests."),
    "tokens": (429, "tokens", LIMITED, "Rate limit reached for teacher on tokens per min (TPM)."),
    "429": (429, "requests", LIMITED, "Rate limit reached for teacher."),
    "500": (500, "server_error", None, "The server had an error while processing your request."),
}
KNOWN = {"model", "messages", "stream", "stream_options", "seed", "n", "user", "response_format", "stop"}
KNOWN |= {"max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "return_tokens_as_token_ids"}
KNOWN |= {"temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty"}
HOST, PR_SET_PDEATHSIG = "127.0.0.1", 1
JSON, SSE, HTML = "application/json", "text/event-stream", "text/html"
PAGE = "<html><head><title>502</title></head><body><h1>网关错误</h1></body></html>".encode()
# A word, a number, a Chinese character up to U+5FFF is one token; a later one is two, each of them half a character.
TOKEN = re.compile(rb"[\xe6-\xff][\x80-\xbf]|[\xc0-\xe5][\x80-\xbf]+|[A-Za-z]+| ?[0-9]+|[\x00-\xff]")
LABELS = "性别|年龄|主诉|现病史|既往史|个人史|过敏史|婚育史|流行病史|体格检查|辅助检查"
RECORD = re.compile(rf"^(?:{LABELS})[:：](.*)", re.MULTILINE)
CLAUSE = re.compile(r"[。；，、：？！（）;:,?!()\n“”\"]+|\.\s")
BLOCK = re.compile(
    r"^<<< (?:回答|Answer)( [AB]|) ([0-9a-f]{16})\n(.*?)\n>>> (?:回答|Answer)\1 \2$", re.MULTILINE | re.DOTALL
)
SIGNS = {"咳": "支气管炎", "胸": "冠心病", "腹": "消化性溃疡", "热": "感冒", "晕": "高血压病", "疹": "荨麻疹"}


@dataclass(frozen=True)
class Options:
    """What the teacher is like: seconds, shares from 0 to 1, words joined by commas; 0 or "" where there is none."""

    seed: int = 0  # of faults and replies
    latency: float = 0.0  # of an answer; a stream begins after a quarter of it
    jitter: float = 0.0  # share of the latency, up and down
    keepalive: float = 0.0  # a blank line, or an SSE comment, so often before an answer
    style: str = "diagnosis"  # a JSON object with reason and diseases; cot: plain text; echo: the prompt; judge: below
    judge: str = "perfect"  # counts ★; first: the one shown first; random: that one in 70 %; longer; broken; refusing
    thought: str = "reasoning_content"  # a field of the message; inline: <think> tags; closing: the second tag only
    thought_chars: int = 80  # at least
    truncated: float = 0.0  # share of replies that end in the middle by `length`, as they do at max_tokens
    malformed: float = 0.0  # share of diagnoses whose JSON is cut although they end by `stop`; not with response_format
    faults: float = 0.0  # share of tries that meet one
    kinds: str = ",".join(FAULTS)  # drop: no headers; cut: half the body; drip: slowly; type: as text/plain
    max_faults: int = 3  # in a row, for one request
    retry_after: float = 1.0  # in the faults 429_seconds and 429_date
    drip: float = 10.0  # what the whole body then takes
    rate: float = 0.0  # answers a second; above: 429 with Retry-After: 1
    burst: float = 0.0  # answers at once under that rate; 0: one second's worth
    tokens_per_minute: int = 0  # above: 429 with Retry-After
    max_concurrent: int = 0  # above: 503
    key: str = ""  # else 401; on the command line it is TEACHER_KEY in the environment
    leak: bool = False  # the 401 repeats the whole key that was sent
    account: str = "good"  # balance: 402, none left; quota: 429 insufficient_quota
    account_after: int = 0  # answers that are given before
    models: str = "teacher"  # else 404
    refuses: str = ""  # body keys, or types of response_format, that are a 400
    ignores: str = ""  # body keys that change nothing, as n does in some servers
    token_ids: str = "never"  # logprobs as vLLM's `token_id:123`; asked: where return_tokens_as_token_ids is set
    usage: bool = True
    keep: int = 0  # the last request bodies, told in the stats

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            chosen = getattr(self, name)
            if not set(chosen.split(",") if name == "kinds" else [chosen]) <= set(known):
                raise UserError(f"{name}={chosen}: expected one of {', '.join(known)}")


# --- what is answered -------------------------------------------------------------------------------------------------


@lru_cache(100)
def tokens(text: str) -> list[bytes]:
    return TOKEN.findall(text.encode())


def first_tokens(text: str, count: int) -> str:
    """Its first `count` tokens; half a character becomes U+FFFD, as it does in servers."""
    return b"".join(tokens(text)[:count]).decode(errors="replace")


def encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def prompt_of(message: dict[str, Any]) -> str:
    """A message's text, whether it is a string or comes in parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def compose(prompt: str, options: Options, dice: random.Random) -> tuple[str, str]:
    """A thought and an answer that quote the patient record in the prompt, or the prompt where it holds none."""
    record = "\n".join(RECORD.findall(prompt)) or prompt
    clauses = [clause.strip() for clause in CLAUSE.split(record) if len(clause.strip()) > 2] or [record.strip()[:20]]
    dice.shuffle(clauses)
    names = [name for sign, name in SIGNS.items() if sign in record][:2]
    if not names or dice.random() < 0.2:  # samples disagree now and then
        names = [dice.choice(list(SIGNS.values()))]
    thought = f"先看“{clauses[0]}”，考虑{names[0]}。"
    while len(thought) < options.thought_chars:
        thought += f"再看“{dice.choice(clauses)}”，要和{dice.choice(list(SIGNS.values()))}鉴别。"
    if options.style == "echo":
        return thought, prompt
    if options.style == "judge":
        return thought, judge(prompt, options.judge, dice)
    if '"supported"' in prompt:  # a verifier
        return thought, json.dumps({"supported": "是" if dice.random() < 0.7 else "否"}, ensure_ascii=False)
    if options.style == "cot":
        return thought, f"“{clauses[0]}”提示{names[0]}，建议到门诊进一步检查。"
    reason = "；".join(f"{i}. {clause}，支持{names[0]}" for i, clause in enumerate(clauses[:3], 1))
    diseases = names[0] if len(names) == 1 else "；".join(f"{i}. {name}" for i, name in enumerate(names, 1))
    return thought, json.dumps({"reason": reason, "diseases": diseases}, ensure_ascii=False)


def judge(prompt: str, how: str, dice: random.Random) -> str:
    """A verdict on the answers that eval/prompts/judge_*.j2 shows; of one answer alone, whether it has a ★."""
    answers = [text for _, _, text in BLOCK.findall(prompt)]
    if how == "refusing":
        return "抱歉，我不能评价医疗内容。"
    if len(answers) == 1:
        verdict = "pass" if "★" in answers[0] or how != "perfect" else "fail"
    else:
        values = [len(text) if how == "longer" else text.count("★") for text in answers]
        if how in ("first", "random"):
            values = [1, 0] if how == "first" or dice.random() < 0.7 else [0, 1]
        ahead = values[0] - values[1]
        verdict = {2: "A≫B", 1: "A>B", 0: "A=B", -1: "B>A", -2: "B≫A"}[max(-2, min(2, ahead))]
        verdict = "both-bad" if not ahead and how == "perfect" and not values[0] else verdict
    said = json.dumps({"reason": "按要求逐条比较", "verdict": verdict}, ensure_ascii=False)
    return "先看第一点……\n" + (said[: said.index("verdict") + 11] if how == "broken" else said)


def reply(body: dict[str, Any], index: int, options: Options) -> tuple[str, str, str]:
    """A thought (if it has a field of its own), content and finish reason; of messages, seed and `index` alone."""
    asked = encode([options.seed, body["messages"], body.get("seed"), index])
    dice = random.Random(int.from_bytes(hashlib.sha256(asked).digest()))
    truncated, malformed = dice.random() < options.truncated, dice.random() < options.malformed
    prompts = [prompt_of(message) for message in body["messages"]]
    prompt = next((text for text in reversed(prompts) if RECORD.search(text)), prompts[-1])
    thought, content = compose(prompt, options, dice)
    if malformed and options.style == "diagnosis" and not body.get("response_format"):
        content = content[: len(content) * 2 // 3]
    if options.thought in ("inline", "closing"):
        content = f"{'<think>' * (options.thought == 'inline')}\n{thought}\n</think>\n\n{content}".lstrip()
    if not options.thought.startswith("reasoning"):
        thought = ""
    whole, of_thought = len(tokens(thought)) + len(tokens(content)), len(tokens(thought))
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or whole
    limit = min(limit, whole // 2) if truncated else limit
    if limit >= whole:
        return thought, content, "stop"
    return first_tokens(thought, limit), first_tokens(content, max(limit - of_thought, 0)), "length"


def logprobs(text: str, k: int, as_ids: bool) -> dict[str, Any]:
    """OpenAI's logprobs with k alternatives a token; the token itself stands anywhere among them, or nowhere.

    As vLLM's ids (here the first four bytes as a number), only the chosen token's `bytes` are those of its text.
    """
    dice = random.Random(text)
    content = []
    for token in tokens(text):
        ranked = [chr(0x4E00 + number).encode() for number in dice.sample(range(20_000), k + 2)]
        ranked = [other for other in ranked if other != token][: k + 1]
        place = int((k + 1) * dice.random() ** 4)
        ranked[place] = token
        spelled = [one.decode(errors="backslashreplace") for one in ranked]
        if as_ids:
            spelled = [f"token_id:{int.from_bytes(one[:4], 'big')}" for one in ranked]
            ranked = [name.encode() for name in spelled]
        values = sorted((math.log(dice.random() / (k + 1)) for _ in ranked), reverse=True)
        triples = zip(spelled, values, map(list, ranked), strict=True)
        entries = [dict(zip(("token", "logprob", "bytes"), triple, strict=True)) for triple in triples]
        shown = {"bytes": list(token.decode(errors="replace").encode())} if as_ids else {}
        content.append(entries[place] | shown | {"top_logprobs": entries[:k]})
    return {"content": content, "refusal": None}


def write_body(
    body: dict[str, Any], replies: list[tuple[str, str, str]], options: Options
) -> tuple[list[bytes], dict[str, int]]:
    """The response's body in pieces (one, or a stream's events), and the usage; of a prompt, characters are counted."""
    asked = sum(len(prompt_of(message)) for message in body["messages"])
    of_thought = sum(len(tokens(thought)) for thought, _, _ in replies)
    given = of_thought + sum(len(tokens(content)) for _, content, _ in replies)
    usage = {"prompt_tokens": asked, "completion_tokens": given, "total_tokens": asked + given}
    told = {"usage": usage | {"completion_tokens_details": {"reasoning_tokens": of_thought}}} if options.usage else {}
    stream, as_ids = bool(body.get("stream")), bool(body.get("return_tokens_as_token_ids"))
    as_ids = {"never": False, "asked": as_ids, "always": True}[options.token_ids]
    head = {"id": f"chatcmpl-{hashlib.sha256(encode(body['messages'])).hexdigest()[:24]}", "created": 1_700_000_000}
    head |= {"object": f"chat.completion{'.chunk' * stream}", "model": body["model"], "system_fingerprint": "teacher"}

    def choice(index: int, thought: str, content: str, finish: str | None) -> dict[str, Any]:
        said = {"role": "assistant", "content": content} | ({options.thought: thought} if thought else {})
        one = {"index": index, "delta" if stream else "message": said, "finish_reason": finish}
        if body.get("logprobs") and content:
            one["logprobs"] = logprobs(content, body.get("top_logprobs") or 0, as_ids)
        return one

    if not stream:
        return [encode(head | {"choices": [choice(i, *one) for i, one in enumerate(replies)]} | told)], usage
    deltas: list[tuple[int, str, str, str | None]] = []
    for i, (thought, content, finish) in enumerate(replies):
        deltas += [(i, part, "", None) for part in sliced(thought, 4)]
        deltas += [(i, "", part, None) for part in sliced(content, 4)]
        deltas += [(i, "", "", finish)]
    events = [encode(head | {"choices": [choice(*delta)]}) for delta in deltas]
    if told and (body.get("stream_options") or {}).get("include_usage"):
        events.append(encode(head | {"choices": []} | told))
    return [b"data: " + event + b"\n\n" for event in (*events, b"[DONE]")], usage


def sliced(whole: Any, count: int) -> list[Any]:
    """A string or bytes in at most `count` pieces."""
    step = -(-len(whole) // count) or 1
    return [whole[begin : begin + step] for begin in range(0, len(whole), step)]


# --- the server -------------------------------------------------------------------------------------------------------


class Bucket:
    """A token bucket, full at first."""

    def __init__(self, per_second: float, size: float) -> None:
        self.per_second, self.size, self.empty_at = per_second, size, -math.inf

    def wait(self, need: float) -> float:
        """Take `need` and return 0.0, or take nothing and return the seconds until there is as much."""
        now, seconds = time.monotonic(), min(need, self.size) / self.per_second
        self.empty_at = max(self.empty_at, now - self.size / self.per_second)
        short = self.empty_at + seconds - now
        if short > 1e-6:  # less than that is rounding
            return short
        self.empty_at += seconds
        return 0.0


def _error(name: str, detail: str = "", retry_after: str = "") -> web.Response:
    status, kind, code, message = ERRORS[name]
    body = encode({"error": {"message": message.format(detail), "type": kind, "param": None, "code": code}})
    return web.Response(
        status=status, body=body, content_type=JSON, headers={"Retry-After": retry_after} if retry_after else None
    )


class Server:
    """The handlers and what they remember; one event loop, nothing is locked."""

    def __init__(self, options: Options) -> None:
        self.in_flight = 0
        self.configure(options)
        self.reset()

    def configure(self, options: Options) -> None:
        self.options = options
        self.kinds, self.models = options.kinds.split(","), options.models.split(",")
        self.refuses, self.ignores = set(options.refuses.split(",")), set(options.ignores.split(","))
        self.rate = Bucket(options.rate or math.inf, max(options.burst or options.rate, 1.0))
        self.budget = Bucket((options.tokens_per_minute or math.inf) / 60, options.tokens_per_minute)
        self.bodies: deque[dict[str, Any]] = deque(maxlen=options.keep)

    def reset(self) -> None:
        counters = ("paths", "outcomes", "faults", "refused", "unknown_keys", "usage", "keys", "by_request")
        self.seen: dict[str, Any] = {name: Counter() for name in counters}
        self.seen |= dict.fromkeys(("early", "max_in_flight", "first_request", "last_request", "last_answer"), 0)
        self.tries: dict[str, tuple[int, int]] = {}  # by request: all of them, and faults in a row
        self.not_before: dict[str, float] = {}  # by request: what Retry-After said, Unix time

    def stats(self) -> dict[str, Any]:
        """What was seen since the start or the last reset; times are of the machine's monotonic clock.

        `outcomes` adds up to the requests that ended: answered (status 200, whole body), listed (/v1/models), refused,
        faulted, abandoned (by the client, while an answer was awaited); a drip that the client waits for is answered.
        `by_request` has, by a hash of its body, how often each request was answered; `times_answered` sums that up,
        {"1": 1990, "2": 10} where ten were answered twice. `keys` are hashes of the Authorization headers; `early`
        counts the tries that came before the time that Retry-After had named.
        """
        outcomes, span = self.seen["outcomes"], self.seen["last_answer"] - self.seen["first_request"]
        derived = {"in_flight": self.in_flight, "requests": outcomes.total() + self.in_flight, "span": max(span, 0.0)}
        derived |= {"answers": outcomes["answered"], "times_answered": Counter(self.seen["by_request"].values())}
        return self.seen | derived | {"bodies": list(self.bodies)}

    async def control(self, request: web.Request) -> web.Response:
        if request.path == "/stats":
            return web.json_response(self.stats())
        if request.path == "/options":
            self.configure(replace(self.options, **await request.json()))
        else:
            self.reset()
        return web.json_response({})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any request but those to `control`, at whatever path."""
        raw, now = await request.read(), time.monotonic()
        await asyncio.sleep(0)  # every request of a burst has its time of arrival before the first one costs any
        seen, digest = self.seen, hashlib.sha256(raw).hexdigest()[:16]
        seen["first_request"], seen["last_request"] = seen["first_request"] or now, now
        seen["paths"][f"{request.method} {request.path}"] += 1
        seen["early"] += self.not_before.pop(digest, 0.0) > time.time() + 0.01
        if header := request.headers.get("Authorization"):
            seen["keys"][hashlib.sha256(header.encode()).hexdigest()[:16]] += 1
        self.in_flight += 1
        seen["max_in_flight"] = max(seen["max_in_flight"], self.in_flight)
        outcome = "abandoned"  # a client that goes away cancels this handler
        try:
            body = self.read_body(raw)
            why, detail = self.refusal(request, body)
            if not why and request.method == "GET":
                outcome, models = "listed", [{"id": name, "object": "model"} for name in self.models]
                return web.json_response({"object": "list", "data": models})
            if not why:
                replies = [reply(body, index, self.options) for index in range(body.get("n") or 1)]
                pieces, usage = write_body(body, replies, self.options)
                if wait := self.budget.wait(usage["total_tokens"]):
                    why, detail = "tokens", str(math.ceil(wait))
            if why:
                outcome = "refused"
                seen["refused"][why] += 1
                if after := {"rate": "1", "tokens": detail}.get(why, ""):
                    self.not_before[digest] = time.time() + float(after)
                return _error(why, detail, after)
            if kind := self.fault(digest):
                outcome = "faulted"
                seen["faults"][kind] += 1
            response = await self.send(request, now, digest, kind, pieces, SSE if body.get("stream") else JSON)
            if kind in ("", "drip"):
                outcome, seen["last_answer"] = "answered", time.monotonic()
                seen["by_request"][digest] += 1
                seen["usage"].update(usage)
            return response
        finally:
            self.in_flight -= 1
            seen["outcomes"][outcome] += 1

    def read_body(self, raw: bytes) -> dict[str, Any]:
        """The request less the keys that are ignored; {} where it is none."""
        try:
            body = json.loads(raw)
            body["messages"][-1]["content"]
        except (ValueError, TypeError, LookupError):
            return {}
        self.bodies.append(body)
        self.seen["unknown_keys"].update(body.keys() - KNOWN)
        return {key: value for key, value in body.items() if key not in self.ignores}

    def refusal(self, request: web.Request, body: dict[str, Any]) -> tuple[str, str]:
        """Why a request isn't taken, a key of ERRORS, and what goes into its message; ("", "") for one that is."""
        options = self.options
        sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if options.key and sent != options.key:
            return "key", sent if options.leak else f"{sent[:3]}***{sent[-4:]}"
        if (request.method, request.path) == ("GET", "/v1/models"):
            return "", ""
        if (request.method, request.path) != ("POST", "/v1/chat/completions"):
            return "path", f"{request.method} {request.path}"
        if not body:
            return "body", ""
        if body.get("model") not in self.models:
            return "model", str(body.get("model"))
        if options.account != "good" and self.seen["outcomes"]["answered"] >= options.account_after:
            return options.account, ""
        wrong = self.refuses & {*body, (body.get("response_format") or {}).get("type")}
        if wrong or (body.get("top_logprobs") or 0) > 20:
            return "parameter", ", ".join(sorted(wrong)) or "top_logprobs above 20"
        if 0 < options.max_concurrent < self.in_flight:
            return "concurrent", ""
        return ("rate", "") if self.rate.wait(1.0) else ("", "")

    def fault(self, digest: str) -> str:
        """What goes wrong this time, or "": the same for the same request and number of the try."""
        if not self.options.faults:
            return ""
        tried, in_a_row = self.tries.get(digest, (0, 0))
        drawn = random.Random(f"{self.options.seed} {digest} {tried}").random() / self.options.faults
        kind = self.kinds[int(drawn * len(self.kinds))] if drawn < 1 and in_a_row < self.options.max_faults else ""
        self.tries[digest] = tried + 1, in_a_row + 1 if kind else 0
        return kind

    async def send(
        self, request: web.Request, arrival: float, digest: str, kind: str, pieces: list[bytes], content_type: str
    ) -> web.StreamResponse:
        """Write the body as it should be, or as the fault says; those with a body of their own come at once."""
        options, whole = self.options, b"".join(pieces)
        if kind == "drop":
            request.transport.close()
            return web.Response()
        if kind == "hang":
            await asyncio.Event().wait()
        if kind in ("503", "html"):
            return web.Response(status=503 if kind == "503" else 200, body=PAGE, content_type=HTML)
        if kind in ("429_seconds", "429_date"):
            at, dated = time.time() + options.retry_after, kind == "429_date"
            self.not_before[digest] = at = math.ceil(at) if dated else at
            return _error("429", retry_after=formatdate(at, usegmt=True) if dated else f"{options.retry_after:g}")
        if kind in ("429", "500"):
            return _error(kind)
        error = encode({"error": {"message": "Internal error", "type": "server_error", "code": 500}})
        instead = {"half": whole[: len(whole) // 2], "cut": whole[: len(whole) // 2], "empty": b""}
        instead["error"] = b"data: " + error + b"\n\n" if content_type == SSE else error
        pieces = [instead[kind]] if kind in instead else sliced(whole, 50) if kind == "drip" else pieces
        first, pause = options.latency * (1 + options.jitter * (int(digest, 16) / 2**63 - 1)), 0.0
        if len(pieces) > 1:
            first, pause = first / 4, (options.drip if kind == "drip" else first * 0.75) / (len(pieces) - 1)
        first -= time.monotonic() - arrival
        response = web.StreamResponse(headers={"Content-Type": "text/plain" if kind == "type" else content_type})
        if content_type != SSE and not options.keepalive:
            response.content_length = len(whole) if kind == "cut" else sum(map(len, pieces))
        while first > options.keepalive > 0:
            await response.prepare(request)
            await asyncio.sleep(options.keepalive)
            await response.write(b": keep-alive\n\n" if content_type == SSE else b"\n")
            first -= options.keepalive
        for number, piece in enumerate(pieces, 1):
            await asyncio.sleep(first if number == 1 else pause)
            await response.prepare(request)
            await (response.write_eof if number == len(pieces) and kind != "cut" else response.write)(piece)
        if kind == "cut":
            request.transport.close()
        return response


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    for field in fields(Options):
        if field.name != "key":
            read = str if isinstance(field.default, str) else json.loads
            parser.add_argument(f"--{field.name}", type=read, default=field.default, metavar=field.type)
    values = vars(parser.parse_args())
    port = values.pop("port")
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # it ends with what started it, even by SIGKILL
    with one_line_errors():
        server = Server(Options(**values, key=os.environ.get("TEACHER_KEY", "")))
        app = web.Application(client_max_size=1 << 28)
        for method, path in (("GET", "/stats"), ("POST", "/reset"), ("POST", "/options")):
            app.router.add_route(method, path, server.control)
        app.router.add_route("*", "/{path:.*}", server.handle)
        listener = socket.create_server((HOST, port), backlog=4096)
        print(json.dumps({"base_url": f"http://{HOST}:{listener.getsockname()[1]}/v1"}), flush=True)
        web.run_app(app, sock=listener, print=None, access_log=None, handler_cancellation=True, shutdown_timeout=0)


# --- the process, from outside ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Teacher:
    """A running server: where it answers, and its process."""

    base_url: str
    pid: int

    def stats(self) -> dict[str, Any]:
        """What Server.stats says."""
        return self._ask("stats")

    def reset(self) -> None:
        """Forget what was asked and answered; the options stay."""
        self._ask("reset", {})

    def set(self, **changes: Any) -> None:
        """Change some options; the limits begin anew."""
        Options(**changes)  # raises here what it would there
        self._ask("options", changes)

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        data = None if body is None else encode(body)
        with opener.open(f"{self.base_url.removesuffix('/v1')}/{path}", data, timeout=30) as response:
            return json.load(response)


@contextmanager
def teacher(**options: Any) -> Iterator[Teacher]:
    """Start a server with these Options in a process of its own, yield it, stop it whatever happens.

    It ends with the thread that started it, too.
    """
    values = asdict(Options(**options))
    environment = os.environ | {"TEACHER_KEY": values.pop("key")}
    flags = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]
    command, root = [sys.executable, "-m", "tests.teacher", *flags], Path(__file__).parent.parent
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        if not line:
            raise UserError(f"tests.teacher ended with code {process.wait()} before it listened")
        yield Teacher(json.loads(line)["base_url"], process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    main()
