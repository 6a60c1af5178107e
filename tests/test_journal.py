"""The journal against real kills, real full disks and every torn end; a wrapper only where fsyncs are counted."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import inspect
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chat.journal import Journal, key_of, verify
from recipe import UserError
from tests.conftest import ROOT

KEY = "sk-4f9b/Zq+71e0a22c5"


def outcome(number: int, sample: int = 0, ok: bool = True, **more: Any) -> dict[str, Any]:
    """What becomes a line: the question of day `number`, answered or failed."""
    asked = {
        "model": "r1",
        "messages": [{"role": "user", "content": f"咳嗽第{number}天，要紧吗？"}],
        "temperature": 0.6,
    }
    result = {"reply": {"text": f"考虑感冒；\n观察{number}天。", "usage": {"prompt_tokens": 9, "completion_tokens": 7}}}
    if not ok:
        result = {"error": {"kind": "timeout"}}
    entry = {"key": key_of(asked, str(number), sample), "ok": ok, "id": str(number), "sample": sample, "asked": asked}
    return entry | result | more


def fill(path: Path, *entries: dict[str, Any]) -> Path:
    with Journal(path) as journal:
        for entry in entries:
            journal.append(entry)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    """Every line as JSON: strict UTF-8, nothing after the last newline."""
    text = path.read_bytes().decode()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


# --- what a line is ---------------------------------------------------------------------------------------------------


def test_a_line_begins_with_its_key_and_is_found_by_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folders" / "journal.jsonl"
    one, failed = outcome(1), outcome(2, ok=False)
    with Journal(path) as journal:
        journal.append(one)
        journal.append(failed)
        assert one["key"] in journal and failed["key"] not in journal and len(journal) == 1
        assert journal.get(one["key"])["reply"]["text"] == "考虑感冒；\n观察1天。"
        with pytest.raises(KeyError):
            journal.get(failed["key"])
        assert [entry["ok"] for entry in journal] == [True, False]
    raw = path.read_bytes().splitlines()
    assert raw[0].startswith(f'{{"key": "{one["key"]}", "ok": true, "id": "1", "sample": 0, "at": "20'.encode())
    assert raw[1].startswith(f'{{"key": "{failed["key"]}", "ok": false, '.encode())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", json.loads(raw[0])["at"])
    assert "咳嗽第1天".encode() in raw[0]
    with Journal(path) as again:
        assert one["key"] in again and failed["key"] not in again
        assert again.get(one["key"]) == lines(path)[0] and list(again) == lines(path)


def test_the_key_is_the_hash_of_all_three_and_of_nothing_else() -> None:
    asked = {"model": "r1", "messages": [{"role": "user", "content": "咳嗽"}]}
    text = '{"asked":{"messages":[{"content":"咳嗽","role":"user"}],"model":"r1"},"id":"17","sample":2}'
    assert key_of(asked, "17", 2) == hashlib.sha256(text.encode()).hexdigest()
    assert key_of(dict(reversed(asked.items())), "17", 2) == key_of(asked, "17", 2)
    others = [(asked, "17", 1), (asked, "18", 2), (asked | {"temperature": 0.6}, "17", 2)]
    assert len({key_of(asked, "17", 2), *(key_of(*other) for other in others)}) == 4


@pytest.mark.skipif(not shutil.which("jq"), reason="needs jq")
def test_jq_reads_it_and_finds_the_same_keys(tmp_path: Path) -> None:
    path = fill(tmp_path / "journal.jsonl", outcome(1), outcome(2, ok=False), outcome(3))
    ids = subprocess.run(["jq", "-r", "select(.ok) | .id", path], capture_output=True, text=True, check=True).stdout
    assert ids.split() == ["1", "3"]
    told = subprocess.run(["jq", "-cS", "{asked, id, sample}", path], capture_output=True, check=True).stdout
    hashes = [hashlib.sha256(line).hexdigest() for line in told.splitlines()]
    assert hashes == [line["key"] for line in lines(path)]


def test_the_last_answer_counts_and_a_failure_never_does(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first, second = outcome(1, reply={"text": "一"}), outcome(1, reply={"text": "二"})
    fill(path, first, second, outcome(2), outcome(1, ok=False))
    with Journal(path) as journal:
        assert len(journal) == 2 and journal.get(first["key"])["reply"]["text"] == "二"
        journal.append(outcome(1, reply={"text": "三"}))
        assert len(journal) == 2 and journal.get(first["key"])["reply"]["text"] == "三"


def test_what_a_server_sends_amiss_is_kept_as_json(tmp_path: Path) -> None:
    reply = {"text": "半个\ud83d字\u2028\0", "logprob": float("-inf"), "list": [float("nan"), 1.5]}
    path = fill(tmp_path / "journal.jsonl", outcome(1, reply=reply))
    assert lines(path)[0]["reply"] == {"text": "半个\ud83d字\u2028\0", "logprob": None, "list": [None, 1.5]}
    assert not verify(str(path))[1]


def test_an_entry_that_does_not_fit_its_key_is_not_written(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        for wrong in ({"key": "0" * 64}, {"id": "2"}, {"sample": 1}, {"ok": 1}, {"ok": False}):
            with pytest.raises(ValueError):
                journal.append(outcome(1) | wrong)
        journal.append(outcome(1))
    assert len(lines(tmp_path / "journal.jsonl")) == 1
    with pytest.raises(ValueError, match="closed"):
        journal.append(outcome(2))


def test_two_keys_with_the_same_first_64_bits_are_two_keys(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    key, other, third = ("0" * 16 + letter * 48 for letter in "abc")
    text = '{{"key": "{}", "ok": true, "id": "{}"}}\n'
    path.write_text(text.format(key, 1) + text.format(other, 2) + text.format(key, 3) + text.format("f" * 64, 4))
    with Journal(path) as journal:
        assert [journal.get(key)["id"], journal.get(other)["id"], journal.get("f" * 64)["id"]] == ["3", "2", "4"]
        assert third not in journal and len(journal) == 3


# --- the end of the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ok", [True, False])
def test_torn_at_every_byte_it_is_cut_back_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ok: bool
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # 400 files, no power cut
    path, aside = tmp_path / "journal.jsonl", tmp_path / "journal.jsonl.torn"
    whole = fill(path, outcome(1), outcome(2, ok=False)).read_bytes()
    last = fill(path, outcome(3, ok=ok)).read_bytes()[len(whole) :]
    for cut in range(len(last)):
        path.write_bytes(whole + last[:cut])
        with Journal(path) as journal:
            kept = cut == len(last) - 1  # all there but the newline: an answer, paid for and whole
            assert (outcome(3)["key"] in journal) is (kept and ok)
            journal.append(outcome(4))
        assert path.read_bytes().startswith(whole + last * kept)
        assert [line["id"] for line in lines(path)] == ["1", "2", *["3"] * kept, "4"]
        said = capsys.readouterr().err
        if 0 < cut < len(last) - 1:
            assert said == f"{path}: the last line was torn; its {cut} bytes are in {aside}\n"
            assert aside.read_bytes() == last[:cut] + b"\n"
            aside.unlink()
        assert not aside.exists() and (said == "") is (kept or cut == 0)


@pytest.mark.parametrize(
    "tail",
    [
        b"\0" * 5000,
        b'{"key": "\xe5\x92',
        b"\xff\xfe\x00",
        b"\xe5\x92",
        b"\0" * 4096 + '咳嗽"}}\n'.encode(),
        b"\0" * 4096 + b'cough"}}\n' + b"\0" * 100,
        b'{"key": "' + b"a" * 64 + b'", "ok": true, "asked": {"model": "r1"}',
        b'{"key": "' + b"a" * 64 + b'", "ok": true, "asked": {"model": "r1"}\n',
        b'{"key": "' + b"a" * 64 + b'", "ok": tru\n',
    ],
)
def test_what_a_power_cut_leaves_is_set_aside(tmp_path: Path, tail: bytes) -> None:
    path = fill(tmp_path / "journal.jsonl", outcome(1))
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with Journal(path) as journal:
        assert len(journal) == 1
    assert path.read_bytes() == whole
    assert (tmp_path / "journal.jsonl.torn").read_bytes() == tail + b"\n"


def test_a_second_torn_end_does_not_replace_the_first(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for tail in (b'{"key": "a', b"\0\0"):
        path.write_bytes(tail)
        Journal(path).close()
        assert path.read_bytes() == b""
    assert (tmp_path / "journal.jsonl.torn").read_bytes() == b'{"key": "a\n\0\0\n'


@pytest.mark.parametrize("fault", ["glued", "NUL", "cut", "empty line", "not UTF-8", "foreign"])
def test_a_broken_line_in_the_middle_is_named_and_nothing_is_changed(tmp_path: Path, fault: str) -> None:
    path = fill(tmp_path / "journal.jsonl", outcome(1), outcome(2), outcome(3))
    one, two, three = path.read_bytes().splitlines(keepends=True)
    broken = {
        "glued": two[:150] + two,
        "NUL": two[:150] + b"\0" + two[151:],
        "cut": two[:150] + b"\n",
        "empty line": b"\n",
        "not UTF-8": two.replace("嗽".encode(), b"\xe5\x97"),
        "foreign": b'{"input": "x"}\n',
    }[fault]
    path.write_bytes(before := one + broken + three)
    with pytest.raises(UserError, match=rf"{path}:2: not a whole line of a journal; mend or remove this line"):
        Journal(path)
    assert path.read_bytes() == before and not (tmp_path / "journal.jsonl.torn").exists()
    assert verify(str(path))[1]["broken"] == [f"{path}:2: not a whole line of a journal"]


@pytest.mark.parametrize("content", [b'[{"input": "x"}]', b"key: value", b'{"id": 1}\n', b"\x89PNG\r\n\0\0\n\0"])
def test_a_file_that_is_no_journal_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.json:1: not a whole line of a journal"):
        Journal(path)
    assert path.read_bytes() == content and os.listdir(tmp_path) == ["train.json"]


def test_a_question_that_holds_an_object_with_a_key_is_no_glued_line(tmp_path: Path) -> None:
    asked = {"schema": {"key": "value"}}
    entry = outcome(1) | {"asked": asked, "key": key_of(asked, "1", 0)}
    path = fill(tmp_path / "journal.jsonl", entry, outcome(2))
    with Journal(path) as journal:
        assert len(journal) == 2


# --- kill -9 ----------------------------------------------------------------------------------------------------------

OUTCOME = f"""
from __future__ import annotations
from typing import Any
from chat.journal import Journal, key_of
{inspect.getsource(outcome)}
"""
WRITER = """
import asyncio, itertools, os, signal, sys

async def work(journal, numbers, acknowledged):
    for number in numbers:
        entry = outcome(number)
        entry["reply"]["text"] *= 5_000 if number % 5 == 0 else 10
        if entry["key"] not in journal:
            await journal.add(entry)
            os.write(acknowledged, entry["key"].encode() + b"\\n")

async def main(journal, acknowledged):
    numbers = itertools.count()
    await asyncio.gather(*(work(journal, numbers, acknowledged) for _ in range(16)))

while sys.stdin.readline():  # one process to import it all, a new one of it for each round
    writer = os.fork()
    if not writer:
        signal.alarm(60)  # should nobody be left to kill it
        with Journal(sys.argv[1]) as journal:
            asyncio.run(main(journal, os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)))
    print(writer, flush=True)
    os.waitpid(writer, 0)
    print("ended", flush=True)
"""


def kill_and_look(folder: Path, rounds: int) -> Counter[str]:
    path, acknowledged = folder / "journal.jsonl", folder / "acknowledged"
    acknowledged.touch()
    counts = Counter[str]()
    with subprocess.Popen(
        [sys.executable, "-c", OUTCOME + WRITER, path, acknowledged],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        for _ in range(rounds):
            starter.stdin.write("\n")
            starter.stdin.flush()
            writer = int(starter.stdout.readline())
            time.sleep(random.uniform(0, 0.15))
            os.kill(writer, signal.SIGKILL)
            assert starter.stdout.readline() == "ended\n"
            torn = path.exists() and not (path.read_bytes() + b"\n" * (not path.stat().st_size)).endswith(b"\n")
            keys = acknowledged.read_text().split()
            with Journal(path) as journal:
                assert all(key in journal for key in keys)
                assert len(journal) == sum(1 for _ in journal)  # none unreadable, none twice
            counts.update(rounds=1, torn=torn)
        starter.stdin.close()
    assert len(keys) == len(set(keys)) and not verify(str(path))[1]
    return counts + Counter(acknowledged=len(keys), lines=len(lines(path)))


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    assert kill_and_look(tmp_path, 12)["acknowledged"] > 0


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_by_100_kills(tmp_path: Path) -> None:
    print(dict(kill_and_look(tmp_path, 100)))


# --- a second writer, a full disk, a folder that goes -----------------------------------------------------------------


def test_a_second_writer_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    code = "import sys; from chat.journal import Journal; Journal(sys.argv[1]); print('open', flush=True); input()"
    first = subprocess.Popen(
        [sys.executable, "-c", code, path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout.readline() == "open\n"
    for attempt in (lambda: Journal(path), lambda: verify(str(path))):
        with pytest.raises(UserError, match=rf"journal\.jsonl: is in use by process {first.pid}; wait for it"):
            attempt()
    first.kill()
    first.communicate()
    with Journal(path) as journal, pytest.raises(UserError, match="is in use by"):
        journal.append(outcome(1))
        Journal(path)
    Journal(path).close()


FULL = """
import asyncio, json, os, resource, subprocess, sys
from pathlib import Path
from recipe import UserError

def ids(path):
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]

folder, how = Path(sys.argv[1]), sys.argv[2]
if how == "tmpfs":
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder]).returncode:
        sys.exit(77)
    (folder / "ballast").write_bytes(b"x" * 250_000)
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
path = folder / "journal.jsonl"
entries = [outcome(number) for number in range(640)]

async def fill(journal):
    return await asyncio.gather(*map(journal.add, entries), return_exceptions=True)

with Journal(path) as journal:
    results = asyncio.run(fill(journal))
    safe = {entry["key"] for entry, result in zip(entries, results) if result is None}
    said = {str(result) for result in results if result is not None}
    assert {type(result) for result in results} == {type(None), UserError}
    for entry in entries[-3:]:
        try:
            journal.append(entry)
        except UserError as error:
            said.add(str(error))
    assert {line["key"] for line in journal} == safe == {entry["key"] for entry in entries if entry["key"] in journal}
assert ids(path) == [entry["id"] for entry in entries[:len(safe)]]
if how == "tmpfs":
    (folder / "ballast").unlink()
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
with Journal(path) as journal:
    entries = [entry for entry in entries if entry["key"] not in journal]
    assert not any(asyncio.run(fill(journal)))
assert ids(path) == list(map(str, range(640)))
print(json.dumps([len(safe), os.listdir(folder), *said]))
"""


@pytest.mark.parametrize("how, reason", [("tmpfs", "No space left on device"), ("limit", "File too large")])
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, how: str, reason: str) -> None:
    unshare = ["unshare", "--map-root-user", "--mount"] if how == "tmpfs" else []
    run = subprocess.run(
        [*unshare, sys.executable, "-c", OUTCOME + FULL, tmp_path, how],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if how == "tmpfs" and (run.returncode == 77 or run.stderr.startswith("unshare")):
        pytest.skip("no file system can be mounted here")
    assert run.returncode == 0, run.stderr
    safe, files, *said = json.loads(run.stdout)
    assert 100 < safe < 600 and files == ["journal.jsonl"] and len(said) == 1
    todo = "make room or make it writable, then run the same command again"
    assert said[0] == f"{tmp_path}/journal.jsonl: could not be written ({reason}); what is in it is safe: {todo}"


def test_a_failing_fsync_acknowledges_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fill(tmp_path / "journal.jsonl", outcome(1))
    before, calls = path.read_bytes(), []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:  # as Linux does: the second call says that all is well
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Journal(path) as journal:
        monkeypatch.setattr(os, "fsync", fsync)
        for number in (2, 3):
            with pytest.raises(UserError, match=r"could not be written \(Input/output error\)"):
                journal.append(outcome(number))
        assert len(journal) == 1 and outcome(2)["key"] not in journal
    assert path.read_bytes() == before


@pytest.mark.parametrize("how", ["removed", "moved", "replaced", "appended to"])
def test_a_journal_that_is_taken_away_is_noticed_at_the_next_line(tmp_path: Path, how: str) -> None:
    path, other = tmp_path / "a" / "journal.jsonl", tmp_path / "b"
    with Journal(path) as journal:
        journal.append(outcome(1))
        if how == "removed":
            shutil.rmtree(tmp_path / "a")
        elif how == "moved":
            (tmp_path / "a").rename(other)
        elif how == "replaced":
            path.with_name("copy").write_bytes(path.read_bytes())
            path.with_name("copy").rename(path)
        else:
            with open(path, "a") as file:
                file.write("echo\n")
        for _ in range(2):
            with pytest.raises(UserError, match=r"journal\.jsonl: was removed, moved or changed by something"):
                journal.append(outcome(2))
    if how == "moved":
        assert [line["id"] for line in lines(other / "journal.jsonl")] == ["1"]
    if how == "appended to":
        assert path.read_text(encoding="utf-8").endswith("echo\n")


CLOSED_FOLDER = """
import os, sys
from pathlib import Path
from recipe import UserError

path = Path(sys.argv[1]) / "journal.jsonl"
if os.geteuid() == 0:
    os.setuid(65534)
with Journal(path) as journal:
    journal.append(outcome(1))
    path.parent.chmod(0o555)
    journal.append(outcome(2))  # an open file can still be written
with Journal(path) as journal:
    journal.append(outcome(3))
path.chmod(0o444)
for name in (path, path.with_name("other.jsonl"), path.parent / "new" / "journal.jsonl"):
    try:
        Journal(name)
    except UserError as error:
        print(error)
"""


def test_a_folder_that_becomes_unwritable() -> None:
    with tempfile.TemporaryDirectory() as outer:
        os.chmod(outer, 0o755)
        folder = Path(outer, "label")
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, 65534, 65534)
        run = subprocess.run(
            [sys.executable, "-c", OUTCOME + CLOSED_FOLDER, folder],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        todo = "could not be opened for writing (Permission denied); make its folder writable, or name another file"
        names = ("journal.jsonl", "other.jsonl", "new/journal.jsonl")
        assert run.stdout.splitlines() == [f"{folder}/{name}: {todo}" for name in names]
        assert [line["id"] for line in lines(folder / "journal.jsonl")] == ["1", "2", "3"]


def test_a_place_that_can_be_no_journal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "file" / "j", "exists|Not a directory")):
        with pytest.raises(UserError, match=rf"could not be opened for writing \(.*({reason})"):
            Journal(path)
    with pytest.raises(UserError, match=r"/dev/full: is no regular file"):
        Journal("/dev/full")


# --- many at once -----------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every fsync takes 50 ms; the list has the file's size at the end of each."""
    sizes, fsync = [], os.fsync

    def slow(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        time.sleep(0.05)
        fsync(descriptor)
        sizes.append(size)

    monkeypatch.setattr(os, "fsync", slow)
    return sizes


def test_adds_at_once_share_an_fsync_and_none_returns_before_it(tmp_path: Path, slow_disk: list[int]) -> None:
    path = tmp_path / "journal.jsonl"

    async def add(journal: Journal, number: int) -> int:
        await journal.add(outcome(number))
        return slow_disk[-1]

    async def main(journal: Journal) -> list[int]:
        slow_disk.clear()
        return await asyncio.gather(*(add(journal, number) for number in range(64)))

    with Journal(path) as journal:
        durable = asyncio.run(main(journal))
    assert len(slow_disk) <= 4
    assert [line["id"] for line in lines(path)] == [str(number) for number in range(64)]
    end = 0
    for line, size in zip(path.read_bytes().splitlines(keepends=True), durable, strict=True):
        end += len(line)
        assert size >= end


def test_a_slow_disk_does_not_hold_up_the_event_loop(tmp_path: Path, slow_disk: list[int]) -> None:
    async def main(journal: Journal) -> list[float]:
        adding = asyncio.ensure_future(asyncio.wait([asyncio.ensure_future(journal.add(outcome(n))) for n in range(5)]))
        ticks = [time.monotonic()]
        while not adding.done():
            await asyncio.sleep(0.001)
            ticks.append(time.monotonic())
        return [after - before for before, after in pairwise(ticks)]

    with Journal(tmp_path / "journal.jsonl") as journal:
        gaps = asyncio.run(main(journal))
    assert sum(gaps) >= 0.05 and sorted(gaps)[len(gaps) // 2] < 0.02


def test_a_cancelled_add_is_written_all_the_same(tmp_path: Path, slow_disk: list[int]) -> None:
    async def main(journal: Journal) -> None:
        tasks = [asyncio.ensure_future(journal.add(outcome(number))) for number in range(3)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*tasks, return_exceptions=True))

    with Journal(tmp_path / "journal.jsonl") as journal:
        asyncio.run(main(journal))
        journal.append(outcome(3))
        assert all(outcome(number)["key"] in journal for number in range(4))
    assert [line["id"] for line in lines(tmp_path / "journal.jsonl")] == ["0", "1", "2", "3"]


# --- memory -----------------------------------------------------------------------------------------------------------


def write_many(path: Path, count: int, asked: str = "") -> None:
    """`count` answered lines whose keys are hashes of their numbers."""
    rest = json.dumps({"asked": asked}, ensure_ascii=False)[1:]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            file.write(f'{{"key": "{numbered(number)}", "ok": true, "id": "{number}", {rest}\n')


def numbered(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_a_key_takes_at_most_24_bytes(tmp_path: Path) -> None:
    path, count = tmp_path / "journal.jsonl", 20_000
    write_many(path, count)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        journal = Journal(path)
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    with journal:
        assert len(journal) == count and (after - before) / count <= 24
        assert all(numbered(number) in journal for number in range(0, count, 7))
        assert numbered(count) not in journal


def test_keys_are_found_before_and_after_they_are_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chat.journal.RECENT", 100)
    path, entries = tmp_path / "journal.jsonl", [outcome(number) for number in range(1010)]

    async def add(journal: Journal) -> None:
        await asyncio.gather(*map(journal.add, entries))

    with Journal(path) as journal:
        asyncio.run(add(journal))
        assert len(journal) == len(entries) and len(journal._index._recent) == 10
        assert all(journal.get(entry["key"])["id"] == entry["id"] for entry in entries)
        journal.append(entries[0] | {"reply": {"text": "again"}})
        assert journal.get(entries[0]["key"])["reply"] == {"text": "again"} and len(journal) == len(entries)


# --- secrets ----------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(char):04X}" for char in text)


@pytest.mark.parametrize(
    "said",
    [
        f"Incorrect API key provided: {KEY}.",
        json.dumps({"error": f"wrong key {KEY}"}),
        json.dumps({"error": f"wrong key {KEY}"}).replace("/", "\\/"),
        json.dumps({"body": json.dumps({"error": KEY}).replace("/", "\\/")}),
        f'{{"error": "{escaped(KEY)}"}}',
        json.dumps(f'{{"error": "{escaped(KEY[:3])}{KEY[3:]}"}}'),
        KEY.replace("+", "\\u002b"),
    ],
)
def test_a_secret_never_reaches_the_file(tmp_path: Path, said: str) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(path, secrets=["EMPTY", KEY]) as journal:
        journal.append(outcome(1, reply={"text": f"考虑\n{said}", "headers": {f"Bearer {KEY}": [said]}}))
        journal.append(outcome(2, ok=False, error={"kind": "key", "message": said}))
        assert outcome(1)["key"] in journal
    read = bare(path.read_text(encoding="utf-8"))
    assert KEY not in read and read.count("***") == 4
    assert lines(path)[0]["reply"]["text"].startswith("考虑\n")
    assert not verify(str(path))[1]


def bare(text: str) -> str:
    """Text without any JSON escapes, as whoever looks for a secret would read it."""
    return re.sub(r"\\+u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text).replace("\\", "")


def test_a_secret_with_quotes_and_a_short_one(tmp_path: Path) -> None:
    path, secret = tmp_path / "journal.jsonl", 'nine"back\\slash'
    with Journal(path, secrets=[secret, "EMPTY"]) as journal:
        journal.append(outcome(1, reply={"text": f"{secret} {json.dumps(secret)} \nine EMPTY {escaped('nine')}"}))
    assert lines(path)[0]["reply"]["text"] == '*** "***" \nine EMPTY ' + escaped("nine")


def test_a_question_that_holds_the_key_is_refused(tmp_path: Path) -> None:
    asked = {"model": "r1", "messages": [{"role": "user", "content": f"我的密钥是{KEY}"}]}
    entry = outcome(1) | {"asked": asked, "key": key_of(asked, "1", 0)}
    with Journal(tmp_path / "journal.jsonl", secrets=[KEY]) as journal:
        with pytest.raises(UserError, match=r"journal\.jsonl: id 1: what is asked holds the API key; take it") as error:
            journal.append(entry)
        assert KEY not in str(error.value) and not len(journal)
    assert lines(tmp_path / "journal.jsonl") == []


# --- verify -----------------------------------------------------------------------------------------------------------


def planted(folder: Path) -> tuple[Path, Path, Path, Path]:
    """A journal of 5 answers and 2 failures (one of them answered later), its two outputs and its summary."""
    path = fill(
        folder / "journal.jsonl",
        *(outcome(number) for number in (1, 2)),
        outcome(3, ok=False),
        outcome(3),
        outcome(
            4, ok=False, error={"kind": "truncated"}, reply={"usage": {"prompt_tokens": 5, "completion_tokens": 90}}
        ),
        *(outcome(5, sample) for sample in (0, 1)),
    )
    labelled, failed, summary = folder / "labelled.jsonl", folder / "failed.jsonl", folder / "summary.json"
    keys = [outcome(*one)["key"] for one in ((1,), (2,), (3,), (5, 0), (5, 1))]
    rows = [{"id": 1, "journal": keys[0]}, {"id": "3", "journal": keys[2]}, {"id": "5", "journal": keys[3:]}]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"id": "2", "journal": keys[1], "failed": "evidence"}, {"id": "4", "journal": None, "failed": "timeout"}]
    failed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = {"answered": 5, "failed": {"truncated": 1}, "prompt_tokens": 50, "completion_tokens": 125, "usd": 0.0003}
    told |= {"records": 5, "labelled": 3, "left": 0, "failed_records": {"evidence": 1, "timeout": 1}}
    summary.write_text(json.dumps(told | {"thought_from": {"none": 5}, "settings": {"usd_in": 1, "usd_out": 2}}))
    return path, labelled, failed, summary


def proof(path: Path, *rest: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "chat.journal", "verify", path, *rest]
    run = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout + run.stderr


def test_a_whole_journal_is_proved_and_its_figures_are_told(tmp_path: Path) -> None:
    path, labelled, failed, summary = planted(tmp_path)
    code, said = proof(path, labelled, failed, "--summary", summary)
    figures = ("7 lines", "answered 5", "failed 1 truncated 1", "prompt tokens 50", "completion tokens 125")
    assert all(figure in " ".join(said.split()) for figure in figures)
    assert code == 0 and said.endswith(f"{path}: nothing wrong\n")


def edit(path: Path, change: Callable[[list[str]], None]) -> None:
    rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    change(rows)
    path.write_text("".join(rows), encoding="utf-8")


DISCREPANCIES: dict[str, tuple[str, Callable[[list[str]], None], list[str]]] = {
    "a line cut": ("journal.jsonl", lambda rows: rows.insert(3, rows[3][:200] + "\n"), ["broken"]),
    "a torn end": ("journal.jsonl", lambda rows: rows.append(rows[0][:200]), ["broken"]),
    "no newline": ("journal.jsonl", lambda rows: rows.append(rows.pop().rstrip()), ["broken", "surplus"]),
    "NaN": ("journal.jsonl", lambda rows: rows.insert(3, rows[2].replace('"timeout"', "NaN")), ["broken"]),
    "no reply": ("journal.jsonl", lambda rows: rows.append(rows[2].replace('"error"', '"errors"')), ["broken"]),
    "another question": ("journal.jsonl", lambda rows: rows.append(rows[2].replace("第3天", "第8天")), ["wrong key"]),
    "another id": ("journal.jsonl", lambda rows: rows.append(rows[2].replace('"id": "3"', '"id": "9"')), ["wrong key"]),
    "another key": ("journal.jsonl", lambda rows: rows.append(rows[2].replace(rows[2][9:19], "0" * 10)), ["wrong key"]),
    "answered twice": ("journal.jsonl", lambda rows: rows.append(rows[0]), ["answered twice", "differs"]),
    "an answer lost": ("journal.jsonl", lambda rows: rows.pop(1) and None, ["surplus", "differs"]),
    "a row lost": ("labelled.jsonl", lambda rows: rows.pop(1) and None, ["missing"]),
    "a row twice": ("labelled.jsonl", lambda rows: rows.append(rows[1]), ["twice"]),
    "in both files": ("failed.jsonl", lambda rows: rows.append(rows[0]), ["twice"]),
    "a row of a failure": (
        "labelled.jsonl",
        lambda rows: rows.append(json.dumps({"journal": outcome(4)["key"]})),
        ["surplus"],
    ),
    "a row of nothing": ("labelled.jsonl", lambda rows: rows.append('{"id": "7", "journal": "abc"}'), ["surplus"]),
    "a row without": ("labelled.jsonl", lambda rows: rows.append('{"id": "7"}'), ["surplus"]),
    "mixed up": (
        "labelled.jsonl",
        lambda rows: rows.__setitem__(0, rows[0].replace('"id": 1', '"id": 10')),
        ["wrong id", "missing"],
    ),
    "figures": ("summary.json", lambda rows: rows.__setitem__(0, rows[0].replace("125", "35")), ["differs"]),
    "a kind": ("summary.json", lambda rows: rows.__setitem__(0, rows[0].replace("truncated", "fatal")), ["differs"]),
    "a gate": ("summary.json", lambda rows: rows.__setitem__(0, rows[0].replace("evidence", "length")), ["differs"]),
    "rows": (
        "summary.json",
        lambda rows: rows.__setitem__(0, rows[0].replace('"labelled": 3', '"labelled": 4')),
        ["differs"],
    ),
    "a price": ("summary.json", lambda rows: rows.__setitem__(0, rows[0].replace("0.0003", "0.0002")), ["differs"]),
    "thoughts": ("summary.json", lambda rows: rows.__setitem__(0, rows[0].replace("none", "inline")), ["differs"]),
    "a figure gone": ("summary.json", lambda rows: rows.__setitem__(0, '{"answered": 5}'), ["differs"]),
}


@pytest.mark.parametrize("name", DISCREPANCIES)
def test_each_discrepancy_is_found(tmp_path: Path, name: str) -> None:
    path, labelled, failed, summary = planted(tmp_path)
    arguments = (str(path), [str(labelled), str(failed)], str(summary))
    assert not verify(*arguments)[1]
    file, change, kinds = DISCREPANCIES[name]
    edit(tmp_path / file, change)
    found = {kind for kind, lines in verify(*arguments)[1].items() if lines}
    assert set(kinds) <= found and found <= {*kinds, "differs"}


def test_findings_name_their_place_and_the_exit_code_is_1(tmp_path: Path) -> None:
    path, labelled, failed, summary = planted(tmp_path)
    edit(labelled, lambda rows: rows.append(rows.pop(1)))  # another order is no fault
    edit(failed, lambda rows: rows.pop(0) and None)
    edit(summary, lambda rows: rows.__setitem__(0, rows[0].replace("50", "51")))
    code, said = proof(path, labelled, failed, "--summary", summary)
    assert code == 1 and said.endswith(f"{path}: 4 wrong\n")
    assert f"missing        {path}:2: id 2 has no row in {labelled}, {failed}\n" in said
    assert f"differs        {summary}: prompt_tokens is 51, counted again 50\n" in said


def test_what_verify_can_not_read_is_one_line(tmp_path: Path) -> None:
    path, labelled, _, _ = planted(tmp_path)
    none = f"{tmp_path}/none.jsonl"
    for arguments in ((none,), (str(path), [none]), (str(path), [], none), (str(path), [], str(labelled))):
        with pytest.raises(UserError, match=r"(none|labelled)\.jsonl: (could not be read|no such file|not valid JSON)"):
            verify(*arguments)
    code, said = proof(Path(none))
    assert (code, said) == (1, f"error: {none}: could not be read (No such file or directory)\n")


def test_an_empty_output_has_no_rows(tmp_path: Path) -> None:
    path, labelled, failed, _ = planted(tmp_path)
    failed.write_text("")
    assert verify(str(path), [str(labelled), str(failed)])[1].keys() == {"missing"}


# --- a million lines --------------------------------------------------------------------------------------------------

OPEN = """
import asyncio, sys, time

def mib(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name))

async def fill(journal, count):
    async def work(numbers):
        for number in numbers:
            await journal.add(outcome(number))
    numbers = iter(range(count))
    await asyncio.gather(*(work(numbers) for _ in range(64)))

start = mib("VmRSS")
began = time.perf_counter()
with Journal(sys.argv[1]) as journal:
    opened = time.perf_counter() - began
    spent = time.process_time()
    peak, held = mib("VmHWM"), mib("VmRSS")
    began = time.perf_counter()
    asyncio.run(fill(journal, 20_000))
    speed = 20_000 / (time.perf_counter() - began)
    print(f"{len(journal) - 20_000:,} answered: open {opened:.1f} s, with all imports {spent:.1f} s of CPU; "
          f"RSS before {start:.0f}, peak {peak:.0f}, "
          f"after {held:.0f}, after 20,000 adds {mib('VmRSS'):.0f} MiB; {speed:,.0f} adds a second, 64 at once")
"""


@pytest.mark.slow
def test_a_million_lines(tmp_path: Path) -> None:
    for count in (10_000, 1_000_000):
        path = tmp_path / f"{count}.jsonl"
        write_many(path, count, "患者男，45岁，因反复上腹痛半年。A cough for three weeks, worse at night. " * 16)
        size = path.stat().st_size
        command = [sys.executable, "-c", OUTCOME + OPEN, path]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        print(f"\n{size / count:,.0f} bytes a line; {run.stdout}", end="")
        path.unlink()
