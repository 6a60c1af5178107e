"""Text that others wrote, made safe to show: in a page, a table, a terminal."""

from __future__ import annotations

import html
import re

# Control characters (with them ANSI escapes), what turns or cuts lines, lone surrogates, the invisible tag alphabet.
_UNSEEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """Text with its control characters spelled out; line feeds and tabs stay.

    >>> visible("头痛\\x1b[31m\\u202e")
    '头痛⟨U+001B⟩[31m⟨U+202E⟩'
    """
    return _UNSEEN.sub(lambda char: f"⟨U+{ord(char[0]):04X}⟩", text.replace("\r\n", "\n"))


def inert(text: str) -> str:
    """Text as HTML that shows it to the character and does nothing.

    >>> inert("<b>头痛</b>\\x1b[31m")
    '&lt;b&gt;头痛&lt;/b&gt;⟨U+001B⟩[31m'
    """
    return html.escape(visible(text))
