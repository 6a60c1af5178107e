"""Record, the one currency between readers and writers, and the files that hold rows.

Read: a JSON list, JSONL, or one object with a `data` list. Written: a JSON list or JSONL, whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jsonlines

from recipe import UserError, atomic, read_text

# A medical record or a chain of thought is a few thousand characters; a longer one is a broken file.
MAX_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class Record:
    """One question with its thought and answer; `think` may be empty, `meta` keeps what came along."""

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


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) for every row of a file; the place (`file:line` or `file: item n`) is for error messages.

    Raises UserError where the file can't be read, isn't JSON, or holds something other than objects.
    """
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path}: the file is empty; expected a JSON list or one JSON object a line (JSONL)")
    lines = text.lstrip().split("\n", 2)
    if lines[0][0] == "{" and any(map(_is_object, lines[:2])):
        single = _is_object(text)
        if not (single and isinstance(json.loads(text).get("data"), list)):
            yield from _read_lines(path, text)
            return
    yield from _read_document(path, text)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _read_lines(path: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for number, line in enumerate(text.split("\n"), 1):
            if len(line) > MAX_CHARACTERS:
                raise UserError(
                    f"{path}:{number}: the line has {len(line):,} characters, more than {MAX_CHARACTERS:,}; "
                    "expected one record a line"
                )
            yield line

    try:
        for row in jsonlines.Reader(lines()).iter(type=dict, skip_empty=True):
            yield f"{path}:{number}", _writable(row, f"{path}:{number}")
    except (jsonlines.InvalidLineError, RecursionError) as error:
        reason = getattr(error.__cause__, "msg", None) or "expected a JSON object"
        raise UserError(f"{path}:{number}: not a JSON object ({reason}); mend or remove this line") from None


def _read_document(path: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno})") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be records") from None
    rows = document.get("data") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON list, JSONL, or an object with a `data` list")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise UserError(f"{path}: item {number}: expected a JSON object, got {type(row).__name__}")
        yield f"{path}: item {number}", _writable(row, f"{path}: item {number}")


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


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON with Chinese as it is; a Record becomes an object."""
    return json.dumps(value, ensure_ascii=False, indent=indent, default=asdict)


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic(path) as file:
        jsonlines.Writer(file, dumps=to_json).write_all(rows)
