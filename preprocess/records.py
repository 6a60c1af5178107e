"""Record, the one currency between readers and writers, and the files that hold rows.

Read: a JSON list, JSONL, or one object with a `data` list. Written: a JSON list or JSONL, whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import jsonlines

from preprocess.document import DECODER, MAX_CHARACTERS, items, reason
from recipe import UserError, atomic

THOUGHT_KEYS = ("think", "reasoning_content", "reasoning")
_WRAPPER = re.compile(r'"data"\s*:\s*\[')


@dataclass(frozen=True)
class Record:
    """One question with its thought and answer; `think` may be empty, `meta` keeps what came along.

    What a reader found odd stands in `meta["oddities"]`, a list of names; the key is absent where there is nothing.
    """

    id: str
    source: str
    system: str
    question: str
    think: str
    answer: str
    meta: dict[str, Any] = field(default_factory=dict)


def content_id(*texts: str) -> str:
    """A stable id for a row that came without one: 16 hex digits of the SHA-256 of its texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def record_id(row: dict[str, Any], place: str, *texts: str) -> str:
    """The row's own `id` as a string (17, 17.0 and "17" are "17"), the content's where there is none.

    The value as it came stays in `meta["id"]`. Whether two records share an id is not asked here.
    """
    value = row.get("id")
    if isinstance(value, float) and value.is_integer():  # pandas writes 17 so, once a column had a gap
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise UserError(f"{place}: id must be a string or a whole number, got {type(value).__name__}")
    return ("" if value is None else str(value).strip()) or content_id(*texts)


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) for every row of a file; the place (`file:line` or `file: item n`) is for error messages.

    The file is read no further than rows are asked for, and never held whole, whichever the container.
    Raises UserError where it can't be read, isn't JSON, or holds something other than objects.
    """
    with open_text(path) as file:
        read = _lines if _is_jsonl(path, file) else items
        file.seek(0)
        for place, row in read(path, file):
            yield place, _writable(row, place)


@contextmanager
def open_text(path: str) -> Iterator[TextIO]:
    """A UTF-8 file (a byte order mark is skipped), or a UserError that says why not."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise UserError(f"{path}: is a folder or no regular file; name a file")
        file = open(path, encoding="utf-8-sig")  # noqa: SIM115  (closed below)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read it") from None
    except ValueError as error:
        raise UserError(f"{path!r}: no file name ({error})") from None
    with file:
        try:
            yield file
        except UnicodeDecodeError as error:
            byte = file.buffer.tell() - len(error.object) + error.start
            raise UserError(
                f"{path}: byte {byte} is not UTF-8; convert it first, e.g. iconv -f GB18030 -t UTF-8"
            ) from None


def _is_jsonl(path: str, file: TextIO) -> bool:
    """Whether the first line is a JSON object, or at least the second one is; else the file is one JSON document."""
    lines = iter(lambda: file.readline(MAX_CHARACTERS), "")
    first = next((line.strip() for line in lines if line.strip()), "")
    if not first:
        raise UserError(f"{path}: the file is empty; expected a JSON list or one JSON object a line (JSONL)")
    if first[0] != "{":
        return False
    if len(first) >= MAX_CHARACTERS - 1:  # more of a line than a record has
        return not _WRAPPER.search(first)
    row = _as_object(first)
    if row is None:
        return first[-1] != "[" and _as_object(next(lines, "")) is not None
    return not (isinstance(row.get("data"), list) and not any(map(str.strip, lines)))


def _as_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _lines(path: str, file: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(iter(lambda: file.readline(MAX_CHARACTERS + 1), ""), 1):
        place = f"{path}:{number}"
        if len(line) > MAX_CHARACTERS and line[-1] != "\n":
            length = len(line) + sum(map(len, _rest_of_line(file)))
            raise UserError(
                f"{place}: the line has {length:,} characters, more than {MAX_CHARACTERS:,}; expected one record a line"
            )
        if line.strip():
            yield place, _decode(line, place)


def _rest_of_line(file: TextIO) -> Iterator[str]:
    part = "…"
    while part and part[-1] != "\n":
        part = file.readline(MAX_CHARACTERS)
        yield part.removesuffix("\n")


def _decode(line: str, place: str) -> dict[str, Any]:
    try:
        row = DECODER.decode(line)
        wrong = "" if isinstance(row, dict) else f"got {type(row).__name__}"
    except (ValueError, RecursionError) as error:
        wrong = reason(error)
    if wrong:
        raise UserError(f"{place}: not a JSON object ({wrong}); mend or remove this line")
    return row


def _writable(row: dict[str, Any], place: str) -> dict[str, Any]:
    """The row itself, if it can be written again: no lone surrogate, no NaN, no endless nesting."""
    try:
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{place}: holds a lone surrogate; remove it") from None
    except (ValueError, RecursionError):
        raise UserError(f"{place}: holds NaN, Infinity or too deep a nesting; expected plain JSON values") from None
    return row


def text_field(row: dict[str, Any], key: str, place: str) -> str:
    """The string under `key`, stripped at its ends; UserError if it is missing, no string, or not writable as UTF-8."""
    if key not in row:
        raise UserError(
            f"{place}: key {key!r} is missing; the row has {', '.join(map(repr, list(row)[:12])) or 'no keys'}"
        )
    value = row[key]
    if not isinstance(value, str):
        raise UserError(f"{place}: {key} must be a string, got {type(value).__name__}")
    if len(value) > MAX_CHARACTERS:
        raise UserError(f"{place}: {key} has {len(value):,} characters, more than {MAX_CHARACTERS:,}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{place}: {key} holds a lone surrogate at character {error.start}; remove it") from None
    return value.strip()


def optional_field(row: dict[str, Any], key: str, place: str) -> str:
    """The same, or an empty string where the key is missing or null."""
    return "" if row.get(key) is None else text_field(row, key, place)


def own_thought(row: dict[str, Any], place: str) -> tuple[str, str]:
    """The thought that stands under a key of its own, as APIs and teachers give it, and that key; or twice nothing."""
    thoughts = ((optional_field(row, key, place), key) for key in THOUGHT_KEYS)
    return next(((thought, key) for thought, key in thoughts if thought), ("", ""))


def rest(row: dict[str, Any], *used: str, oddities: Iterable[str] = ()) -> dict[str, Any]:
    """The `meta` of a row: all that did not become a field of the Record, and what is odd about it, if anything."""
    odd = list(oddities)
    return {key: value for key, value in row.items() if key not in used} | ({"oddities": odd} if odd else {})


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON with Chinese as it is; a Record becomes an object."""
    return json.dumps(value, ensure_ascii=False, indent=indent, default=vars)


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic(path) as file:
        jsonlines.Writer(file, dumps=to_json).write_all(rows)
