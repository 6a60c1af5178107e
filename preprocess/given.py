"""The records that a teacher is asked about: all read once before anything is sent, and shown without what it must not
see (identifiers, unless its server is local; the diagnosis at a patient record's end)."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from preprocess.ask import LOCAL, Label
from preprocess.healthai import cut_diagnosis, describe
from preprocess.privacy import mask_record
from preprocess.records import Record
from preprocess.sources import read_records
from recipe import UserError

PATIENTS = ("healthai", "diagnosis")


class Given(NamedTuple):
    """A record with its place in the files: as it will be written, as the teacher sees it, and why it is not asked
    (`duplicate`, `no_text`), if it isn't."""

    place: str
    record: Record
    shown: Record
    skip: str


def is_local(settings: Label) -> bool:
    """Whether records stay on this machine, or the recipe says that they may leave it as they are."""
    return settings.local or bool(settings.serve) or all(urlsplit(url).hostname in LOCAL for url in settings.urls)


def shown(record: Record, local: bool) -> tuple[Record, Record]:
    """The record as it is written and as it is shown, both without identifiers where the server is not local."""
    if options := record.meta.get("options"):
        record = replace(record, question="\n".join((record.question, *_lines(options, record.id))))
    record = record if local else mask_record(record)[0]
    if record.source not in PATIENTS:
        return record, record
    question = cut_diagnosis(record.question)[0].strip()
    return record, replace(record, question=question, meta=record.meta | {"fields": describe(question)[0]})


def _lines(options: Any, id_: str) -> list[str]:
    """A choice's options as lines, from an object by letter, or a list."""
    if isinstance(options, list):
        options = dict(zip("ABCDEFGHIJ", options, strict=False))
    if not isinstance(options, dict) or not all(isinstance(text, str) for text in options.values()):
        raise UserError(f"record {id_}: options: expected an object of texts by letter, or a list of texts")
    return [f"{letter}. {text.strip()}" for letter, text in options.items()]


def inputs(settings: Label) -> Iterator[tuple[str, Record]]:
    """The records as they stand in the files, with their places; `limit` of them, if that is set."""
    kind = "" if settings.source == "auto" else settings.source
    read = (found for path in settings.inputs for found in read_records(path, kind))
    return islice(read, settings.limit or None)


def survey(settings: Label) -> tuple[int, frozenset[int]]:
    """The number of records, and the hashes of ids that come more than once (8 bytes a record, whatever there is).

    Raises UserError for a row that can't be read, a record that this `kind` is not for, two texts under one id.
    """
    hashes = array("Q")
    for place, record in tqdm(inputs(settings), desc="reading", unit=" records", disable=None, leave=False):
        if (record.source in PATIENTS) != (settings.kind == "diagnosis"):
            what = "a patient record" if record.source in PATIENTS else f"no patient record ({record.source})"
            raise UserError(f"{place}: {what}; kind: {settings.kind} is not for it")
        hashes.append(_hash(record.id))
    found = np.sort(np.frombuffer(hashes, np.uint64)) if hashes else np.empty(0, np.uint64)
    repeated = frozenset(np.unique(found[1:][found[1:] == found[:-1]]).tolist())
    if repeated:
        for _ in given(settings, repeated):
            pass
    return len(hashes), repeated


def given(settings: Label, repeated: frozenset[int]) -> Iterator[Given]:
    """Each record, in order; `repeated` is what survey has found."""
    local = is_local(settings)
    seen: dict[str, tuple[str, str]] = {}  # the question and the place of an id that comes again
    for place, record in inputs(settings):
        skip = "" if record.question.strip() else "no_text"
        if _hash(record.id) in repeated:
            first = seen.setdefault(record.id, (record.question, place))
            if first[0] != record.question:
                what = f"id {record.id!r} has another text at {first[1]}"
                raise UserError(f"{place}: {what}; give each record an id of its own")
            skip = skip or "duplicate" * (first[1] != place)
        yield Given(place, *shown(record, local), skip)


def _hash(id_: str) -> int:
    return int.from_bytes(blake2b(id_.encode(), digest_size=8).digest())
