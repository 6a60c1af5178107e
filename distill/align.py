"""Answers that an API gave, with the log-probabilities of their tokens, as distributions over the student's tokens.

    python -m distill.score recipes/healthai_distill/distill.yaml logprobs=data/healthai_distill/answers.logprobs

The label step keeps answers.logprobs (`top_logprobs: 20`) beside labelled.jsonl, of which `make data` makes the rows. A
training row is the answer's whose question stands in its prompt and whose thought and answer are the same.

Teacher and student are compared by bytes. What is common are the response as a whole; or its thought and its answer,
each; or the strings of a JSON answer, each: of these, what stands exactly once in the teacher's text. A position is
known where a token of the teacher's begins and ends with the student's, both within that. All else is masked and
counted: markup that the teacher did not write, tokens that are cut differently, bytes that the server did not tell.
Nothing is guessed. An alternative becomes the one student's token that has its bytes; the mass of one that has none
goes to the tail.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from chat.logprobs import PAD, REPLACEMENT, Positions, Reader, Vocabulary
from chat.logprobs import read_vocabulary as read_folder
from distill.pack import SUFFIX, open_writer, read_vocabulary, slack, to_positions
from distill.score import Row, load_rows, meta_of, read_recipe
from distill.settings import Distill
from eval.tokens import Arguments
from preprocess.records import read_rows, record_id, sha256_file
from preprocess.register import dataset_file
from preprocess.think import spans, split
from recipe import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens whose bytes nobody knows: no UTF-8, and not the same on both sides.
UNKNOWN, UNTOLD = b"\xff", b"\xfe"
LITERAL = re.compile(rb'"(?:[^"\\]|\\.)*"')

Answers = Mapping[tuple[str, str], list[tuple[str, str]]]  # (thought, answer): (question, journal's key) of each


@dataclass(frozen=True)
class Spoken:
    """A teacher's answer: the bytes of each token and its log-probability; of each alternative both."""

    tokens: list[bytes]
    chosen: list[float]
    alternatives: list[list[tuple[bytes, float]]]


def align(settings: Distill) -> Counter[str]:
    """Write the pack of an API's answers, and say what could be used.

    Raises UserError where less than `min_match` of the tokens are common; the pack is then as it was.
    """
    from llamafactory.model import load_config

    reader = Reader(settings.logprobs)
    if settings.k > reader.header["k"]:
        raise UserError(f"{reader.path}: stores k = {reader.header['k']} tokens a position, {settings.k} are asked for")
    arguments = read_recipe(settings.train, settings.overrides)
    rows, tokenizer = load_rows(arguments, settings.limit)
    vocabulary = read_vocabulary(tokenizer)
    teacher = by_id(_teacher(reader, settings, arguments))
    answers = _answers(Path(settings.logprobs).parent, arguments)
    size = load_config(arguments.model).get_text_config().vocab_size
    ids = {data: number for data, number in vocabulary.ids.items() if number < size}
    student = Student(ids, by_id(vocabulary), frozenset(tokenizer.all_special_ids))
    named = (reader.header["model"], sha256_file(reader.path), settings.k, size, settings.logprobs_temperature)
    meta = meta_of(arguments.data, vocabulary, *named)
    counts: Counter[str] = Counter()
    path = Path(settings.pack) / f"api{SUFFIX}"
    new = path.with_name(f".{path.name}.tmp")
    new.unlink(missing_ok=True)
    try:
        with open_writer(new, meta, vocabulary) as writer:
            for row in tqdm(rows, desc="aligning", unit=" rows", disable=None):
                counts["rows"] += 1
                counts["positions"] += len(row.scored)
                if spoken := read_answer(reader, find(row, answers, tokenizer), teacher):
                    writer.append_all([(row.key, align_row(row, spoken, student, settings.k, counts))])
        _report(counts, settings, reader)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    return counts


def _report(counts: Counter[str], settings: Distill, reader: Reader) -> None:
    if not counts["answered"]:
        raise UserError(f"{reader.path}: no row of the data set is one of its answers; was it made of labelled.jsonl?")
    share = counts["known"] / max(counts["common"], 1)
    print(f"{counts['rows']:,} rows, {counts['answered']:,} of them with the teacher's answer")
    print(f"{counts['positions']:,} positions: {counts['known']:,} known, the rest masked")
    print(f"  {counts['common'] - counts['known']:,} where the teacher's tokens are cut differently, or are untold")
    print(f"  {counts['spoken'] - counts['common']:,} in text that is not the teacher's to the byte")
    print(f"  {counts['positions'] - counts['spoken']:,} in rows without an answer")
    print(f"{counts['mapped'] / max(counts['alternatives'], 1):.1%} of the alternatives are tokens of the student")
    if share < settings.min_match:
        raise UserError(
            f"{reader.path}: {share:.1%} of the teacher's tokens match the student's, expected min_match: "
            f"{settings.min_match:.1%}; name a teacher with the student's vocabulary, or its tokenizer (teacher=…)"
        )


def _teacher(reader: Reader, settings: Distill, arguments: Arguments) -> Vocabulary:
    """The tokenizer whose ids a file has; UserError where that is another one, or nobody said which."""
    vocabulary = read_folder(settings.teacher or arguments.model.model_name_or_path)
    kept = Vocabulary(reader.header["tokenizer"], reader.header["fingerprint"])
    if kept.fingerprint and kept.fingerprint != vocabulary.fingerprint:
        raise UserError(f"{reader.path}: was written with {kept}, not with {vocabulary}; name its folder, teacher=…")
    if not kept.fingerprint and not settings.teacher and any((reader[key].ids >= 0).any() for key in reader):
        raise UserError(f"{reader.path}: holds a server's token ids; name the folder of its tokenizer, teacher=…")
    return vocabulary


def by_id(vocabulary: Vocabulary) -> dict[int, bytes]:
    """The bytes of each token that shares them with no other."""
    return {number: data for data, number in vocabulary.ids.items()}


def _answers(folder: Path, arguments: Arguments) -> Answers:
    """Which answer each text of the data set came from."""
    labelled = folder / "labelled.jsonl"
    keys: dict[str, set[str]] = defaultdict(set)
    for place, row in read_rows(str(labelled)):
        keys[record_id(row, place)].add(str(row.get("journal")))
    found: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for name in arguments.data.dataset:
        for place, row in read_rows(str(dataset_file(name, arguments.data.dataset_dir))):
            if isinstance(text := row.get("output"), str):
                parts, question = split(text), str(row.get("instruction", "")).strip()
                journal = keys.get(record_id(row, place), ())
                found[parts.think, parts.answer] += [(question, key) for key in journal]
    return found


def find(row: Row, answers: Answers, tokenizer: PreTrainedTokenizerBase) -> str:
    """The journal's key of a row's answer; "" where there is none, or several could be meant."""
    labels = [row.labels[place] for place in row.scored]
    parts = split(tokenizer.decode(labels, skip_special_tokens=True))
    candidates = answers.get((parts.think, parts.answer), [])
    prompt = tokenizer.decode(row.ids[: row.scored[0]]) if candidates else ""
    keys = {key for question, key in candidates if question in prompt}
    return keys.pop() if len(keys) == 1 else ""


def read_answer(reader: Reader, key: str, teacher: Mapping[int, bytes]) -> Spoken | None:
    """An answer's tokens as bytes, None where the file hasn't got it; UserError where it is damaged.

    A token that the server did not tell exactly is UNTOLD: what has U+FFFD, is empty, or comes after such a one.
    """
    if key not in reader:
        return None
    reader.check(key)
    positions, apart = reader[key], True
    tokens, alternatives = [], []
    for i, chosen in enumerate(positions.chosen.tolist()):
        told = [(_bytes(positions, number, teacher, apart), number) for number in positions.ids[i].tolist()]
        tokens.append(_bytes(positions, chosen, teacher, apart) or UNTOLD)
        values = positions.logprobs[i].tolist()
        alternatives.append([(data, x) for (data, number), x in zip(told, values, strict=True) if number != PAD])
        apart = chosen >= 0 or tokens[-1] != UNTOLD
    return Spoken(tokens, positions.chosen_logprob.tolist(), alternatives)


def _bytes(positions: Positions, number: int, teacher: Mapping[int, bytes], apart: bool) -> bytes:
    if number >= 0:
        return teacher.get(number, b"")
    data = b"" if number == PAD or not apart else positions.bytes_of(number)
    return b"" if REPLACEMENT in data else data


@dataclass(frozen=True)
class Student:
    """The student's tokens by their bytes, where no two share them, and the other way round."""

    ids: Mapping[bytes, int]
    tokens: Mapping[int, bytes]
    special: frozenset[int]


def align_row(row: Row, spoken: Spoken, student: Student, k: int, counts: Counter[str]) -> Positions:
    """A row's positions for the pack, and what they add to `counts`.

    UserError where the teacher's log-probabilities are no distribution.
    """
    labels = [row.labels[place] for place in row.scored]
    ids, logprobs = np.full((len(labels), k), PAD), np.full((len(labels), k), -np.inf)
    tail, chosen = np.zeros(len(labels)), np.full(len(labels), -np.inf)
    common = matches(_response(labels, student), spoken.tokens)
    counts.update(answered=1, spoken=len(labels), common=len(common))
    for i, j in common.items():
        top = likeliest(spoken.alternatives[j], student.ids)[:k] if j is not None else []
        if not top:
            continue
        counts.update(known=1, mapped=len(top), alternatives=min(k, len(spoken.alternatives[j])))
        ids[i, : len(top)], logprobs[i, : len(top)] = zip(*top, strict=True)
        mass = np.exp(logprobs[i]).sum()
        if mass > 1 + slack(k):
            raise UserError(f"row {row.key[:12]}: the teacher's probabilities at token {j} add up to {mass:.3f}, not 1")
        tail[i] = np.log1p(-mass) if mass < 1 else -np.inf
        chosen[i] = spoken.chosen[j]
    return to_positions(ids, logprobs, tail, np.array(labels), chosen)


def _response(labels: Sequence[int], student: Student) -> list[bytes]:
    """The bytes of each token, without the end token and white space behind the response."""
    tokens = [student.tokens.get(label, UNKNOWN) for label in labels]
    while tokens and (labels[len(tokens) - 1] in student.special or not tokens[-1].strip()):
        tokens.pop()
    return tokens


def matches(ours: Sequence[bytes], theirs: Sequence[bytes]) -> dict[int, int | None]:
    """Of our tokens those in the common text, and which of theirs each is: None where they are cut differently.

    >>> matches([b"ab", b"c", b"d"], [b"<", b"ab", b"cd"])
    {0: 1, 1: None, 2: None}
    """
    said = {begin: (j, begin + len(token)) for j, (begin, token) in enumerate(_places(theirs))}
    found: dict[int, int | None] = {}
    for begin, end, shift in common(b"".join(ours), b"".join(theirs)):
        for i, (place, token) in enumerate(_places(ours)):
            if begin <= place and place + len(token) <= end:
                j, stop = said.get(place + shift, (None, 0))
                found[i] = j if stop == place + len(token) + shift else None
    return found


def _places(tokens: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """Where each token begins, and the token."""
    return zip(accumulate(map(len, tokens), initial=0), tokens, strict=False)


def common(text: bytes, said: bytes) -> Iterator[tuple[int, int, int]]:
    """(begin, end, shift): `text[begin:end]` stands in `said`, `shift` bytes further on, and nowhere else there."""
    if (at := _once(text, said, 0)) >= 0:
        yield 0, len(text), at
        return
    string = text.decode("utf-8", "surrogateescape")
    (begin, end), answer = (
        [len(string[:edge].encode("utf-8", "surrogateescape")) for edge in (span.start, span.stop)]
        for span in spans(string)
    )
    literals = [literal.span() for literal in LITERAL.finditer(text, *answer)]
    # A reason that was made the thought stands in the answer, and there the teacher said it.
    own = [(at, at + to - start) for start, to in (answer, *literals) if (at := _once(text[start:to], said, 0)) >= 0]
    after, at = 0, _once(text[begin:end], said, 0)
    if at >= 0 and not any(start < at + end - begin and at < to for start, to in own):
        yield begin, end, at - begin
        after = at + end - begin
    whole = _once(text[slice(*answer)], said, after) >= 0
    for begin, end in [answer] if whole else literals:
        if (at := _once(text[begin:end], said, after)) >= 0:
            yield begin, end, at - begin


def _once(part: bytes, text: bytes, begin: int) -> int:
    """Where `part` stands from `begin` on, if it does so once; else -1."""
    at = text.find(part, begin) if part else -1
    return at if at >= 0 and text.find(part, at + 1) < 0 else -1


def likeliest(alternatives: Sequence[tuple[bytes, float]], ids: Mapping[bytes, int]) -> list[tuple[int, float]]:
    """The alternatives that are tokens of the student, (id, log-probability), the likeliest first."""
    times = Counter(data for data, _ in alternatives)
    top = [(ids[data], x) for data, x in alternatives if times[data] == 1 and data in ids and x > -np.inf]
    return sorted(top, key=lambda pair: -pair[1])
