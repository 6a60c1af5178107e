"""The blind review page: raters see a prompt with both answers and say which one follows it better.

    python -m eval.review recipes/demo/eval.yaml

Reads answers-<arm>.jsonl of two arms in the output folder and prints a link that works on this machine only. Which arm
stands left, as A, is settled for each rater and item; no arm is named in the page. All raters get the items in the same
order, so that they share the first ones, and it is one of chance, so that these stand for all of them, as the joint
estimate with an AI judge demands. Each act is a line of votes.jsonl, on the disk before the next item shows:

    {"id": "17", "pair": "9f2c…", "rater": "王医生", "vote": "B>A", "verdict": "tuned>base", "pressed": "A>B",
     "order": ["tuned", "base"], "tags": ["safer"], "comment": "", "seconds": 41.3, "at": "2026-11-22T08:00:00.123Z"}

vote       one of VOTES, in which A is the first of the two arms, whatever the screen showed (so does `eval.judge`);
           or "skip", which puts an item off to the end; or "undo", which takes back the rater's last act that stands
verdict    the vote in the arms' names: "tuned>base", "tuned≫base", …, "tie", "both-bad"
pressed    the vote as it was pressed, with `order` on the screen: [A, B]
pair       a hash of prompt and answers: a vote on other answers to the same prompt doesn't count

No line is ever changed; `read_votes` gives the votes that stand.
"""

from __future__ import annotations

import fcntl
import hashlib
import html
import io
import json
import os
import re
import secrets
import socket
import sys
import time
import unicodedata
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from chat.text import inert
from preprocess.records import content_id, optional_field, read_rows, record_id, text_field, to_json
from preprocess.think import Parts, split
from recipe import UserError, main

if TYPE_CHECKING:
    import gradio as gr
    from fastapi import FastAPI, Request, Response

HOST = "127.0.0.1"
VOTES = {
    "A≫B": "A ≫ B\n好得多 much better",
    "A>B": "A > B\n较好 better",
    "A=B": "A = B\n不相上下 equal",
    "both-bad": "✗ A  ✗ B\n都不行 both bad",
    "B>A": "B > A\n较好 better",
    "B≫A": "B ≫ A\n好得多 much better",
}
TAGS = {
    "correct": "更正确 more correct",
    "safer": "更安全 safer",
    "format": "更合要求 follows the instruction",
    "complete": "更完整 more complete",
    "clear": "更清楚 clearer",
    "concise": "更简洁 more concise",
}
_SWAPPED = str.maketrans("AB", "BA")
SHOWN = 20_000  # characters of a text; what is more stands folded behind them
LONGEST_NAME, LONGEST_COMMENT = 40, 4_000  # characters


@dataclass(frozen=True)
class Review:
    """The keys of the page: `output` has the answers and gets the votes; `limit` shows the first items only (0: all).

    Of `arms`, as eval.yaml names them, the page shows two; `order: file` is that of the answers, instead of one of
    chance; `port` 0 takes any free one.
    """

    output: str
    arms: list[str] = field(default_factory=lambda: ["base", "tuned"])
    limit: int = 0
    order: str = "random"
    port: int = 0


# --- the pairs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A prompt and what each arm said to it; `key` is the hash of all three."""

    id: str
    prompt: str
    answers: dict[str, Parts]
    key: str


def read_pairs(folder: str, arms: Sequence[str]) -> list[Pair]:
    """The pairs of two arms in the order of their files, without those of which an answer never came.

    Raises UserError where a file is missing or broken, an id is there twice, or the two differ in id or prompt.
    """
    first, second = (f"{folder}/answers-{arm}.jsonl" for arm in arms)
    missing = [file for file in (first, second) if not Path(file).exists()]
    if missing:
        raise UserError(f"{missing[0]}: no such file; run `make predict` first")
    rows, others = ([_answer(row, place) for place, row in read_rows(file)] for file in (first, second))
    repeated = [id for id, n in Counter(id for id, *_ in rows).items() if n > 1]
    if repeated:
        raise UserError(f"{first}: id {repeated[0]!r} is there more than once; each prompt needs its own")
    for (id, prompt, *_), (other_id, other_prompt, *_) in zip(rows, others, strict=False):
        if (id, prompt) != (other_id, other_prompt):
            what = f"id {other_id!r} instead of {id!r}" if id != other_id else f"another prompt for id {id!r}"
            raise UserError(f"{second}: {what}, unlike {first}; run `make predict` again")
    if len(rows) != len(others):
        raise UserError(f"{second}: {len(others)} answers, {first} has {len(rows)}; run `make predict` again")
    pairs = []
    for (id, prompt, one, came), (_, _, other, also) in zip(rows, others, strict=False):
        if not (came and also):
            continue
        key = content_id(prompt, one.think, one.answer, other.think, other.answer)
        pairs.append(Pair(id, prompt, dict(zip(arms, (one, other), strict=True)), key))
    return pairs


def _answer(row: dict[str, Any], place: str) -> tuple[str, str, Parts, bool]:
    """Id, prompt and answer of a row, whose thought stands under `think` or inside the answer; and whether it came."""
    prompt, answer = text_field(row, "prompt", place), text_field(row, "answer", place)
    parts = split(answer) if row.get("think") is None else Parts(optional_field(row, "think", place), answer)
    return record_id(row, place, prompt), prompt, parts, row.get("finish_reason") != "failed"


def by_chance(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs in an order that has nothing to do with theirs, and is the same for every rater and start."""
    return sorted(pairs, key=lambda pair: hashlib.sha256(pair.id.encode()).digest())


def order_of(rater: str, id: str, arms: Sequence[str]) -> list[str]:
    """The arms as this rater sees them at this item, [A, B]: either way for half of all items, and always the same.

    >>> order_of("王医生", "17", ["base", "tuned"])
    ['tuned', 'base']
    """
    digest = hashlib.sha256(f"{rater}\0{id}".encode()).digest()
    return list(arms) if digest[0] % 2 else list(reversed(arms))


def unblind(pressed: str, order: Sequence[str], arms: Sequence[str]) -> tuple[str, str]:
    """What was pressed with `order` on the screen, as a vote in which A is the first arm, and in the arms' names.

    >>> unblind("A≫B", ["tuned", "base"], ["base", "tuned"])
    ('B≫A', 'tuned≫base')
    >>> unblind("A=B", ["tuned", "base"], ["base", "tuned"])
    ('A=B', 'tie')
    """
    if pressed in ("A=B", "both-bad"):
        return pressed, "tie" if pressed == "A=B" else pressed
    vote = pressed if list(order) == list(arms) else pressed.translate(_SWAPPED)
    return vote, arms["AB".index(vote[0])] + vote[1] + arms["AB".index(vote[2])]


# --- votes.jsonl ------------------------------------------------------------------------------------------------------


@dataclass
class Session:
    """What one rater did that still stands, the oldest first, and what was last taken back, by id."""

    acts: list[dict[str, Any]] = field(default_factory=list)
    undone: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def votes(self) -> dict[str, dict[str, Any]]:
        return {act["id"]: act for act in self.acts if act["vote"] != "skip"}

    def next(self, pairs: Sequence[Pair]) -> Pair | None:
        """The first pair without a vote, those that were skipped last; None where all have one."""
        votes = self.votes
        skips = Counter(act["id"] for act in self.acts if act["vote"] == "skip")
        return min((pair for pair in pairs if pair.id not in votes), key=lambda pair: skips[pair.id], default=None)


def replay(acts: Sequence[dict[str, Any]], keys: Mapping[str, str] | None = None) -> dict[str, Session]:
    """Where each rater stands after these lines of votes.jsonl.

    `keys` has the `key` of each pair by id; lines about other pairs, or about other answers to a prompt, are left out.
    """
    sessions: dict[str, Session] = {}
    for act in acts:
        if keys is not None and keys.get(act["id"]) != act["pair"]:
            continue
        session = sessions.setdefault(act["rater"], Session())
        if act["vote"] != "undo":
            session.acts.append(act)
        elif session.acts:
            last = session.acts.pop()
            session.undone[last["id"]] = last
    return sessions


def read_votes(path: str | Path, keys: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The votes that count, one for each rater and item, in the order in which they were given; for `keys` see replay.

    A torn last line is left out: nobody was told that it is on the disk. Raises UserError for any other broken line.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `python -m eval.review` writes it") from None
    votes = [vote for session in replay(_acts(data, path)[0], keys).values() for vote in session.votes.values()]
    return sorted(votes, key=lambda vote: vote["at"])


def _acts(data: bytes, path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of votes.jsonl, and how many bytes at the end are a torn one."""
    acts = []
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        act = _act(line)
        if act:
            acts.append(act)
        elif number == len(lines):
            return acts, len(line)
        elif line.strip():
            raise UserError(f"{path}:{number}: not a line of this page; mend or remove it")
    return acts, 0


def _act(line: bytes) -> dict[str, Any] | None:
    try:
        act = json.loads(line)
        texts = [act[name] for name in ("id", "pair", "rater", "vote", "at")]
        known = act["vote"] in ("skip", "undo") or (act["vote"] in VOTES and isinstance(act["verdict"], str))
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return act if known and all(isinstance(text, str) for text in texts) else None


class Box:
    """The votes of one page: all state is in the file, and every act reads it anew under its lock, so several raters,
    windows and servers don't get in one another's way."""

    def __init__(self, path: str | Path, pairs: Sequence[Pair], arms: Sequence[str]) -> None:
        self.path, self.pairs, self.arms = Path(path), pairs, arms
        self._keys = {pair.id: pair.key for pair in pairs}

    def session(self, rater: str) -> Session:
        with self._locked() as (_, acts):
            return self._session(acts, rater)

    def voted(self) -> dict[str, int]:
        """How many items each rater has voted on."""
        with self._locked() as (_, acts):
            return {rater: len(session.votes) for rater, session in replay(acts, self._keys).items()}

    def add(self, rater: str, id: str, vote: str, **said: Any) -> tuple[Session, bool]:
        """Write what the rater did while item `id` was shown ("" for the end), and say where he or she stands then.

        False, and nothing is written, where another item is on: the same rater went on in another window.
        Raises UserError where the disk refuses; the file is then as it was.
        """
        with self._locked() as (descriptor, acts):
            session = self._session(acts, rater)
            pair = session.next(self.pairs)
            possible = session.acts if vote == "undo" else pair
            if id != (pair.id if pair else "") or not possible:
                return session, False
            about = session.acts[-1] if vote == "undo" else {"id": pair.id, "pair": pair.key}
            act = {"id": about["id"], "pair": about["pair"], "rater": rater, "vote": vote}
            if vote in VOTES:
                order = order_of(rater, id, self.arms)
                act["vote"], act["verdict"] = unblind(vote, order, self.arms)
                act |= {"pressed": vote, "order": order, **said}
            act["at"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            self._append(descriptor, (to_json(act) + "\n").encode())
            return self._session([*acts, act], rater), True

    def _session(self, acts: Sequence[dict[str, Any]], rater: str) -> Session:
        return replay(acts, self._keys).get(rater, Session())

    @contextmanager
    def _locked(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The open file, which nobody else has meanwhile, and its lines; a torn last one is moved to `<path>.torn`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
            acts, torn = _acts(data, self.path)
            if torn:
                with open(f"{self.path}.torn", "ab") as aside:
                    aside.write(data[-torn:] + b"\n")
                os.ftruncate(descriptor, len(data) - torn)
            elif data and not data.endswith(b"\n"):
                os.write(descriptor, b"\n")
            yield descriptor, acts
        finally:
            os.close(descriptor)

    def _append(self, descriptor: int, line: bytes) -> None:
        end = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(None, "the disk is full")
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, end)
            raise UserError(f"{self.path}: the vote could not be written ({error.strerror})") from None


def agreement(votes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How two raters agree on the items that both voted on; one row for each two raters who share any.

    {"raters": ["李", "王"], "shared": 30, "same": 17, "same_side": 24, "table": {"tuned>base": {"tie": 3, …}, …}}

    `same` counts equal verdicts, `same_side` those that differ in strength (≫, >) at most; `table` counts the verdicts
    of the first rater by those of the second.
    """
    given: dict[str, dict[str, str]] = {}
    for vote in votes:
        given.setdefault(vote["rater"], {})[vote["id"]] = vote["verdict"]
    rows = []
    for one, other in combinations(sorted(given), 2):
        both = [(given[one][id], given[other][id]) for id in given[one] if id in given[other]]
        table: dict[str, dict[str, int]] = {}
        for (left, right), n in sorted(Counter(both).items()):
            table.setdefault(left, {})[right] = n
        same_side = sum(left.replace("≫", ">") == right.replace("≫", ">") for left, right in both)
        same = sum(left == right for left, right in both)
        row = {"raters": [one, other], "shared": len(both), "same": same, "same_side": same_side, "table": table}
        rows += [row] if both else []
    return rows


# --- what is shown ----------------------------------------------------------------------------------------------------


def _text(text: str) -> str:
    rest = len(text) - SHOWN
    more = f"<details><summary>还有 {rest:,} 个字符 · {rest:,} more characters</summary>{inert(text[SHOWN:])}</details>"
    return f'<div class="text">{inert(text[:SHOWN])}{more if rest > 0 else ""}</div>'


def _side(name: str, parts: Parts) -> str:
    nothing = '<div class="none">（无 · none）</div>'
    thought = _text(parts.think) if parts.think else nothing
    return (
        f'<section class="side"><h2>回答 Answer {name}</h2>'
        f'<details class="thought"><summary>思考过程 · Thought</summary>{thought}</details>'
        f"{_text(parts.answer) if parts.answer else nothing}</section>"
    )


def to_card(pair: Pair, rater: str, arms: Sequence[str]) -> str:
    """Prompt and answers of an item as this rater sees them, as HTML."""
    sides = "".join(
        _side(name, pair.answers[arm]) for name, arm in zip("AB", order_of(rater, pair.id, arms), strict=True)
    )
    return f'<section class="prompt"><h2>提问 Prompt</h2>{_text(pair.prompt)}</section><div class="sides">{sides}</div>'


def to_head(rater: str, done: int, total: int) -> str:
    """The line that says who is voting, and how far, as HTML."""
    return (
        f'<div class="head" data-rater="{html.escape(rater)}"><b>盲评 Blind review</b><span>{inert(rater)}</span>'
        f'<progress value="{done}" max="{total}"></progress>'
        f'<span role="status">已评 {done} / {total} 条 · {done} of {total} voted</span></div>'
    )


def clean_name(name: str) -> str:
    """A rater's name on one line: no control or invisible characters, at most LONGEST_NAME of them."""
    spaced = " ".join(unicodedata.normalize("NFC", name).split())
    return "".join(char for char in spaced if unicodedata.category(char)[0] != "C")[:LONGEST_NAME].strip()


# --- the page ---------------------------------------------------------------------------------------------------------

INTRO = """<h1>盲评 Blind review</h1>
<p>每条一个提问、两个回答。请判断哪一个更好地完成了提问的要求；都不合格就选“都不行”。<br>
哪一个是 A 由随机决定，请不要猜它们的来历。每一票立即存盘：随时可以关掉，下次用同一个名字继续。</p>
<p>One prompt, two answers: say which one does better what was asked, or that neither will do.
Which one is A is random; please don't guess where they come from.
Every vote is saved at once: close the page whenever you like, and go on under the same name.</p>"""
KEYS = """<p class="keys">键盘 Keys: <kbd>1</kbd>–<kbd>6</kbd> 投票 vote · <kbd>T</kbd> 展开思考 thoughts ·
<kbd>S</kbd> 跳过 skip · <kbd>U</kbd> 撤销 undo · <kbd>Esc</kbd> 离开文字框 leave the comment</p>"""
DONE = """<section class="prompt"><h2>全部评完，谢谢！ · All done, thank you!</h2>
<p>可以关掉这一页；要改最后一票，请按“撤销”。</p>
<p>You can close this page; to change the last vote, press “undo”.</p></section>"""


def _import_gradio() -> None:
    """Gradio takes seconds to import, and whoever reads votes only needs none of it. It wants to find the types of a
    handler among a module's names, so there it goes."""
    global gr
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # what will be otherwise in Gradio 6
    import gradio as gr


def page(box: Box) -> gr.Blocks:
    """The page as Gradio draws it. All that it knows of a rater and an item is in `ticket`, which comes back with every
    press: neither a restart nor a second window can put a vote on another item."""
    _import_gradio()
    here = Path(__file__)
    look = {
        "css": here.with_suffix(".css").read_text(encoding="utf-8"),
        "head": f"<script>{here.with_suffix('.js').read_text(encoding='utf-8')}</script>",
        "theme": gr.themes.Default(primary_hue="teal", font=["sans-serif"], font_mono=["monospace"]),
        "title": "盲评 Blind review",
    }
    with gr.Blocks(analytics_enabled=False, **look) as blocks:
        with gr.Column(visible=False, elem_id="entry") as entry:
            gr.HTML(INTRO, padding=False)
            name = gr.Textbox(label="您的名字 Your name", max_lines=1, max_length=LONGEST_NAME, autofocus=True)
            begin = gr.Button("开始 Begin", variant="primary")
        with gr.Column(visible=False, elem_id="review") as review:
            head = gr.HTML(elem_id="head", padding=False)
            card = gr.HTML(elem_id="card", padding=False)
            with gr.Column(elem_id="why") as why:
                tags = gr.CheckboxGroup(
                    [(label, tag) for tag, label in TAGS.items()],
                    label="理由（可选）· Reasons, if any, for the better one",
                )
                comment = gr.Textbox(label="备注（可选）· Comment", lines=1, max_lines=6, max_length=LONGEST_COMMENT)
            with gr.Row(elem_id="votes") as ballot:
                votes = {vote: gr.Button(f"{i} · {VOTES[vote]}", elem_id=f"key-{i}") for i, vote in enumerate(VOTES, 1)}
            with gr.Row(elem_id="other"):
                undo = gr.Button("U · 撤销 undo", elem_id="key-u", size="sm")
                skip = gr.Button("S · 跳过 skip", elem_id="key-s", size="sm")
                leave = gr.Button("换人 another rater", elem_id="leave", size="sm")
            gr.HTML(KEYS, padding=False)
        ticket = gr.Textbox(visible=False)
        shown = [entry, review, head, card, why, ballot, undo, skip, tags, comment, ticket]

        def show(rater: str, session: Session) -> list[Any]:
            pair = session.next(box.pairs)
            draft = session.undone.get(pair.id, {}) if pair else {}
            return [
                gr.update(visible=False),
                gr.update(visible=True),
                to_head(rater, len(session.votes), len(box.pairs)),
                to_card(pair, rater, box.arms) if pair else DONE,
                gr.update(visible=bool(pair)),
                gr.update(visible=bool(pair)),
                gr.update(interactive=bool(session.acts)),
                gr.update(interactive=bool(pair)),
                draft.get("tags", []),
                draft.get("comment", ""),
                to_json({"rater": rater, "id": pair.id if pair else "", "since": time.time()}),
            ]

        def ask_name() -> list[Any]:
            return [gr.update(visible=True), gr.update(visible=False)] + [gr.skip()] * (len(shown) - 2)

        def enter(text: str) -> list[Any]:
            rater = clean_name(text or "")
            if not rater:
                raise gr.Error("请先填名字。 Please enter a name.", title="", print_exception=False)
            with _told():
                return show(rater, box.session(rater))

        def load(request: gr.Request) -> list[Any]:
            rater = clean_name(unquote(request.cookies.get("rater", "")))
            return enter(rater) if rater else ask_name()

        def act(vote: str, ticket: str, tags: Sequence[str] = (), comment: str = "") -> list[Any]:
            slip = json.loads(ticket)
            said = {
                "tags": [tag for tag in TAGS if tag in (tags or ())],
                "comment": (comment or "").strip()[:LONGEST_COMMENT],
                "seconds": round(max(0.0, time.time() - slip["since"]), 1),
            }
            with _told():
                session, done = box.add(slip["rater"], slip["id"], vote, **said)
            if not done:
                gr.Info("这一条已在别的窗口评过。 This item has been voted on in another window.", title="")
            return show(slip["rater"], session)

        @contextmanager
        def _told() -> Iterator[None]:
            """A failing disk is told on the page without paths, and in full on the terminal."""
            try:
                yield
            except (UserError, OSError) as error:
                print(f"error: {error}", file=sys.stderr)
                what = "没有存上：请看服务端的提示，然后再按一次。 Not saved: see the terminal, then press again."
                raise gr.Error(what, title="", duration=None, print_exception=False) from None

        quiet = {"outputs": shown, "show_api": False, "api_name": False, "show_progress": "hidden"}
        blocks.load(load, None, **quiet)
        gr.on([begin.click, name.submit], enter, name, **quiet)
        leave.click(ask_name, None, **quiet)
        for vote, button in {**votes, "skip": skip, "undo": undo}.items():
            button.click(partial(act, vote), [ticket, tags, comment], **quiet)
    return blocks


# --- the server -------------------------------------------------------------------------------------------------------

# What the page asks for. Gradio has more, which nobody needs here: uploads, files, a proxy, a monitor.
_PATHS = re.compile(r"/(|config|theme\.css|favicon\.ico|(assets|static)/.+|gradio_api/queue/(join|data))")
_OUTSIDE = re.compile(rb"<(?:link|meta|script)\b[^>]*(?:https?://|manifest)[^>]*>(?:\s*</script>)?")
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_REFUSED = "请用终端里打印的完整链接打开。\nOpen the whole link that the terminal shows, its token included.\n"


def guarded(blocks: gr.Blocks, token: str, cookie: str) -> FastAPI:
    """The page behind a door: once the link with the token, then a cookie; without, nothing but a 403. What Gradio's
    HTML would fetch from other servers is taken out of it, and the browser is forbidden to fetch any."""
    from fastapi import FastAPI
    from fastapi.responses import PlainTextResponse, RedirectResponse, Response

    def opens(text: str) -> bool:
        return secrets.compare_digest(text.encode(), token.encode())

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def door(request: Request, call_next: Callable[[Request], Awaitable[Any]]) -> Response:
        path = request.url.path
        if path == "/" and opens(request.query_params.get("token", "")):
            reply = RedirectResponse("/", 303)
            reply.set_cookie(cookie, token, httponly=True, samesite="lax")
        elif not opens(request.cookies.get(cookie, "")):
            reply = PlainTextResponse(_REFUSED, 403)
        elif not _PATHS.fullmatch(path):
            reply = PlainTextResponse("not found\n", 404)
        elif path == "/":
            plain = [(name, value) for name, value in request.scope["headers"] if name != b"accept-encoding"]
            request.scope |= {"headers": plain, "query_string": b""}
            reply = await call_next(request)
            body = b"".join([part async for part in reply.body_iterator])
            reply = Response(_OUTSIDE.sub(b"", body), reply.status_code, media_type="text/html")
        else:
            reply = await call_next(request)
        reply.headers.update(_HEADERS)
        return reply

    with redirect_stdout(io.StringIO()):  # Gradio's own "new /"
        gr.mount_gradio_app(app, blocks, "/", server_name=HOST, show_api=False, show_error=False, ssr_mode=False)
    return app


def run(review: Review) -> None:
    """Serve the page until Ctrl-C."""
    arms = [arm.partition("=")[0].strip() for arm in review.arms]
    if len(set(arms)) != 2 or len(arms) != 2 or not all(re.fullmatch(r"[\w-]+", arm) for arm in arms):
        raise UserError(f"arms: expected two names, as in arms=[base,tuned], got {', '.join(arms) or 'none'}")
    if review.limit < 0 or not 0 <= review.port < 65536:
        raise UserError("expected limit >= 0 (0: all) and a port from 0 (any free one) to 65535")
    if review.order not in ("random", "file"):
        raise UserError(f"order: expected random or file, got {review.order!r}")
    pairs = read_pairs(review.output, arms)
    pairs = (by_chance(pairs) if review.order == "random" else pairs)[: review.limit or None]
    if not pairs:
        raise UserError(f"{review.output}/answers-{arms[0]}.jsonl: no answers; run `make predict` first")
    box = Box(f"{review.output}/votes.jsonl", pairs, arms)
    voted = box.voted()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, review.port))
        except OSError as error:
            raise UserError(f"port {review.port}: {error.strerror}; name another, or port=0") from None
        listener.listen()
        port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
        app = guarded(page(box), token, f"review-{port}")
        print(f"{len(pairs)} items; {box.path}: {sum(voted.values())} votes of {len(voted)} raters so far")
        print(f"open http://{HOST}:{port}/?token={token}  (Ctrl-C ends it)", flush=True)
        _serve(app, listener)


def _serve(app: FastAPI, listener: socket.socket) -> None:
    import uvicorn

    # A browser holds a stream open as long as the page is: Ctrl-C doesn't wait for it.
    config = uvicorn.Config(app, ws="none", log_level="error", access_log=False, timeout_graceful_shutdown=1)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(Review, run, __doc__)
