"""How much each response token counts, by what it is part of.

thought  between the thought's tags
json     of the answer, the string values of a JSON object in it: `{"diseases": ["肺炎"]}` has one, 肺炎
answer   the rest of the answer
markup   the tags, the white space around them, the end token and what follows it

A token of a value and something else (`"ac`, of "acute") counts as the value. The loss is Σ weight · loss / Σ weight
over all tokens of a step, so that the four shift emphasis alone: twice all of them is the same training.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from distill.pack import IGNORED
from eval.tokens import segments
from preprocess.think import spans
from recipe import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"(?P<colon>\s*:)?', re.DOTALL)


@dataclass(frozen=True)
class Weights:
    """The weight of a token by its segment; UserError for what is negative, not finite, or nothing at all."""

    thought: float = 1.0
    answer: float = 1.0
    markup: float = 1.0
    json: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"weight_{name}: expected a number of 0 or more, got {value}")
        if not any(astuple(self)):
            raise UserError("weight_thought, weight_answer, weight_markup, weight_json: all 0, nothing would be learnt")

    def are_equal(self) -> bool:
        return len(set(astuple(self))) == 1


def json_values(text: str) -> Iterator[tuple[int, int]]:
    """Where the string values of the JSON objects in `text` stand, without their quotes; keys are no values.

    >>> text = 'So: {"reason": "咳嗽", "diseases": ["肺炎"]}'
    >>> [text[begin:end] for begin, end in json_values(text)]
    ['咳嗽', '肺炎']
    """
    at = 0
    while (begin := text.find("{", at)) >= 0:
        try:
            _, end = json.JSONDecoder(strict=False).raw_decode(text, begin)
        except (ValueError, RecursionError):
            at = begin + 1
            continue
        yield from (string.span(1) for string in _STRING.finditer(text, begin, end) if not string["colon"])
        at = end


def token_weights(
    input_ids: Sequence[int],
    labels: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    stops: Collection[int],
    weights: Weights,
) -> np.ndarray:
    """float32 (n,): the weight of each label that is not masked, in order; each turn is taken for itself.

    `stops` are the ids of the template's end tokens.
    """
    if weights.are_equal():
        return np.ones(sum(label != IGNORED for label in labels), np.float32)
    found: list[float] = []
    for scored, turn in groupby(zip(input_ids, labels, strict=True), key=lambda pair: pair[1] != IGNORED):
        if scored:
            found += _turn([token for token, _ in turn], tokenizer, stops, weights)
    return np.array(found, np.float32)


def _turn(
    ids: list[int], tokenizer: PreTrainedTokenizerBase, stops: Collection[int], weights: Weights
) -> Iterator[float]:
    end = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    text, offsets = _offsets(ids[:end], tokenizer)
    answer = spans(text)[1]
    values = [(answer.start + begin, answer.start + end) for begin, end in json_values(text[answer])]
    by_name = {"think": weights.thought, "answer": weights.answer, "markup": weights.markup}
    for name, (begin, stop) in zip(segments(text, offsets), offsets, strict=True):
        of_value = begin >= answer.start and any(begin < last and first < stop for first, last in values)
        yield weights.json if of_value else by_name[name]
    yield from [weights.markup] * (len(ids) - end)


def _offsets(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """The text of tokens and the characters of each; tokens that share a character (一 may be three) all have it."""
    from tokenizers.decoders import DecodeStream

    stream, text, open_, offsets = DecodeStream(skip_special_tokens=False), "", 0, []
    for token in ids:
        piece = stream.step(tokenizer.backend_tokenizer, token)
        open_ += 1
        if piece is not None:
            offsets += [(len(text), len(text) + len(piece))] * open_
            text, open_ = text + piece, 0
    return text, offsets + [(len(text), len(text))] * open_
