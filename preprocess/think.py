"""The one module that knows how a thought and an answer are joined.

Written, always:     <think>\\n{think}\\n</think>\\n\\n{answer}
Read, besides that:  any white space around the tags, `<thinking>` and other capitals, a missing opening
tag (the prompt had it), and HuatuoGPT-o1's `## Thinking` / `## Final Response` headings.

    >>> split("<think>发热三天，先查血常规。\\n</think> \\n 请去发热门诊。")
    Parts(think='发热三天，先查血常规。', answer='请去发热门诊。', fault='')
    >>> join("发热三天，先查血常规。", "请去发热门诊。")
    '<think>\\n发热三天，先查血常规。\\n</think>\\n\\n请去发热门诊。'
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

# LLaMA-Factory's `thought_words`: its reasoning templates recognise exactly these strings.
OPEN, CLOSE = "<think>\n", "\n</think>\n\n"

TAG = re.compile(r"<\s{0,4}(/?)\s{0,4}think(?:ing)?\s{0,4}>", re.IGNORECASE)
_HEADINGS = re.compile(r"\A\s*##\s*Thinking[^\S\n]*\n(.*?)\n##\s*Final Response[^\S\n]*\n(.*)\Z", re.DOTALL)


@dataclass(frozen=True)
class Parts:
    """A completion taken apart. `fault` is empty for one closed thought, or for none at all; else one of

    unclosed    a thought is opened and never closed: `answer` is empty, there is none
    unopened    only the closing tag: what stands before it is the thought
    leading     text before the opening tag, kept in `answer` before the rest
    repeated    further tags in the thought or in the answer, left where they are
    """

    think: str
    answer: str
    fault: str = ""


def has_tag(text: str) -> bool:
    """Whether any opening or closing thought tag occurs in `text`."""
    return TAG.search(text) is not None


def joinable(think: str, answer: str) -> bool:
    """Whether a thought and an answer can be told apart again once they are joined."""
    return not (has_tag(think) or has_tag(answer) or _HEADINGS.match(answer.strip()))


def join(think: str, answer: str) -> str:
    """The one spelling that is written; an empty thought gives the answer alone, without tags.

    Raises ValueError if either part holds a thought tag: the result could not be taken apart again.
    """
    think, answer = think.strip(), answer.strip()
    if not joinable(think, answer):
        raise ValueError("a thought tag inside the thought or the answer")
    return f"{OPEN}{think}{CLOSE}{answer}" if think else answer


def spans(text: str) -> tuple[slice, slice]:
    """Where the thought and the answer stand in `text`, without the white space at their ends."""
    headed = _HEADINGS.match(text)
    if headed and not has_tag(text):
        return _trimmed(text, *headed.span(1)), _trimmed(text, *headed.span(2))
    tags = list(TAG.finditer(text))
    if not tags:
        return slice(0, 0), _trimmed(text, 0, len(text))
    begin = 0 if tags[0][1] else tags[0].end()
    closing = next((tag for tag in tags if tag[1]), None)
    if closing is None:
        return _trimmed(text, begin, len(text)), slice(len(text), len(text))
    return _trimmed(text, begin, closing.start()), _trimmed(text, closing.end(), len(text))


def _trimmed(text: str, begin: int, end: int) -> slice:
    inner = text[begin:end]
    begin += len(inner) - len(inner.lstrip())
    return slice(begin, begin + len(inner.strip()))


def split(text: str) -> Parts:
    """Take a completion apart, whatever the spelling; both parts are stripped and otherwise kept to the character."""
    think, answer = (text[span] for span in spans(text))
    kinds = ["close" if tag[1] else "open" for tag in TAG.finditer(text)]
    if not kinds:
        return Parts(think, answer)
    if "close" not in kinds:
        return Parts(think, "", "unclosed")
    if kinds == ["close"]:
        return Parts(think, answer, "unopened")
    if kinds != ["open", "close"]:
        return Parts(think, answer, "repeated")
    before = text[: TAG.search(text).start()].strip()
    return Parts(think, f"{before}\n\n{answer}".strip(), "leading") if before else Parts(think, answer)


def well_formed(text: str) -> bool:
    """One non-empty thought at the start, closed, then a non-empty answer; no other tag anywhere."""
    parts = split(text)
    return has_tag(text) and not parts.fault and _visible(parts.think) and _visible(parts.answer)


def _visible(text: str) -> bool:
    """Whether anything in it can be seen; zero-width characters alone can't."""
    return any(not char.isspace() and unicodedata.category(char) != "Cf" for char in text)
