"""A model's text as it streams, told apart into thought and answer, wherever the tags are cut.

    >>> splitter = Splitter()
    >>> [piece for text in ("<thi", "nk>\\n先看体温。</", "think>\\n\\n多喝水。") for piece in splitter.feed(text)]
    [Piece(kind='thought', text='先看体温。'), Piece(kind='answer', text='多喝水。')]

What `preprocess.think.split` makes of the whole text is what the pieces join to: white space at the ends of either part
is held back, and a closing tag that was never opened takes back what had come as the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from preprocess.think import TAG

_BEGUN = re.compile(r"<\s{0,4}/?\s{0,4}(?:t|th|thi|thin|think\s{0,4}|thinki|thinkin|thinking\s{0,4})?\Z", re.IGNORECASE)
_SURROGATE = re.compile("[\ud800-\udfff]")


class Piece(NamedTuple):
    """A part of what is shown, in its order: `kind` is one of

    notice      what to do at once; before the model is asked
    thought     of the model's thought
    answer      of its answer
    taken_back  without a text: what came as `answer` so far was the thought
    note        a warning or the disclaimer, after the answer
    """

    kind: str
    text: str


def whole(text: str) -> str:
    """Text without halves of a character that some servers send apart, and that no file takes."""
    return _SURROGATE.sub("\ufffd", text)


class Splitter:
    """Takes the content of a stream piece by piece; `inside` where the prompt is known to have opened the thought."""

    def __init__(self, inside: bool = False) -> None:
        self.raw = ""
        self.unopened = False  # whether the closing tag came alone
        self._held, self._space = "", ""  # what may become a tag; white space that may be the end
        self._assumed, self._opened, self._closed = inside, inside, False
        self._kind = "thought" if inside else "answer"
        self._begun: set[str] = set()  # the kinds that something was shown of
        self._resumed = False  # whether the answer goes on behind the thought

    def feed(self, text: str) -> Iterator[Piece]:
        """What can be shown now that `text` has come."""
        text = whole(text)
        self.raw += text
        self._held += text
        while tag := None if self._closed else TAG.search(self._held):
            before, found, self._held = self._held[: tag.start()], tag[0], self._held[tag.end() :]
            yield from self._emit(before)
            if tag[1]:
                yield from self._close()
            elif not self._opened or (self._assumed and "thought" not in self._begun):
                self._opened, self._assumed, self._kind, self._space = True, False, "thought", ""
            else:
                yield from self._emit(found)
        begun = None if self._closed else _BEGUN.search(self._held)
        ready = self._held[: begun.start()] if begun else self._held
        self._held = self._held[len(ready) :]
        yield from self._emit(ready)

    def end(self) -> Iterator[Piece]:
        """What was held back, once nothing more comes."""
        held, self._held = self._held, ""
        yield from self._emit(held)

    def _close(self) -> Iterator[Piece]:
        self.unopened = self._assumed or not self._opened
        if not self._opened and "answer" in self._begun:
            self._begun.discard("answer")
            yield Piece("taken_back", "")
        self._resumed = "answer" in self._begun
        self._closed, self._kind, self._space = True, "answer", ""

    def _emit(self, text: str) -> Iterator[Piece]:
        text = self._space + text
        solid = text.rstrip()
        self._space = text[len(solid) :]
        if not solid:
            return
        if self._resumed:
            solid, self._resumed = f"\n\n{solid.lstrip()}", False
        elif self._kind not in self._begun:
            solid = solid.lstrip()
        self._begun.add(self._kind)
        yield Piece(self._kind, solid)
