"""Stored text made uniform without touching what it says: NFC, broken encodings, invisible characters, punctuation.

    >>> normalise("空腹血糖 11.2mmol/L,夜间口渴,要住院吗?")
    ('空腹血糖 11.2mmol/L,夜间口渴，要住院吗?', ('punctuation',))

Digits, units and signs are the same after as before, or the text is left as it was (`reverted`): NFKC, which would
turn 10⁹/L into 109/L, and a change of case (mg is not Mg) have no place here.
"""

from __future__ import annotations

import re
import unicodedata

import ftfy
from ftfy.badness import is_bad

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
HAN_CHAR = re.compile(f"[{HAN}]")
# ftfy without its width, quote, ligature and HTML options: those change good Chinese.
_FTFY = ftfy.TextFixerConfig(
    unescape_html=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    normalization=None,
    explain=False,
)
_SUSPECT = re.compile("[\u0080-\u024f\u0370-\u052f\u2500-\u25ff√∂]")  # without one of these ftfy finds nothing
_BREAK = re.compile("\r\n|[\x0b\x0c\r\x85\u2028\u2029]")  # of a line; Word and Excel write \x0b
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2028\u2029\u2060\ufeff]")
_BETWEEN_HAN = re.compile(f"(?<=[{HAN}])[,;:?!.](?=[{HAN}])")
_WIDE = {",": "，", ";": "；", ":": "：", "?": "？", "!": "！", ".": "。"}
_MEASURE = re.compile(r"[0-9A-Za-zÀ-ɏͰ-Ͽ%‰°℃℉µ²³¹⁰-₎½¼¾⅐-⅞０-９Ａ-Ｚａ-ｚ×÷±+\-−/<>≤≥≈^*·]+")
_NUMBER = re.compile(r"\d+")
_GBK_LEAD = re.compile(f"[{HAN}]{{2}}")


def is_mojibake(text: str) -> bool:
    """Bytes read in the wrong encoding, or already lost (U+FFFD, and 锟斤拷, which is U+FFFD read as GBK)."""
    return "\ufffd" in text or "锟斤拷" in text or bool(_SUSPECT.search(text) and is_bad(text))


def measures(text: str) -> str:
    """Everything in a text that a dose, a value or a unit is written with, in order."""
    return "".join(_MEASURE.findall(unicodedata.normalize("NFC", text)))


def numbers(text: str) -> list[str]:
    """The numbers in a text, in order; 5 and 10 are not 510."""
    return _NUMBER.findall(text)


def read_as_gbk(text: str) -> str | None:
    """UTF-8 text that was read as GBK (鍙戠儹 for 发热), as it should read; None where it was not.

    Chinese that happens to be GBK for valid UTF-8 from the first to the last character is as good as impossible.
    """
    if not _GBK_LEAD.search(text):
        return None
    try:
        read = text.encode("gb18030").decode("utf-8")
    except UnicodeError:
        return None
    return read if re.search(f"[{HAN}]", read) else None


def normalise(text: str) -> tuple[str, tuple[str, ...]]:
    """The text as it is stored, and what was done to it: `encoding`, `nfc`, `control`, `punctuation`, or `reverted`."""
    done = []
    changed = text
    for name, step in STEPS.items():
        after = step(changed)
        if after != changed:
            done.append(name)
            changed = after
    if "encoding" not in done and (measures(changed) != measures(text) or numbers(changed) != numbers(text)):
        return text, ("reverted",)
    return changed, tuple(done)


def _encoding(text: str) -> str:
    if _SUSPECT.search(text) and is_bad(text):
        text = ftfy.fix_text(text, _FTFY)
    return read_as_gbk(text) or text


def _control(text: str) -> str:
    return _CONTROL.sub("", _BREAK.sub("\n", text))


STEPS = {
    "encoding": _encoding,
    "nfc": lambda text: unicodedata.normalize("NFC", text),
    "control": _control,
    "punctuation": lambda text: _BETWEEN_HAN.sub(lambda match: _WIDE[match[0]], text),
}
