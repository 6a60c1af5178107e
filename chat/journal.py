"""Everything that was asked of a model, and what came of it: append-only JSONL, one line an outcome.

    {"key": "<64 hex digits>", "ok": true, "id": "17", "sample": 0, "at": "2026-11-22T08:00:00.123Z",
     "asked": {"model": …, "messages": […], "temperature": …}, "reply": {"text": …, "usage": {…}, …}}

`key` is the hash of all that was asked. A failed outcome has `"ok": false` and an `error` with its `kind`, and the raw
reply where one came: kept for the record, never taken for an answer. To look into it:

    jq 'select(.id == "17")' journal.jsonl
    jq -r 'select(.ok | not) | .error.kind' journal.jsonl | sort | uniq -c

To prove that it is whole, and that the rows made of it are all there, each once:

    python -m chat.journal verify journal.jsonl labelled.jsonl failed.jsonl --summary summary.json
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import hashlib
import inspect
import json
import math
import os
import re
import stat
import sys
import threading
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from preprocess.records import read_rows, record_id
from recipe import UserError, one_line_errors, read_text

START = b'{"key": "'
KEYED = START + rb'([0-9a-f]{64})", "ok": '
HEAD = re.compile(KEYED + b"(true|false), ")
SAMPLE = START + b"0" * 64 + b'", "ok": '
RECENT = 4096  # keys in a dictionary, before they are merged into the arrays
SHORTEST_SECRET = 8  # characters; what is shorter stands for "no key": EMPTY, ollama, none
FIGURES = ("answered", "failed", "prompt_tokens", "completion_tokens")  # that every summary has
LISTED = 20  # findings of a kind that are printed


def key_of(asked: dict[str, Any], id: str, sample: int) -> str:
    """The SHA-256 of the three as canonical JSON (sorted keys, no spaces, Chinese as it is), 64 hex digits.

    >>> key_of({"model": "r1", "messages": []}, "17", 0)  # {"asked":{"messages":[],"model":"r1"},"id":"17","sample":0}
    '75f75aaadbb18e1888e071449f4d266fc1be64a0c02e72222ad515a57ebff8a1'

    The server's address and key are no part of `asked`: the same question is not asked again because a server moved.
    Raises ValueError for NaN and Infinity.
    """
    value = {"asked": asked, "id": id, "sample": sample}
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(_encode(text)).hexdigest()


def _encode(text: str) -> bytes:
    """UTF-8; a lone surrogate, which some servers send, becomes \\udxxx, and JSON reads it back as it was."""
    return text.encode("utf-8", "backslashreplace")


class Journal:
    """A journal that is open for writing, by this process alone.

    with Journal("data/label/journal.jsonl", secrets=[api_key]) as journal:
        key = key_of(asked, "17", 0)
        if key not in journal:
            await journal.add({"key": key, "ok": True, "id": "17", "sample": 0, "asked": asked, "reply": reply})
        text = journal.get(key)["reply"]["text"]

    `len` and `in` are about answered keys; iterating gives every line, failed ones, too. Opening makes the folders,
    completes a last line that lacks its newline only, and moves one that is torn to `<path>.torn`. Raises UserError
    if another process has it open, if it can't be written, or if a line before the last is broken.
    """

    def __init__(self, path: str | Path, secrets: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self._absolute = os.path.abspath(path)
        self._secrets = _Secrets(secrets)
        self._waiting: list[_Line] = []
        self._wake = threading.Condition()
        self._closing = False
        self._failure = ""
        self._descriptor = _open_locked(self.path)
        try:
            self._index = self._load()
        except BaseException:
            os.close(self._descriptor)
            raise
        self._end = os.fstat(self._descriptor).st_size
        self._thread = threading.Thread(target=self._run, name=f"journal {self.path}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what is still waiting, and let go of the file."""
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify()
        self._thread.join()
        os.close(self._descriptor)

    # --- reading ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, key: str) -> bool:
        return re.fullmatch("[0-9a-f]{64}", key) is not None and self._index.find(key) is not None

    def get(self, key: str) -> dict[str, Any]:
        """The last line that answers `key`, as a dict; KeyError if there is none."""
        offset = self._index.find(key)
        if offset is None:
            raise KeyError(key)
        with open(self._absolute, "rb") as file:
            file.seek(offset)
            return _decode(file.readline(), f"{self.path}: byte {offset}")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, _, line in _lines(self._absolute, self._end):
            yield _decode(line, f"{self.path}:{number}")

    def _key_at(self, offset: int) -> str:
        return os.pread(self._descriptor, 64, offset + len(START)).decode()

    def _load(self) -> _Index:
        hashes, offsets = array("Q"), array("Q")
        size = os.fstat(self._descriptor).st_size
        torn: tuple[int, int] | None = None
        line = b"\n"
        for number, offset, line in _lines(self.path, size):
            head = _head(line, parse=offset + len(line) == size)
            if head and not torn:
                if head[2] == b"true":
                    hashes.append(_hash(head[1].decode()))
                    offsets.append(offset)
            elif head or not _may_be_torn(line, offset):
                raise UserError(
                    f"{self.path}:{torn[0] if torn else number}: not a whole line of a journal; "
                    "mend or remove this line, or name another file"
                )
            else:
                torn = torn or (number, offset)
        try:
            if torn:
                self._set_aside(torn[1], size)
            elif not line.endswith(b"\n"):
                _write(self._descriptor, b"\n")
        except OSError as error:
            raise UserError(_sentence(error.filename or self.path, error)) from None
        return _Index(hashes, offsets, self._key_at)

    def _set_aside(self, begin: int, end: int) -> None:
        """Move the bytes from `begin` on to `<path>.torn`, behind what an earlier crash left there."""
        aside = f"{self.path}.torn"
        descriptor = os.open(aside, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            _write(descriptor, os.pread(self._descriptor, end - begin, begin) + b"\n")
        finally:
            os.close(descriptor)
        os.ftruncate(self._descriptor, begin)
        os.fsync(self._descriptor)
        print(f"{self.path}: the last line was torn; its {end - begin:,} bytes are in {aside}", file=sys.stderr)

    # --- writing ------------------------------------------------------------------------------------------------------

    async def add(self, entry: dict[str, Any]) -> None:
        """Write one line; it is on the disk when this returns. Lines stand in the order of the calls.

        `entry` has key, ok, id, sample, asked, and reply (or error, where ok is False); `at` is now where it is
        missing. A secret is written as ***, NaN and Infinity as null. An add that is cancelled is written all the same.
        Raises UserError if the line could not be written, and for every line after that, until the journal is opened
        again; also if what was asked holds a secret. ValueError for an entry that does not fit its key.
        """
        await asyncio.wrap_future(self._submit(entry))

    def append(self, entry: dict[str, Any]) -> None:
        """The same for code that is not async."""
        self._submit(entry).result()

    def _submit(self, entry: dict[str, Any]) -> Future[None]:
        line = _Line(entry["key"] if entry["ok"] else "", self._to_line(entry))
        line.done.set_running_or_notify_cancel()  # from here on a waiting task can be cancelled, the line can't
        with self._wake:
            if self._closing:
                raise ValueError(f"{self.path}: the journal is closed")
            self._waiting.append(line)
            self._wake.notify()
        return line.done

    def _to_line(self, entry: dict[str, Any]) -> bytes:
        if entry["key"] != key_of(entry["asked"], entry["id"], entry["sample"]):
            raise ValueError("the entry's key is not the hash of what was asked")
        if not isinstance(entry["ok"], bool) or ("reply" if entry["ok"] else "error") not in entry:
            raise ValueError("expected ok: True with a reply, or ok: False with an error")
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = {name: entry[name] for name in ("key", "ok", "id", "sample")} | {"at": now} | entry
        text = _to_json(entry)
        if self._secrets.may_be_in(text):
            hidden = self._secrets.hide(entry)
            if any(_to_json(hidden[name]) != _to_json(entry[name]) for name in ("id", "asked")):
                what = "what is asked holds the API key; take it out of the record or the prompt"
                raise UserError(f"{self.path}: id {hidden['id']}: {what}")
            text = _to_json(hidden)
        return _encode(text) + b"\n"

    def _run(self) -> None:
        """The writer's thread: all that came while the disk was busy is one write and one fsync."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closing)
                group, self._waiting = self._waiting, []
            if not group:
                return
            try:
                self._commit(group)
            except Exception as error:  # whoever waits must not wait for ever
                self._failure = self._failure or f"{self.path}: could not be written ({error!r})"
                for line in group:
                    if not line.done.done():
                        line.done.set_exception(error)

    def _commit(self, group: list[_Line]) -> None:
        """Write a group behind the end, make it durable, and tell whoever waits for one of its lines."""
        durable = 0 if self._failure else self._write_durably(b"".join(line.text for line in group))
        offset, end = self._end, self._end + durable
        for line in group:
            if offset + len(line.text) > end:
                line.done.set_exception(UserError(self._failure))
                continue
            if line.key:
                self._index.put(line.key, offset)
            offset += len(line.text)
            self._end = offset
            line.done.set_result(None)

    def _write_durably(self, data: bytes) -> int:
        """How many bytes of `data`, in whole lines, are on the disk for good; less than all sets `_failure`."""
        written = 0
        try:
            if not self._is_as_left():
                what = "was removed, moved or changed by something else while it was being written"
                self._failure = f"{self.path}: {what}; put that right, then run the same command again"
                return 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
            os.fsync(self._descriptor)
            return written
        except OSError as error:
            self._failure = _sentence(self.path, error)
        # After a failed fsync nobody knows what is on the disk; after a failed write the lines before it can be kept.
        whole = data.rfind(b"\n", 0, written) + 1 if written < len(data) else 0
        try:
            os.ftruncate(self._descriptor, self._end + whole)
            os.fsync(self._descriptor)
        except OSError:
            return 0  # what is half written stays the last line, and is set aside when the journal is opened again
        return whole

    def _is_as_left(self) -> bool:
        """Whether the path still leads to the file that is open, and nobody else wrote to that."""
        status = os.fstat(self._descriptor)
        try:
            return os.path.samestat(status, os.stat(self._absolute)) and status.st_size == self._end
        except OSError:
            return False


@dataclass
class _Line:
    """A line on its way to the disk; `key` is empty where it answers nothing."""

    key: str
    text: bytes
    done: Future[None] = field(default_factory=Future)


class _Index:
    """Where the line of each answered key begins: 16 bytes a key, sorted by the first 64 bits of the key."""

    def __init__(self, hashes: array[int], offsets: array[int], key_at: Callable[[int], str]) -> None:
        # In place where it can be: at a million keys each copy is 8 MB of the peak.
        found = np.frombuffer(hashes, np.uint64)
        order = np.argsort(found)
        self._hashes = found[order]
        del found, hashes[:]
        self._offsets = np.frombuffer(offsets, np.uint64)[order]
        del order, offsets[:]
        self._key_at = key_at
        self._recent: dict[str, int] = {}
        self._lock = threading.Lock()  # of a reader's thread and the writer's
        self._drop_repeated()

    def _drop_repeated(self) -> None:
        """Of several lines with the same key the last one counts; the same hash alone means nothing."""
        same = self._hashes[1:] == self._hashes[:-1]
        keep = np.ones(len(self._hashes), bool)
        seen: dict[str, int] = {}
        for at in np.flatnonzero(np.append(same, False) | np.append(False, same)):
            key = self._key_at(int(self._offsets[at]))
            earlier, later = sorted((at, seen.get(key, at)), key=lambda place: self._offsets[place])
            keep[earlier] = earlier == later
            seen[key] = later
        if not keep.all():
            self._hashes, self._offsets = self._hashes[keep], self._offsets[keep]

    def __len__(self) -> int:
        return len(self._hashes) + len(self._recent)

    def find(self, key: str) -> int | None:
        """The byte at which the line of `key` begins."""
        with self._lock:
            if key in self._recent:
                return self._recent[key]
            at = self._place(key)
            return None if at is None else int(self._offsets[at])

    def put(self, key: str, offset: int) -> None:
        with self._lock:
            at = None if key in self._recent else self._place(key)
            if at is not None:
                self._offsets[at] = offset
                return
            self._recent[key] = offset
            if len(self._recent) >= RECENT:
                self._merge()

    def _place(self, key: str) -> int | None:
        value = np.uint64(_hash(key))
        for at in range(int(np.searchsorted(self._hashes, value)), len(self._hashes)):
            if self._hashes[at] != value:
                break
            if self._key_at(int(self._offsets[at])) == key:
                return at
        return None

    def _merge(self) -> None:
        recent = np.array(sorted((_hash(key), offset) for key, offset in self._recent.items()), np.uint64)
        places = np.searchsorted(self._hashes, recent[:, 0])
        self._hashes = np.insert(self._hashes, places, recent[:, 0])
        self._offsets = np.insert(self._offsets, places, recent[:, 1])
        self._recent = {}


def _hash(key: str) -> int:
    return int(key[:16], 16)


class _Secrets:
    """Strings that must not be written: as they are, or with characters escaped as JSON does, however often."""

    def __init__(self, secrets: Sequence[str]) -> None:
        wanted = [secret for secret in secrets if len(secret) >= SHORTEST_SECRET]
        self._bare = [secret.replace("\\", "") for secret in wanted]
        self._pattern = re.compile("|".join(map(_spelled, wanted)))

    def may_be_in(self, text: str) -> bool:
        """Whether JSON text holds a secret; quick, and true now and then where there is none."""
        if not self._bare:
            return False
        if "\\u" in text:
            return bool(self._pattern.search(text))
        text = text.replace("\\", "")
        return any(secret in text for secret in self._bare)

    def hide(self, value: Any) -> Any:
        """The same value with *** for each secret in its strings and keys."""
        return _mapped(value, lambda part: self._pattern.sub("***", part) if isinstance(part, str) else part)


def _spelled(secret: str) -> str:
    """A regular expression for `secret`: / is also \\/, and k is also \\u006b."""
    return r"\\*".join(rf"(?:{re.escape(char)}|(?<=\\)(?i:u{ord(char):04x}))" for char in secret)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A JSON value with each scalar and each key changed."""
    if isinstance(value, dict):
        return {change(key): _mapped(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(part, change) for part in value]
    return change(value)


def _to_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        finite = _mapped(value, lambda part: None if isinstance(part, float) and not math.isfinite(part) else part)
        return json.dumps(finite, ensure_ascii=False, allow_nan=False)


# --- the file ---------------------------------------------------------------------------------------------------------


def _open_locked(path: Path) -> int:
    """A descriptor for appending, which no other process has; folders and file are made where they are missing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        todo = "make its folder writable, or name another file"
        raise UserError(f"{path}: could not be opened for writing ({error.strerror}); {todo}") from None
    try:
        _lock(path, descriptor, fcntl.LOCK_EX)
        with suppress(OSError):  # a new file's name, too, must outlive a power cut; not every file system can do that
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(path: str | Path, descriptor: int, kind: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise UserError(f"{path}: is no regular file; name another one for the journal")
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{path}: is in use by {_holder(descriptor)}; wait for it or end it, then run the same command again"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: could not be locked ({error.strerror}); use a folder on a local disk") from None


def _holder(descriptor: int) -> str:
    """`process 123`, as Linux lists it; another machine's or container's process has no number here."""
    status = os.fstat(descriptor)
    inode = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5] == inode and int(words[4]) > 0:
                return f"process {words[4]}"
    return "another process"


def _sentence(path: str | Path, error: OSError) -> str:
    return (
        f"{path}: could not be written ({error.strerror}); what is in it is safe: "
        "make room or make it writable, then run the same command again"
    )


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)


def _lines(path: str | Path, end: int) -> Iterator[tuple[int, int, bytes]]:
    """(number from 1, offset, line with its newline) of the first `end` bytes of a file."""
    offset = 0
    with open(path, "rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, 1):
            if offset >= end:
                return
            yield number, offset, line
            offset += len(line)


def _head(line: bytes, parse: bool) -> re.Match[bytes] | None:
    """The head of a line that looks whole, or None. With `parse`, and where it may be two lines in one, it is whole."""
    head = HEAD.match(line)
    if not head or not line.endswith((b"}\n", b"}")) or b"\0" in line:
        return None
    try:
        line.decode()
        if parse or line.find(START, 1) > 0:
            json.loads(line)
    except (ValueError, RecursionError):
        return None
    return head


def _may_be_torn(line: bytes, offset: int) -> bool:
    """Whether a broken line can be what a kill or a power cut leaves; if not, the file may be someone else's."""
    piece = line.rstrip(b"\n")[: len(SAMPLE)]
    if re.match(KEYED, piece + SAMPLE[len(piece) :]):
        return True
    if offset == 0:
        return not line.strip(b"\0")
    try:
        return "\0" in line.decode()
    except UnicodeDecodeError:
        return True


def _decode(line: bytes, place: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{place}: not a whole line of a journal; mend or remove this line") from None


# --- the proof --------------------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What the lines of a journal add up to.

    `failed` has the keys that are not answered yet, by the kind of their last error. The tokens are those of every
    line, failed ones too: what it says was `spent`, else its `usage`. `thought_from` and `teachers` count answers: by
    where their thought came from, and by the model's name and fingerprint.
    """

    lines: int = 0
    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    thought_from: Counter[str] = field(default_factory=Counter)
    teachers: Counter[str] = field(default_factory=Counter)

    def count(self, entry: dict[str, Any]) -> None:
        """One more line, but for `failed`, which later lines decide."""
        self.lines += 1
        prompt, completion = tokens_of(entry)
        self.prompt_tokens += prompt
        self.completion_tokens += completion
        if entry["ok"]:
            reply = _dict(entry["reply"])
            self.answered += 1
            self.thought_from[str(reply.get("think_from") or "none")] += 1
            self.teachers[f"{reply.get('model') or ''} {reply.get('fingerprint') or ''}".strip()] += 1


# By kind: broken, wrong key, answered twice, surplus, wrong id, twice, missing, differs.
Findings = dict[str, list[str]]
Answered = dict[str, tuple[int, str]]  # by key: the number of the line, and the record's id


def verify(path: str, outputs: Sequence[str] = (), summary: str = "") -> tuple[Figures, Findings]:
    """Hold a journal against itself, the rows made of it and the figures told of it; nothing is written.

    A row carries the key of its answer as `journal`, a list of them where several samples made it, and null where the
    record has no answer. In all `outputs` together every record that was answered has one row, and every row an answer;
    the record's further answers (other samples, repairs, earlier prompts) need none of their own.
    Raises UserError if a file can't be read, or if the journal is still being written.
    """
    findings: Findings = defaultdict(list)
    figures, answered = _prove_lines(path, findings)
    rows = _prove_rows(path, outputs, answered, findings) if outputs else None
    if summary:
        _prove_summary(summary, figures, rows, findings)
    return figures, dict(findings)


def _prove_lines(path: str, findings: Findings) -> tuple[Figures, Answered]:
    figures, answered, failed = Figures(), Answered(), dict[str, str]()
    with _unchanging(path) as size:
        for number, offset, line in tqdm(_lines(path, size), unit=" lines", disable=None, leave=False):
            entry, kind, fault = _examine(line)
            if fault:
                mended = "; the next run mends that" * (kind == "broken" and offset + len(line) == size)
                findings[kind].append(f"{path}:{number}: {fault}{mended}")
                figures.lines += 1
                continue
            key = entry["key"]
            if not entry["ok"]:
                failed[key] = str(_dict(entry["error"]).get("kind"))
            elif (first := answered.setdefault(key, (number, entry["id"]))[0]) != number:
                findings["answered twice"].append(f"{path}:{number}: {key} has an answer in line {first} already")
            figures.count(entry)
    figures.answered = len(answered)
    figures.failed = Counter(kind for key, kind in failed.items() if key not in answered)
    return figures, answered


def _examine(line: bytes) -> tuple[dict[str, Any], str, str]:
    """A line as a dict, and the kind of what is wrong with it, and what that is; both empty where nothing is."""
    try:
        entry = STRICT.decode(line.decode()) if _head(line, parse=False) else {}
    except (ValueError, RecursionError):
        entry = {}
    if not entry:
        return {}, "broken", "not a whole line of a journal"
    if not line.endswith(b"\n"):
        return {}, "broken", "no newline at its end"
    key = key_of(*(entry.get(name) for name in ("asked", "id", "sample")))
    if not line.startswith(START + key.encode()) or entry["key"] != key:
        return {}, "wrong key", "its key is not the hash of what was asked"
    if ("reply" if entry["ok"] else "error") not in entry:
        return {}, "broken", "has neither reply nor error"
    return entry, "", ""


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


STRICT = json.JSONDecoder(parse_constant=_no_constant)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def tokens_of(entry: dict[str, Any]) -> tuple[int, int]:
    """Tokens of the question and of the answer: what the line says was `spent`, else by the server's `usage`, which a
    failed outcome keeps beside its error or in it; 0 where the server told none."""
    spent = entry.get("spent")
    if isinstance(spent, list) and len(spent) == 2 and all(type(count) is int for count in spent):
        return spent[0], spent[1]
    error = _dict(entry.get("error"))
    usages = (_dict(_dict(part).get("usage")) for part in (entry.get("reply"), error.get("reply"), error))
    usage = next(filter(None, usages), {})
    prompt, completion = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return prompt if type(prompt) is int else 0, completion if type(completion) is int else 0


def _prove_rows(path: str, outputs: Sequence[str], answered: Answered, findings: Findings) -> Counter[str]:
    """The rows, counted by what they say under `failed`, "" for those that don't."""
    rows: Counter[str] = Counter()
    places: dict[str, str] = {}  # of the row, by the record's id
    for place, row in chain.from_iterable(map(_rows, outputs)):
        rows[str(row.get("failed", ""))] += 1
        for key in _keys(row):
            _, id_ = answered.get(key, (0, ""))
            if key not in answered:
                findings["surplus"].append(f"{place}: no line of {path} answers {key}")
            elif row.get("id") not in (None, "") and record_id(row, place) != id_:
                findings["wrong id"].append(f"{place}: id {row['id']}, but {key} is the answer to id {id_}")
            elif (first := places.setdefault(id_, place)) != place:
                findings["twice"].append(f"{place}: id {id_} has a row already, {first}")
    for line, id_ in answered.values():
        if id_ not in places:
            places[id_] = ""
            findings["missing"].append(f"{path}:{line}: id {id_} has no row in {', '.join(outputs)}")
    return rows


def _rows(output: str) -> Iterator[tuple[str, dict[str, Any]]]:
    empty = os.path.isfile(output) and not os.path.getsize(output)
    return iter(()) if empty else read_rows(output)


def _keys(row: dict[str, Any]) -> list[str]:
    """The keys that a row names; a row without `journal` names one that no line can have."""
    keys = row.get("journal", "(none)")
    return [] if keys is None else [str(key) for key in keys] if isinstance(keys, list) else [str(keys)]


def _prove_summary(summary: str, figures: Figures, rows: Counter[str] | None, findings: Findings) -> None:
    try:
        told = _dict(json.loads(read_text(summary)))
    except ValueError as error:
        raise UserError(f"{summary}: not valid JSON ({error})") from None
    found = {name: getattr(figures, name) for name in FIGURES}
    found |= {name: getattr(figures, name) for name in ("thought_from", "teachers") if name in told}
    if "usd" in told:
        settings = _dict(told.get("settings"))
        prices = (settings.get("usd_in") or 0.0, settings.get("usd_out") or 0.0)
        found["usd"] = round((figures.prompt_tokens * prices[0] + figures.completion_tokens * prices[1]) / 1e6, 4)
    if rows is not None and "records" in told:
        reasons = {name: number for name, number in rows.items() if name not in ("", "not_asked")}
        found |= {"records": rows.total(), "labelled": rows[""], "left": rows["not_asked"], "failed_records": reasons}
    for name, value in found.items():
        if told.get(name) != value:
            shown = dict(value) if isinstance(value, dict) else value
            findings["differs"].append(f"{summary}: {name} is {told.get(name)}, counted again {shown}")


@contextmanager
def _unchanging(path: str) -> Iterator[int]:
    """The size of a journal that nobody writes while the block runs."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{path}: could not be read ({error.strerror})") from None
    try:
        _lock(path, descriptor, fcntl.LOCK_SH)
        yield os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def _print(path: str, figures: Figures, findings: Findings) -> None:
    print(f"{path}: {figures.lines:,} lines")
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in figures.failed.most_common())
    print(f"  answered           {figures.answered:>13,}")
    print(f"  failed             {figures.failed.total():>13,}  {kinds}".rstrip())
    print(f"  prompt tokens      {figures.prompt_tokens:>13,}")
    print(f"  completion tokens  {figures.completion_tokens:>13,}")
    for kind, lines in findings.items():
        for line in lines[:LISTED]:
            print(f"{kind:<14} {line}")
        if len(lines) > LISTED:
            print(f"{kind:<14} … and {len(lines) - LISTED:,} more")
    print(f"{path}: {sum(map(len, findings.values())) or 'nothing'} wrong")


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m chat.journal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "verify",
        help="prove a journal, and that rows and answers correspond one to one",
        description=f"{inspect.getdoc(verify)}\n\n{inspect.getdoc(Figures)}\n\nExit code 1 if anything is wrong.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("journal", help="the journal, e.g. journal.jsonl")
    command.add_argument("outputs", nargs="*", metavar="OUTPUT", help="JSONL whose rows carry a key `journal`")
    command.add_argument("--summary", default="", metavar="FILE.json", help="a summary to compare the figures with")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")
    with one_line_errors():
        figures, findings = verify(arguments.journal, arguments.outputs, arguments.summary)
    _print(arguments.journal, figures, findings)
    sys.exit(1 if any(findings.values()) else 0)


if __name__ == "__main__":
    main()
