"""A JSON list, or the `data` list of one JSON object, read an item at a time: memory does not grow with the file.

    {"metadata": {"teacher_model": "…"},       skipped
     "data": [{"id": 0, "diseases": "…"},      item 1
              {"id": 1, "diseases": "…"}]}     item 2

ijson reads such files, too, but it turns a lone surrogate into `?` and names no line for an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from typing import Any, TextIO

from recipe import UserError

# A medical record or a chain of thought is a few thousand characters; a longer one is a broken file.
MAX_CHARACTERS = 4_000_000
STRETCH = 1 << 18  # characters read at once

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"[-+.eE0-9]*")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object with these keys; of two equal ones json keeps the last, and a text would be lost unseen."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_once)


def reason(error: Exception) -> str:
    """What json has against a text, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]


def items(path: str, file: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, item), the place as `file: item n`; UserError where the document is broken, with its line."""
    text = Document(path, file)
    there = False
    if text.peek() == "[":
        there = yield from _elements(text)
    elif text.peek() == "{":
        there = yield from _data(text)
    else:
        text.value(path)
    if text.peek():
        raise text.error("Extra data")
    if not there:
        raise UserError(f"{path}: expected a JSON list, JSONL, or an object with a `data` list")


def _data(text: Document) -> Generator[tuple[str, dict[str, Any]], None, bool]:
    """The items of the `data` list of an object; returns whether there is one."""
    there = False
    for key in _keys(text):
        if key != "data" or text.peek() != "[":
            text.value(f"{text.path}: {key!r}")
        elif there:
            raise text.error("key 'data' is there twice")
        else:
            there = yield from _elements(text)
    return there


def _keys(text: Document) -> Iterator[str]:
    """The keys of the object that comes next; who asks for one reads its value before the next."""
    text.take("{")
    more = text.peek() != "}"
    while more:
        if text.peek() != '"':
            raise text.error("Expecting property name enclosed in double quotes")
        key = text.value(f"{text.path}: a key")
        text.take(":")
        yield key
        more = text.peek() != "}"
        if more:
            text.take(",")
    text.take("}")


def _elements(text: Document) -> Generator[tuple[str, dict[str, Any]], None, bool]:
    """The items of the list that comes next; returns True, there is one."""
    text.take("[")
    more, number = text.peek() != "]", 0
    while more:
        number += 1
        place = f"{text.path}: item {number}"
        item = text.value(place)
        if not isinstance(item, dict):
            raise UserError(f"{place}: expected a JSON object, got {type(item).__name__}")
        yield place, item
        more = text.peek() != "]"
        if more:
            text.take(",")
    text.take("]")
    return True


class Document:
    """A JSON text, of which only the stretch around the reading position is held; it knows its line and column."""

    def __init__(self, path: str, file: TextIO) -> None:
        self.path, self.file = path, file
        self.text, self.at = "", 0
        self.line, self.column = 1, 1  # of the first character held

    def peek(self) -> str:
        """The next character that is no white space, an empty string at the end."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def take(self, char: str) -> None:
        """Step over `char`, which must come next."""
        if self.peek() != char:
            raise self.error(f"Expecting {char!r} delimiter")
        self.at += 1

    def value(self, place: str) -> Any:
        """The value that begins here. Text is read until it is whole, or longer than any record."""
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if len(self.text) - self.at <= MAX_CHARACTERS and self._more():
                    continue
                cut_off = error.msg.startswith("Unterminated") or error.pos > len(self.text) - 8
                if not cut_off or len(self.text) - self.at <= MAX_CHARACTERS:
                    raise self.error(error.msg, error.pos) from None
                end = len(self.text)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}: not valid JSON ({reason(error)})") from None
            if end - self.at > MAX_CHARACTERS:
                raise UserError(f"{place}: more than {MAX_CHARACTERS:,} characters; expected one record an item")
            if _NUMBER.match(self.text, end).end() < len(self.text) or not self._more():  # cut off, 12.5 is read as 12
                self.at = end
                return value

    def error(self, message: str, at: int | None = None) -> UserError:
        line, column = self._place(self.at if at is None else at)
        return UserError(f"{self.path}:{line}: not valid JSON ({message}, column {column})")

    def _place(self, at: int) -> tuple[int, int]:
        newline = self.text.rfind("\n", 0, at)
        column = self.column + at if newline < 0 else at - newline
        return self.line + self.text.count("\n", 0, at), column

    def _more(self) -> bool:
        """Read at least as much as is ahead and forget what is behind; False, and nothing changed, at the end."""
        more = self.file.read(max(STRETCH, len(self.text) - self.at))
        if more:
            self.line, self.column = self._place(self.at)
            self.text, self.at = self.text[self.at :] + more, 0
        return bool(more)
