"""The review page: what its votes mean and that none is lost, in files, over HTTP and in a real browser."""

from __future__ import annotations

import base64
import html
import http.client
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from eval.judge import VERDICTS
from eval.review import (
    SHOWN,
    VOTES,
    Box,
    Pair,
    Review,
    agreement,
    by_chance,
    clean_name,
    inert,
    order_of,
    read_pairs,
    read_votes,
    run,
    to_card,
    to_head,
    unblind,
)
from preprocess.think import Parts
from recipe import UserError
from tests.conftest import ROOT

ARMS = ["qwen-vorher", "qwen-nachher"]  # words that occur nowhere else in a page
HOSTILE = [
    "<script>document.title='hacked'</script>",
    "<img src=http://outside.invalid/a.png onerror=document.title='hacked'>",
    "![x](http://outside.invalid/b.png) [点我](javascript:document.title='hacked')",
    "</div></section></article><style>*{display:none}</style><iframe src=//outside.invalid></iframe>",
    "\x1b[31m红色\x1b[0m \x1b]8;;http://outside.invalid\x07链接 \x9b2J \0 \x7f",
    "\u202e倒着写\u202c \u2066隔离\u2069 \u200f \U000e0041",
    '&lt;b&gt; &amp;amp; " \' ` {{ config }} ${1} __i18n__{"key": "x"}',
    "第一行\r\n第二行\u2028第三行\n\n\t缩进",
    "a\u0301" * 300,
]


def pairs_of(n: int) -> list[Pair]:
    sides = {ARMS[0]: Parts("", "多喝水。"), ARMS[1]: Parts("先想感染。", "去门诊。")}
    return [Pair(f"id{i}", f"第{i}天咳嗽，怎么办？", sides, f"{i:016x}") for i in range(n)]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "votes.jsonl", pairs_of(4), ARMS)


def lines(box: Box) -> list[dict[str, Any]]:
    return [json.loads(line) for line in box.path.read_text(encoding="utf-8").splitlines()]


# --- blind ------------------------------------------------------------------------------------------------------------


def test_the_order_is_one_of_chance_and_the_same_for_all(tmp_path: Path) -> None:
    fill(tmp_path, n=40)
    pairs = read_pairs(str(tmp_path), ARMS)
    drawn = [pair.id for pair in by_chance(pairs)]
    assert drawn == [pair.id for pair in by_chance(pairs[::-1])] and sorted(drawn) == sorted(pair.id for pair in pairs)
    early = sum(int(id[2:]) < 20 for id in drawn[:20])
    assert 4 <= early <= 16


def test_an_answer_that_never_came_is_not_shown(tmp_path: Path) -> None:
    fill(tmp_path, n=6)
    path = tmp_path / f"answers-{ARMS[1]}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    rows[2] |= {"answer": "", "finish_reason": "failed"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert [pair.id for pair in read_pairs(str(tmp_path), ARMS)] == ["id0", "id1", "id3", "id4", "id5"]


def test_either_arm_stands_left_for_half_of_the_items_and_each_rater_has_an_order_of_its_own() -> None:
    orders = {rater: [order_of(rater, str(i), ARMS)[0] for i in range(2000)] for rater in ("王医生", "Li")}
    for left in orders.values():
        assert 900 < left.count(ARMS[0]) < 1100
    assert 900 < sum(one == other for one, other in zip(*orders.values(), strict=True)) < 1100
    assert order_of("王医生", "17", ["base", "tuned"]) == ["tuned", "base"]  # it may never change: votes depend on it


@pytest.mark.parametrize("order", [["base", "tuned"], ["tuned", "base"]])
def test_a_vote_means_the_same_whatever_stood_left(order: list[str]) -> None:
    left, right = order
    meant = {
        "A≫B": f"{left}≫{right}",
        "A>B": f"{left}>{right}",
        "A=B": "tie",
        "both-bad": "both-bad",
        "B>A": f"{right}>{left}",
        "B≫A": f"{right}≫{left}",
    }
    assert {pressed: unblind(pressed, order, ["base", "tuned"])[1] for pressed in VOTES} == meant
    votes = {unblind(pressed, order, ["base", "tuned"]) for pressed in VOTES}
    assert {vote for vote, verdict in votes if verdict.startswith("base")} == {"A≫B", "A>B"}
    assert {vote for vote, verdict in votes if verdict.startswith("tuned")} == {"B≫A", "B>A"}


def test_the_votes_are_the_words_of_the_judge() -> None:
    assert tuple(VOTES) == VERDICTS


def test_the_card_shows_both_answers_in_the_raters_order_and_names_no_arm() -> None:
    for pair in pairs_of(20):
        card = to_card(pair, "王", ARMS)
        swapped = order_of("王", pair.id, ARMS) != ARMS
        assert (card.index("去门诊") < card.index("多喝水")) == swapped
        assert not any(arm in card for arm in ARMS)
        assert card.count("<details class=") == 2 and "<details open" not in card  # also where there is no thought


# --- text that attacks the page ---------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """What a text really opens, with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: set[tuple[str, str]] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {(tag, name) for name, _ in attrs} or {(tag, "")}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_and_does_nothing(text: str) -> None:
    plain = Tags(to_card(Pair("1", "问", {arm: Parts("想", "答") for arm in ARMS}, ""), "王", ARMS)).found
    card = to_card(Pair("1", text, {arm: Parts(text, text) for arm in ARMS}, ""), "王", ARMS)
    assert Tags(card).found == plain
    shown = html.unescape(inert(text))
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200f\u2028\U000e0041]", shown)
    assert re.sub("⟨U\\+([0-9A-F]+)⟩", lambda code: chr(int(code[1], 16)), shown) == text.replace("\r\n", "\n")


def test_of_a_megabyte_the_beginning_is_shown_and_the_rest_is_folded() -> None:
    text = "咳" * SHOWN + "痰" * 1_000_000
    card = to_card(Pair("1", "问", {ARMS[0]: Parts("", text), ARMS[1]: Parts(text, "")}, ""), "王", ARMS)
    assert card.count("1,000,000 more characters") == 2
    assert card.index("more characters") < card.index("痰")
    assert card.count("痰") == 2_000_000


def test_names_are_one_line_without_what_cannot_be_seen() -> None:
    assert clean_name("  王\t医生\n\u202e\x1b[2J ") == "王 医生 [2J"
    assert clean_name("e\u0301" * 100) == "é" * 40
    assert clean_name(" \u200b\u202e\n") == ""
    assert 'data-rater="&quot;&gt;&lt;b&gt;"' in to_head('"><b>', 0, 1)


# --- reading the answers ----------------------------------------------------------------------------------------------


def answers(write: Callable[..., str], arm: str, rows: list[dict[str, Any]]) -> None:
    write(f"out/answers-{arm}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def test_a_thought_is_found_inside_the_answer_and_under_its_own_key(write: Callable[..., str], tmp_path: Path) -> None:
    answers(write, "base", [{"id": 1, "prompt": "头痛？", "answer": "<think>\n想\n</think>\n\n答", "reference": "x"}])
    answers(write, "tuned", [{"id": "1", "prompt": "头痛？", "think": "想", "answer": "答", "raw": "…"}])
    (pair,) = read_pairs(f"{tmp_path}/out", ["base", "tuned"])
    assert (pair.id, pair.prompt) == ("1", "头痛？")
    assert pair.answers == {"base": Parts("想", "答"), "tuned": Parts("想", "答")}
    answers(write, "tuned", [{"id": "1", "prompt": "头痛？", "answer": "<think>没写完"}])
    (other,) = read_pairs(f"{tmp_path}/out", ["base", "tuned"])
    assert other.answers["tuned"] == Parts("没写完", "", "unclosed") and other.key != pair.key


A, B = {"id": "1", "prompt": "头痛？", "answer": "a"}, {"id": "2", "prompt": "发热？", "answer": "b"}


@pytest.mark.parametrize(
    ("base", "tuned", "message"),
    [
        ([A, B], [A], "1 answers, .*base.jsonl has 2"),
        ([A, B], [B, A], "id '2' instead of '1'"),
        ([A], [A | {"prompt": "胸痛？"}], "another prompt for id '1'"),
        ([A, A], [A, A], "id '1' is there more than once"),
        ([A], [{"id": "1", "prompt": "头痛？"}], "key 'answer' is missing"),
        ([A], None, "answers-tuned.jsonl: no such file; run `make predict`"),
    ],
)
def test_answers_that_do_not_match_are_refused(
    write: Callable[..., str], tmp_path: Path, base: list, tuned: list | None, message: str
) -> None:
    answers(write, "base", base)
    if tuned is not None:
        answers(write, "tuned", tuned)
    with pytest.raises(UserError, match=message):
        run(Review(f"{tmp_path}/out"))


@pytest.mark.parametrize("arms", [["base"], ["base", "base"], ["base", "../x"], ["base", "lora=saves/a", "full"]])
def test_it_takes_two_arms(arms: list[str]) -> None:
    with pytest.raises(UserError, match=r"arms: expected two names, as in arms=\[base,tuned\]"):
        run(Review("reports/none", arms=arms))


# --- votes.jsonl ------------------------------------------------------------------------------------------------------


def test_a_vote_is_one_line_that_says_all(box: Box) -> None:
    session, done = box.add("王医生", "id0", "A>B", tags=["safer"], comment="红旗征象", seconds=4.2)
    (line,) = lines(box)
    left, right = order_of("王医生", "id0", ARMS)
    assert done and session.next(box.pairs).id == "id1"
    assert list(line) == [
        *("id", "pair", "rater", "vote", "verdict", "pressed", "order", "tags", "comment", "seconds", "at")
    ]
    assert (line["verdict"], line["pressed"], line["order"]) == (f"{left}>{right}", "A>B", [left, right])
    assert line["vote"] == ("A>B" if left == ARMS[0] else "B>A")
    assert (line["tags"], line["comment"], line["seconds"]) == (["safer"], "红旗征象", 4.2)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["at"])
    assert read_votes(box.path) == [line]


def test_undo_goes_back_and_the_old_line_stays(box: Box) -> None:
    box.add("王", "id0", "A=B", tags=["clear"], comment="一")
    box.add("王", "id1", "both-bad")
    before = box.path.read_bytes()
    session, _ = box.add("王", "id2", "undo")
    assert session.next(box.pairs).id == "id1"
    session, _ = box.add("王", "id1", "undo")
    assert session.next(box.pairs).id == "id0" and session.undone["id0"]["comment"] == "一"
    assert read_votes(box.path) == []
    assert box.add("王", "id0", "undo")[1] is False  # there is nothing left
    box.add("王", "id0", "both-bad")
    assert [vote["verdict"] for vote in read_votes(box.path)] == ["both-bad"]
    assert box.path.read_bytes().startswith(before) and len(lines(box)) == 5


def test_what_is_skipped_comes_again_at_the_end(box: Box) -> None:
    seen, votes = [], iter(["skip", "A=B", "skip", "A=B", "skip", "A=B", "A=B"])
    while pair := box.session("王").next(box.pairs):
        seen.append(pair.id)
        box.add("王", pair.id, next(votes))
    assert seen == ["id0", "id1", "id2", "id3", "id0", "id2", "id0"]
    assert len(read_votes(box.path)) == 4
    for expected in ("id0", "id2", "id0"):  # back the way it came, over skips, too
        shown = box.session("王").next(box.pairs)
        session, _ = box.add("王", shown.id if shown else "", "undo")
        assert session.next(box.pairs).id == expected


def test_a_second_press_on_the_same_item_is_not_a_vote_on_the_next(box: Box) -> None:
    assert box.add("王", "id0", "A=B")[1] is True
    session, done = box.add("王", "id0", "both-bad")
    assert not done and session.next(box.pairs).id == "id1"
    assert len(lines(box)) == 1


def test_of_presses_in_several_windows_at_once_one_counts(box: Box) -> None:
    box.add("李", "id0", "A=B")
    box.path.write_bytes(box.path.read_bytes() * 3000)  # long enough to read that the windows would meet
    done: list[bool] = []
    windows = [Box(box.path, box.pairs, ARMS) for _ in range(16)]
    ready = threading.Barrier(len(windows))

    def press(window: Box) -> None:
        ready.wait()
        done.append(window.add("王", "id0", "A=B")[1])

    threads = [threading.Thread(target=press, args=[window]) for window in windows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done.count(True) == 1 and len(lines(box)) == 3001


def test_two_raters_at_once_each_get_all_items(tmp_path: Path) -> None:
    path, pairs = tmp_path / "votes.jsonl", pairs_of(40)
    boxes = {rater: Box(path, pairs, ARMS) for rater in ("王", "李", "Ann")}

    def rate(rater: str) -> None:
        for pair in pairs:
            assert boxes[rater].add(rater, pair.id, "A=B")[1]

    threads = [threading.Thread(target=rate, args=[rater]) for rater in boxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert boxes["王"].voted() == {"王": 40, "李": 40, "Ann": 40}
    assert len(read_votes(path)) == 120


def test_a_torn_last_line_is_set_aside_and_any_other_is_named(box: Box) -> None:
    box.add("王", "id0", "A=B")
    whole = box.path.read_bytes()
    torn = whole[:-20]
    box.path.write_bytes(whole + torn)
    assert len(read_votes(box.path)) == 1
    box.add("王", "id1", "A=B")
    assert len(read_votes(box.path)) == 2 and box.path.read_bytes().startswith(whole)
    assert Path(f"{box.path}.torn").read_bytes() == torn + b"\n"
    box.path.write_bytes(whole.rstrip(b"\n"))  # an editor took the last newline
    box.add("王", "id1", "A=B")
    assert len(read_votes(box.path)) == 2
    box.path.write_bytes(torn + b"\n" + whole)
    with pytest.raises(UserError, match=r"votes.jsonl:1: not a line of this page"):
        box.add("王", "id1", "A=B")


def test_a_full_disk_leaves_the_file_as_it_was(box: Box) -> None:
    box.add("王", "id0", "A=B")
    before = box.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 30, limits[1]))
    try:
        with pytest.raises(UserError, match=r"votes.jsonl: the vote could not be written"):
            box.add("王", "id1", "A=B", comment="长" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert box.path.read_bytes() == before
    assert box.session("王").next(box.pairs).id == "id1"
    assert box.add("王", "id1", "A=B")[1]


def test_votes_on_other_answers_do_not_count(box: Box) -> None:
    box.add("王", "id0", "A=B")
    box.add("王", "id1", "A=B")
    keys = {pair.id: pair.key for pair in box.pairs} | {"id0": "answered anew"}
    assert [vote["id"] for vote in read_votes(box.path, keys)] == ["id1"]
    renewed = [Pair(pair.id, pair.prompt, pair.answers, keys[pair.id]) for pair in box.pairs]
    again = Box(box.path, renewed, ARMS)
    assert again.session("王").next(renewed).id == "id0"
    again.add("王", "id0", "undo")  # what it takes back is the vote that stands, on id1
    assert read_votes(box.path, keys) == []


def test_agreement_counts_the_shared_items_of_each_two_raters() -> None:
    given = {
        "王": {"1": "tuned>base", "2": "tie", "3": "base>tuned", "4": "both-bad"},
        "李": {"1": "tuned≫base", "2": "tie", "3": "tuned>base"},
        "Ann": {"9": "tie"},
    }
    votes = [{"rater": r, "id": i, "verdict": v} for r, said in given.items() for i, v in said.items()]
    assert agreement(votes) == [
        {
            "raters": ["李", "王"],
            "shared": 3,
            "same": 1,
            "same_side": 2,
            "table": {
                "tie": {"tie": 1},
                "tuned>base": {"base>tuned": 1},
                "tuned≫base": {"tuned>base": 1},
            },
        }
    ]
    assert agreement([]) == []


# --- the server -------------------------------------------------------------------------------------------------------

# Every address that the server's process itself connects to, and every name that it looks up, goes to stderr.
SERVER = """
import runpy, sys
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        print("CALLS", event, args[-1] if event == "socket.connect" else args[0], file=sys.stderr, flush=True)
sys.addaudithook(hook)
sys.argv = sys.argv[1:]
runpy.run_module("eval.review", run_name="__main__", alter_sys=True)
"""


SESSIONS = itertools.count()


@dataclass
class Page:
    """A page that is being served: its link, its folder, its process."""

    link: str
    folder: Path
    process: subprocess.Popen[str]

    @property
    def port(self) -> int:
        return int(re.search(r":(\d+)/", self.link)[1])

    def get(self, path: str, cookie: str = "", method: str = "GET") -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, headers={"Cookie": cookie, "Accept-Encoding": "br, gzip"})
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read().decode("utf-8", "replace")

    def press(self, cookie: str, button: int, data: list[Any]) -> str:
        """What Gradio replies to a press, one JSON object a line."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        asked = {"data": data, "fn_index": button, "session_hash": f"s{next(SESSIONS)}"}
        headers = {"Cookie": cookie, "Content-Type": "application/json"}
        connection.request("POST", "/gradio_api/queue/join", json.dumps(asked), headers)
        assert connection.getresponse().read()
        reply = self.get(f"/gradio_api/queue/data?session_hash={asked['session_hash']}", cookie)[2]
        return "".join(f"{line[6:]}\n" for line in reply.splitlines() if "process_completed" in line)

    def enter(self) -> str:
        """The cookie that the link gives."""
        status, headers, _ = self.get(self.link[self.link.index("/?") :])
        assert status == 303
        return headers["set-cookie"].split(";")[0]

    def votes(self, rater: str) -> list[dict[str, Any]]:
        """The rater's lines of votes.jsonl."""
        lines = (self.folder / "votes.jsonl").read_text(encoding="utf-8").splitlines()
        return [line for line in map(json.loads, lines) if line["rater"] == rater]


@contextmanager
def serving(folder: Path) -> Iterator[Page]:
    recipe = folder / "review.yaml"
    recipe.write_text(f"output: {folder}\narms: [{', '.join(ARMS)}]\norder: file\n", encoding="utf-8")
    with open(folder / "stderr", "w", encoding="utf-8") as errors:
        command = [sys.executable, "-c", SERVER, "eval.review", str(recipe)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        link = next((found[0] for line in process.stdout if (found := re.search(r"http://\S+", line))), None)
        assert link, (folder / "stderr").read_text(encoding="utf-8")
        yield Page(link, folder, process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def fill(folder: Path, n: int = 6, text: str = "") -> None:
    """Answers of both arms; the first item is hostile throughout, the second is long."""
    rows = [(" ".join(HOSTILE), " ".join(HOSTILE)), ("长" * 3000, "短")]
    rows += [(f"去门诊看看 {i}。{text}", f"多喝水 {i}。{text}") for i in range(n - 2)]
    for side, arm in enumerate(ARMS):
        with open(folder / f"answers-{arm}.jsonl", "w", encoding="utf-8") as file:
            for i, row in enumerate(rows):
                prompt = " ".join(HOSTILE) if i == 0 else f"第{i}天咳嗽，怎么办？"
                answer = f"<think>\n想一想 {i}\n</think>\n\n{row[side]}" if side else row[side]
                line = {"id": f"id{i}", "prompt": prompt, "reference": "", "answer": answer, "finish_reason": "stop"}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("review")
    fill(folder)
    with serving(folder) as page:
        yield page


def test_nothing_is_given_without_the_token(page: Page) -> None:
    paths = ["/", "/?token=", "/?token=wrong", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/queue/data"]
    for path in paths:
        assert page.get(path)[0] == 403
        assert page.get(path, cookie=f"review-{page.port}=wrong")[0] == 403
    assert page.get("/gradio_api/queue/join", method="POST")[0] == 403
    cookie = page.enter()
    assert page.get("/", cookie)[0] == page.get("/config", cookie)[0] == 200


def test_only_what_the_page_needs_is_there(page: Page) -> None:
    cookie = page.enter()
    votes = page.folder / "votes.jsonl"
    for path in (
        f"/gradio_api/file={votes}",
        f"/gradio_api/file={page.folder}/answers-{ARMS[0]}.jsonl",
        "/gradio_api/info",
        "/gradio_api/upload",
        "/gradio_api/proxy=http://outside.invalid/",
        "/monitoring/summary",
        "/docs",
        "/openapi.json",
    ):
        assert page.get(path, cookie)[0] == 404, path
    assert page.get(f"/static/..%2f..%2f..%2f{votes}", cookie)[0] in (403, 404)


def test_the_page_names_no_arm_and_no_other_server(page: Page) -> None:
    cookie = page.enter()
    for path in ("/", "/config", "/theme.css"):
        _, headers, text = page.get(path, cookie)
        assert not any(arm in text for arm in ARMS)
        assert "default-src 'self'" in headers["content-security-policy"]
    text = page.get("/", cookie)[2]
    assert "盲评 Blind review" in text
    assert re.findall(r"<(?:link|script|img|meta)\b[^>]*(?:https?:)?//[^>]*>", text) == []


def test_no_reply_names_an_arm(page: Page) -> None:
    cookie = page.enter()
    acts = json.loads(page.get("/config", cookie)[2])["dependencies"]
    begin = next(act["id"] for act in acts if len(act["inputs"]) == 1)
    *votes, skip, undo = (act["id"] for act in acts if len(act["inputs"]) == 3)
    reply = page.press(cookie, begin, ["好奇"])
    for button in (skip, *votes, undo):
        ticket = json.loads(reply.splitlines()[-1])["output"]["data"][-1]
        reply += page.press(cookie, button, [ticket, [], ""])
    given = [vote.get("pressed", vote["vote"]) for vote in page.votes("好奇")]
    assert given == ["skip", *VOTES, "undo"]
    assert "去门诊看看" in reply and not any(arm in reply for arm in ARMS) and str(page.folder) not in reply


def test_it_listens_on_this_machine_only_and_calls_nobody(page: Page) -> None:
    page.get("/", page.enter())
    hexed = f":{page.port:04X}"
    tables = [Path(f"/proc/net/{name}").read_text(encoding="ascii") for name in ("tcp", "tcp6")]
    listening = [line.split()[1] for table in tables for line in table.splitlines() if line.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(hexed)] == [f"0100007F{hexed}"]
    assert "CALLS" not in (page.folder / "stderr").read_text(encoding="utf-8")


# --- the browser ------------------------------------------------------------------------------------------------------

FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0"),
]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Refused(Exception):
    """Chromium's own word on a call it does not carry out."""


class Browser:
    """A Chromium of our own, spoken to over its DevTools protocol; each tab has cookies of its own."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        where = folder / "DevToolsActivePort"
        wait_for(lambda: where.exists() and len(where.read_text(encoding="ascii").split()) == 2, "Chromium")
        port, path = where.read_text(encoding="ascii").split()
        self._socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None)
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while True:
            reply = json.loads(self._socket.recv(timeout=60))
            if reply.get("id") == number:
                if "error" in reply:
                    raise Refused(reply["error"])
                return reply["result"]
            self.events.append(reply)

    def tab(self, link: str, width: int = 1280, height: int = 800, dark: bool = False) -> Tab:
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        tab = Tab(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.call(f"{domain}.enable")
        mobile = width < 500
        tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        tab.call("Page.navigate", url=link)
        return tab

    def close(self) -> None:
        self._socket.close()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Tab:
    """One tab: scripts, keys, clicks."""

    browser: Browser
    session: str

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def js(self, expression: str) -> Any:
        reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def wait(self, expression: str) -> None:
        wait_for(lambda: self._holds(expression), expression)

    def _holds(self, expression: str) -> bool:
        try:
            return self.js(f"!!({expression})")
        except Refused as refused:  # a page on its way out can't be asked; the next one can
            if not re.search("navigated|context", str(refused)):
                raise
            return False

    def reload(self) -> None:
        """Load the page anew, and wait until the old one is gone."""
        self.js("window.old = true")
        self.call("Page.reload")
        self.wait("!window.old")

    def key(self, key: str, code: str = "") -> None:
        code = code or (f"Digit{key}" if key.isdigit() else f"Key{key.upper()}")
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=code, text=key if len(key) == 1 else "")
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=code)

    def click(self, selector: str) -> None:
        found = f"document.querySelector({json.dumps(selector)})"
        box = self.js(f"{found}.scrollIntoView({{block: 'center'}}), {found}.getBoundingClientRect().toJSON()")
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", **at)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **at)

    def type(self, selector: str, text: str) -> None:
        self.click(selector)
        self.call("Input.insertText", text=text)

    def enter(self, name: str) -> None:
        self.wait("document.querySelector('#entry input, #entry textarea')")
        self.type("#entry input, #entry textarea", name)
        self.click("#entry button")
        self.shows(0)

    def shows(self, voted: int) -> None:
        """Wait until so many items are voted on, by the page's own count."""
        self.wait(f"document.querySelector('.head progress')?.value === {voted}")

    def text(self, selector: str) -> str:
        return self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def shot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def wait_for(true: Callable[[], Any], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not CHROMIUM:
        pytest.skip("no Chromium on PATH")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.mark.slow
def test_a_rater_votes_by_key_and_click_goes_back_and_comes_again(browser: Browser, page: Page) -> None:
    tab = browser.tab(page.link)
    tab.enter("王医生")
    assert tab.js("location.href") == f"http://127.0.0.1:{page.port}/"  # the token is out of sight
    tab.key("2")
    tab.shows(1)
    assert [(vote["id"], vote["pressed"]) for vote in page.votes("王医生")] == [("id0", "A>B")]
    tab.click("#why fieldset label")
    tab.type("#why textarea, #why input[type=text]", "按 1 也不投票")
    tab.key("1")
    tab.key("Escape", "Escape")
    tab.click("#key-6")
    tab.shows(2)
    vote = page.votes("王医生")[-1]
    assert (vote["id"], vote["pressed"], vote["tags"]) == ("id1", "B≫A", ["correct"])
    assert vote["comment"] == "按 1 也不投票1" and 0 < vote["seconds"] < 60
    assert tab.js("scrollY") == 0 and tab.js("document.querySelectorAll('#why :checked').length") == 0
    tab.key("u")
    tab.shows(1)
    assert tab.js("document.querySelectorAll('#why :checked').length") == 1  # the reasons are kept for the next vote
    tab.key("Process", "Digit4")  # as it comes while a Chinese input method is on
    tab.shows(2)
    assert [vote["vote"] for vote in page.votes("王医生")][-2:] == ["undo", "both-bad"]
    before = tab.text("#card .prompt")
    tab.key("s")
    wait_for(lambda: tab.text("#card .prompt") != before, "the item after the one that is skipped")
    now = tab.text("#card .sides")
    tab.reload()
    tab.wait("document.querySelector('#card .prompt')")
    tab.shows(2)
    assert tab.text("#card .sides") == now and "王医生" in tab.text(".head")
    for voted in range(3, 7):
        tab.key("3")
        tab.shows(voted)
    assert "全部评完" in tab.text("#card") and not tab.js("document.querySelector('#key-1')?.checkVisibility()")
    tab.key("u")
    tab.shows(5)
    rater = [vote for vote in read_votes(page.folder / "votes.jsonl") if vote["rater"] == "王医生"]
    assert [vote["id"] for vote in rater] == ["id0", "id1", "id3", "id4", "id5"]


@pytest.mark.slow
def test_two_raters_at_once_and_a_third_on_the_same_machine(browser: Browser, page: Page) -> None:
    ann, li = browser.tab(page.link), browser.tab(page.link)
    ann.enter("Ann")
    li.enter("李")
    for voted in (1, 2):
        ann.key("1")
        li.key("5")
        ann.shows(voted)
        li.shows(voted)
    li.key("5")
    li.shows(3)
    votes = read_votes(page.folder / "votes.jsonl")
    given = {rater: [v["id"] for v in votes if v["rater"] == rater] for rater in ("Ann", "李")}
    assert given == {"Ann": ["id0", "id1"], "李": ["id0", "id1", "id2"]}
    ann.click("#leave")
    ann.enter("第三位")
    ann.reload()
    ann.wait("document.querySelector('.head')?.innerText.includes('第三位')")


@pytest.mark.slow
def test_hostile_text_stays_inert_and_nothing_is_fetched_from_elsewhere(browser: Browser, page: Page) -> None:
    browser.events.clear()
    tab = browser.tab(page.link)
    tab.enter("小心")
    tab.key("t")
    assert tab.js("document.querySelectorAll('details.thought[open]').length") == 2
    assert HOSTILE[0] in tab.text("#card .prompt") and HOSTILE[2] in tab.text("#card .side")
    assert (
        tab.js("document.querySelectorAll('#card script, #card img, #card iframe, #card style, #card a').length") == 0
    )
    assert tab.js("document.title") == "盲评 Blind review"
    tab.key("1")
    tab.shows(1)
    tab.js("new Promise((done) => setTimeout(done, 1000))")
    urls = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert len(urls) > 10
    assert [url for url in urls if not url.startswith((f"http://127.0.0.1:{page.port}/", "data:"))] == []
    entries = [event["params"]["entry"] for event in browser.events if event["method"] == "Log.entryAdded"]
    assert [entry for entry in entries if entry["level"] in ("error", "warning")] == []
    thrown = [event for event in browser.events if event["method"] == "Runtime.exceptionThrown"]
    assert thrown == []


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), [(1280, 800), (390, 844)])
def test_it_fits_and_the_buttons_stay_in_sight(
    browser: Browser, page: Page, tmp_path: Path, width: int, height: int, dark: bool
) -> None:
    tab = browser.tab(page.link, width, height, dark)
    tab.enter(f"屏幕 {width} {dark}")
    tab.key("1")
    tab.shows(1)  # the long answer is on
    assert tab.js("document.documentElement.scrollWidth") <= width
    boxes = [tab.js(f"document.querySelector('#key-{i}').getBoundingClientRect().toJSON()") for i in range(1, 7)]
    assert all(box["bottom"] <= height and box["right"] <= width and box["height"] >= 32 for box in boxes)
    background = tab.js("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background)[:3])) < 60) == dark, background
    tab.shot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 5_000


@pytest.mark.slow
def test_votes_survive_a_kill_and_the_rater_goes_on(browser: Browser, tmp_path: Path) -> None:
    fill(tmp_path)
    with serving(tmp_path) as first:
        tab = browser.tab(first.link)
        tab.enter("王医生")
        tab.key("1")
        tab.shows(1)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        tab.key("2")  # nobody is there to take it
        tab.wait("document.querySelector('#gone')?.innerText.includes('没有存上')")
        tab.shows(1)
    with serving(tmp_path) as second:
        assert len(second.votes("王医生")) == 1
        tab.call("Page.navigate", url=second.link)
        tab.shows(1)  # the name is known, though the port is another
        tab.key("2")
        tab.shows(2)
        assert [(vote["id"], vote["pressed"]) for vote in second.votes("王医生")] == [("id0", "A≫B"), ("id1", "A>B")]


@pytest.mark.slow
def test_a_megabyte_an_answer_can_be_voted_on(browser: Browser, tmp_path: Path) -> None:
    fill(tmp_path, n=4, text="痰" * 350_000)
    with serving(tmp_path) as page:
        tab = browser.tab(page.link)
        tab.enter("耐心")
        began = time.monotonic()
        for voted in range(1, 5):
            tab.key("3")
            tab.shows(voted)
        assert time.monotonic() - began < 20
        assert len(page.votes("耐心")) == 4


@pytest.mark.slow
def test_a_vote_that_is_not_on_the_disk_is_not_counted(browser: Browser, tmp_path: Path) -> None:
    fill(tmp_path)
    with serving(tmp_path) as page:
        tab = browser.tab(page.link)
        tab.enter("王医生")
        shown = tab.text("#card .sides")
        votes = tmp_path / "votes.jsonl"
        votes.unlink()
        votes.mkdir()
        tab.key("1")
        tab.wait("document.body.innerText.includes('没有存上')")
        assert tab.text("#card .sides") == shown and str(tmp_path) not in tab.js("document.body.innerText")
        assert "votes.jsonl" in (tmp_path / "stderr").read_text(encoding="utf-8")
        votes.rmdir()
        tab.key("1")
        tab.shows(1)
        assert len(page.votes("王医生")) == 1


def test_ctrl_c_ends_it_quietly(page: Page) -> None:
    page.process.send_signal(signal.SIGINT)
    assert page.process.wait(20) == 0
    assert "Traceback" not in (page.folder / "stderr").read_text(encoding="utf-8")
