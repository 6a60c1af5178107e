"""Lengths of rows by the student's own tokenizer, where its folder is at hand; in characters where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe import UserError

ROOM = 32  # tokens for what a template writes around question and answer; `make check` counts them exactly


class Lengths:
    """Rows as tokens; `tokenizer` is a model's folder, and None where there is none."""

    def __init__(self, tokenizer: str, cutoff_len: int) -> None:
        self.cutoff_len = cutoff_len
        self.tokenizer = _load(tokenizer) if tokenizer and Path(tokenizer).expanduser().is_dir() else None

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, 0 where no tokenizer is at hand."""
        if self.tokenizer is None:
            return [0] * len(texts)
        return [len(code) for code in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def is_too_long(self, tokens: int) -> bool:
        """Whether training would cut the row; without a tokenizer nothing is known, and nothing too long."""
        return bool(self.tokenizer and self.cutoff_len) and tokens + ROOM > self.cutoff_len


def _load(folder: str) -> Any:
    from tokenizers import Tokenizer

    path = Path(folder).expanduser() / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"tokenizer: {path}: {error}; name a model's folder, or leave the key out") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
