"""The competition's records to the file that is handed in: every record once, in order.

    python -m eval.submission recipes/healthai/predict.yaml
    python -m eval.submission check reports/healthai/predict_output.jsonl data/healthai/raw

A record in, with whatever other keys, and its line out, in the official example's order and form (a backslash and an n
for a line break in `reason`), the record's own text to the character:

    {"id": 17, "feature_content": "性别: 女\\n…"}
    {"id":17,"reason":"1. 夜间咳嗽3周；\\\\n2. 夜间加重。","diseases":"咳嗽变异性哮喘","feature_content":"性别: 女\\n…"}

The model is asked as it was trained: `preprocess.steps` makes the question by the same data.yaml. Replies go into
submission-<arm>.journal.jsonl as they come; kill this at any instant, and the same command goes on. A reply without a
diagnosis that can be read is asked for again, `tries` times in all. What then has none is an empty `reason` and
`diseases` in the file and a line in predict_failed.jsonl, with the last reply as it came: nothing is made up for it.
"""

from __future__ import annotations

import argparse
import asyncio
import codecs
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from chat.ask import ask_missing, key_of
from chat.client import Client, Question, Settings
from chat.journal import Journal
from chat.reading import FAULTS
from eval.arms import Arm, weights_of
from eval.predict import (
    NO_ANSWER,
    Predict,
    arms_of,
    base_of,
    check_engine,
    model_of,
    of_dataset,
    questions,
    server_of,
    url_of,
)
from preprocess.ask import FORMATS, KEYS, LOCAL, SCHEMA, read
from preprocess.data import Data
from preprocess.diagnosis import to_text
from preprocess.healthai import to_record
from preprocess.label import read_choice
from preprocess.records import read_rows, to_json
from preprocess.steps import Item, prepare, to_row
from recipe import UserError, atomic, load, main, one_line_errors, staged

STEPS = ("*camp_data_step_2_without_answer.jsonl", "*camp_data_step_1_without_answer.jsonl")
FORM = ("id", "reason", "diseases", "feature_content")
AGAIN = 0.7  # the temperature of a second try where the first was greedy, which would say the same
FIELDS: dict[str, dict[str, Any]] = {"json_schema": SCHEMA, "json_object": {"type": "json_object"}}
_BREAK = re.compile(r"\s*[\r\n\x0b\x0c\x85\u2028\u2029]\s*")


# --- what is asked ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """A record as it came, and the messages that ask about it; none where there is nothing to ask."""

    place: str
    id: Any
    feature_content: str
    messages: list[dict[str, str]] = field(default_factory=list)


def files_of(records: str | list[str]) -> list[str]:
    """The files of `records`; a folder stands for step 2's in it, or step 1's where it has none."""
    named = [records] if isinstance(records, str) else records
    if not named or not all(named):
        raise UserError("records: name the competition's records, a file, a folder or a list, as in records=data/raw")
    return [file for path in named for file in (_files_in(path) if Path(path).is_dir() else [path])]


def _files_in(folder: str) -> list[str]:
    for pattern in STEPS:
        if found := sorted(map(str, Path(folder).glob(pattern))):
            return found
    raise UserError(f"records: {folder} has no {' and no '.join(STEPS)}; put the competition's file there, or name it")


def rows_of(records: str | list[str], limit: int = 0) -> list[tuple[str, dict[str, Any]]]:
    """The first `limit` (0: all) records with their places; UserError for one without id or text."""
    rows = list(islice((row for file in files_of(records) for row in read_rows(file)), limit or None))
    for place, row in rows:
        if row.get("id") is None:
            raise UserError(f"{place}: key 'id' is missing; expected a record of the competition (id, feature_content)")
        to_record(row, place)
    return rows


def as_trained(row: dict[str, Any], place: str, data: Data) -> list[dict[str, str]]:
    """The messages that ask about a record, as in the training rows of `data`; [] for a record without text."""
    record = prepare(Item(place, to_record(row, place)), data).record
    return of_dataset(to_row(record), place)["messages"] if record.question else []


class Asker:
    """Turns a record and the number of the try into the question, the same at every start."""

    def __init__(self, settings: Predict, model: str, weights: str, form: str) -> None:
        self.settings, self.model, self.weights, self.form = settings, model, weights, form

    def question(self, one: Given, attempt: int) -> Question:
        settings = self.settings
        if attempt:
            settings = replace(settings, temperature=settings.temperature or AGAIN, seed=settings.seed + attempt)
        (question,) = questions([{"id": str(one.id), "messages": one.messages}], settings, self.model, self.weights)
        forced = {"response_format": FIELDS[self.form]} if self.form in FIELDS else {}
        return replace(question, sample=attempt, asked=question.asked | forced)


# --- what came of it --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What the journal has of a record: its labels, else the last fault and reply; `next` is still to be asked."""

    labels: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    raw: str = ""
    next: Question | None = None


def read_labels(reply: dict[str, Any]) -> tuple[dict[str, str], str]:
    """`reason` and `diseases` of a reply in the official form, or {} and why there are none (`chat.reading.FAULTS`)."""
    reading = read(reply, "diagnosis")
    if reading.value is None:
        return {}, reading.fault
    reason, diseases = (to_text(reading.value[key]) or "" for key in KEYS)
    labels = {"reason": _BREAK.sub(r"\\n", reason), "diseases": re.sub("；{2,}", "；", _BREAK.sub("；", diseases))}
    if not all(map(_is_text, labels.values())):
        return {}, "missing_key"
    return labels, ""


def _is_text(text: str) -> bool:
    """Whether a text says something and can be written: some servers send half a character."""
    return any(map(str.isalnum, text)) and not any("\ud800" <= char <= "\udfff" for char in text)


def look_up(one: Given, asker: Asker, journal: Journal) -> Outcome:
    """What is known of a record by now."""
    if not one.messages:
        return Outcome(fault="no_text")
    fault = raw = ""
    for attempt in range(asker.settings.tries):
        question = asker.question(one, attempt)
        if (key := key_of(question)) not in journal:
            return Outcome(fault=fault, raw=raw, next=question)
        reply = journal.get(key)["reply"]
        labels, fault = read_labels(reply)
        if labels:
            return Outcome(labels)
        raw = reply.get("raw", reply["text"])
    return Outcome(fault=fault, raw=raw)


# --- the run ----------------------------------------------------------------------------------------------------------


def submit(settings: Predict) -> None:
    """Ask what the journal lacks, write predict_output.jsonl and predict_failed.jsonl, and prove the first.

    Raises UserError where a record has no answer, after everything is written, or where the run ended early.
    """
    _check_settings(settings)
    arm = _arm_of(settings)
    url, weights = url_of(arm, settings), weights_of(arm, base_of(settings))
    data = load(Data, settings.data)
    leaves = bool(url) and urlsplit(url).hostname not in LOCAL  # then without identifiers
    data = replace(data, privacy="mask" if leaves or data.privacy == "mask" else "none")
    given = [
        Given(place, row["id"], row["feature_content"], as_trained(row, place, data))
        for place, row in rows_of(settings.records, settings.records_limit)
    ]
    out, model = Path(settings.output), model_of(arm, settings, weights)
    with Journal(out / f"submission-{arm.name}.journal.jsonl") as journal:
        chosen = (
            out / f"submission-{arm.name}.format.json"
        )  # what `auto` stands for, so that the questions stay the same
        asker = Asker(settings, model, weights, _known_form(settings, url, chosen, model))
        if asker.form == "auto" or any(look_up(one, asker, journal).next for one in given):
            with server_of(arm, settings, model, [vars(one) for one in given if one.messages]) as (at, key):
                if asker.form == "auto":
                    asker.form = choose_form(at, key, chosen)
                _ask(given, asker, journal, at, key, f"{arm.name} diagnoses")
        outcomes = [look_up(one, asker, journal) for one in given]
        failures = {entry["key"]: entry["error"] for entry in journal if not entry["ok"]}
    failed = _write(out, given, outcomes, failures)
    _conclude(out, given, failed)


def _check_settings(settings: Predict) -> None:
    check_engine(settings)
    if not settings.data:
        raise UserError("data: name the data.yaml that the model was trained by, as in data=recipes/healthai/data.yaml")
    if settings.response_format not in FORMATS:
        raise UserError(f"response_format: unknown {settings.response_format!r}; expected one of {', '.join(FORMATS)}")
    if settings.tries < 1 or settings.records_limit < 0 or settings.max_tokens < 1 or settings.temperature < 0:
        raise UserError("expected tries >= 1, records_limit >= 0 (0: all), max_tokens >= 1 and temperature >= 0")


def _arm_of(settings: Predict) -> Arm:
    arms = {arm.name: arm for arm in arms_of(settings)}
    if settings.arm and settings.arm not in arms:
        raise UserError(f"arm: unknown {settings.arm!r}; expected one of {', '.join(arms)}")
    return arms[settings.arm] if settings.arm else list(arms.values())[-1]


def _known_form(settings: Predict, url: str, chosen: Path, model: str) -> str:
    """The form that is asked for, "auto" where the server must tell; LLaMA-Factory's takes no notice of it."""
    if settings.response_format != "auto":
        return settings.response_format
    if not url:
        return "none"
    return read_choice(chosen, model) if chosen.exists() else "auto"


def choose_form(at: Settings, key: str, chosen: Path) -> str:
    """`json_schema` where the server holds a reply to it, else `none`; asked once and kept in the file `chosen`."""

    async def ask() -> bool:
        async with Client(at, key) as client:
            return await client.supports_schema(at.model)

    form = "json_schema" if asyncio.run(ask()) else "none"
    with atomic(chosen) as file:
        file.write(to_json({"model": at.model, "response_format": form}) + "\n")
    return form


def _ask(given: list[Given], asker: Asker, journal: Journal, at: Settings, key: str, title: str) -> None:
    """Every first try that is missing, then the second ones that the replies call for, and so on."""
    for attempt in range(asker.settings.tries):
        asked = (look_up(one, asker, journal).next for one in given)
        due = {key_of(question): question for question in asked if question and question.sample == attempt}
        ask_missing(at, key, journal, due.values(), title + f", try {attempt + 1}" * bool(attempt))


def _write(
    out: Path, given: list[Given], outcomes: list[Outcome], failures: dict[str, dict[str, Any]]
) -> dict[int, str]:
    """Both files, all or none; by line, why a record has no answer."""
    failed: dict[int, str] = {}
    with staged([out / "predict_output.jsonl", out / "predict_failed.jsonl"]) as (output, rest):
        for number, (one, outcome) in enumerate(zip(given, outcomes, strict=True), 1):
            labels = outcome.labels or dict.fromkeys(KEYS, "")
            values = (one.id, labels["reason"], labels["diseases"], one.feature_content)
            row = dict(zip(FORM, values, strict=True))
            output.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
            if not outcome.labels:
                told = _failed(one, outcome, failures)
                failed[number] = told["failed"]
                rest.write(to_json(told) + "\n")
    return failed


def _failed(one: Given, outcome: Outcome, failures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    told: dict[str, Any] = {"place": one.place, "id": one.id, "failed": outcome.fault, "what": "", "raw": outcome.raw}
    if outcome.next:
        error = failures.get(key_of(outcome.next), NO_ANSWER)
        told |= {"failed": error["kind"], "what": error["message"], "raw": error.get("raw") or outcome.raw}
    return told | {"raw": told["raw"].encode(errors="replace").decode()}


def _conclude(out: Path, given: list[Given], failed: dict[int, str]) -> None:
    """Prove what was written, print its counts; UserError where something has no answer."""
    path = out / "predict_output.jsonl"
    empty = check_file(str(path), ((one.place, vars(one)) for one in given))
    if empty != list(failed):
        raise UserError(f"{path}: lines {empty} are empty, {list(failed)} have no answer; remove it and run again")
    reasons = ", ".join(f"{name} {number}" for name, number in sorted(Counter(failed.values()).items()))
    print(_counts(path, len(given), len(failed), reasons))
    if failed:
        unread = sum(reason in FAULTS for reason in failed.values())
        unasked = sum(reason == "no_text" for reason in failed.values())
        what = f"{unread} replies not read, {len(failed) - unread - unasked} not had, {unasked} without a text"
        todo = "the same command asks again for what it had not, a higher tries=… for what it could not read"
        raise UserError(f"{len(failed)} records have no answer ({what}), see {out}/predict_failed.jsonl; {todo}")


def _counts(path: str | Path, rows: int, failed: int, reasons: str = "") -> str:
    listed = f" ({reasons})" if reasons else ""
    return f"{path}: {rows:,} records in order, {rows - failed:,} with a diagnosis, {failed:,} without{listed}"


# --- the proof --------------------------------------------------------------------------------------------------------


def check_file(path: str, records: Iterable[tuple[str, dict[str, Any]]]) -> list[int]:
    """The numbers of the lines without an answer, in a file that otherwise is in the official form, one line for each
    record, in order; UserError that names the first line that is not, and why."""
    empty = []
    lines = zip_longest(_lines(path), records)
    for number, (line, record) in enumerate(lines, 1):
        place = f"{path}:{number}"
        if line is None:
            raise UserError(f"{place}: is missing; expected id {record[1]['id']!r} of {record[0]}, every record once")
        row = _row(line, place)
        if record is None:
            raise UserError(f"{place}: id {row['id']!r} is one line too many; expected {number - 1}, a line a record")
        _same(row, *record, place)
        if not row["reason"].strip() and not row["diseases"].strip():
            empty.append(number)
    return empty


def _lines(path: str) -> Iterator[str]:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a file") from None
    if content.startswith(codecs.BOM_UTF8):
        raise UserError(f"{path}:1: begins with a byte order mark; expected UTF-8 without one")
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else (), 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}:{number}: byte {error.start} is not UTF-8; expected UTF-8 throughout") from None


def _row(line: str, place: str) -> dict[str, Any]:
    """A line as an object of the four keys, in their order and of their types."""
    try:
        pairs = json.loads(line, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error}); expected one object a line") from None
    keys = [pair[0] for pair in pairs] if isinstance(pairs, list) and line.lstrip()[:1] == "{" else None
    if keys != list(FORM):
        told = "no object" if keys is None else ", ".join(keys) or "no keys"
        raise UserError(f"{place}: {told}; expected the keys {', '.join(FORM)}, in this order, each once")
    row = dict(pairs)
    for name in FORM[1:]:
        if not isinstance(row[name], str):
            raise UserError(f"{place}: {name} is {type(row[name]).__name__}; expected a string")
    for name in KEYS:
        if _BREAK.search(row[name]):
            raise UserError(f"{place}: {name} holds a line break; expected a backslash and an n, as the example has it")
        if not _is_text(row[name]) and row[name] != "":
            raise UserError(f"{place}: {name} holds no letter, or half a character; expected text, or nothing at all")
    if bool(row["reason"]) != bool(row["diseases"]):
        lacking = "diseases" if row["reason"] else "reason"
        raise UserError(
            f"{place}: {lacking} is empty and the other is not; expected both, or neither where asking failed"
        )
    return row


def _same(row: dict[str, Any], where: str, record: dict[str, Any], place: str) -> None:
    """UserError unless the line's id and text are the record's own."""
    if type(row["id"]) is not type(record["id"]) or row["id"] != record["id"]:
        raise UserError(f"{place}: id {row['id']!r}; expected {record['id']!r} of {where}, every record once, in order")
    if row["feature_content"] != record["feature_content"]:
        raise UserError(f"{place}: feature_content is not that of {where}; expected it to the character")


def check(arguments: list[str]) -> None:
    """`check FILE RECORDS…`: prove a file alone, whoever wrote it."""
    parser = argparse.ArgumentParser(prog="python -m eval.submission check", description=check_file.__doc__)
    parser.add_argument("file", help="the submission, e.g. reports/healthai/predict_output.jsonl")
    parser.add_argument("records", nargs="+", help="the records it answers: files or folders")
    named = parser.parse_args(arguments)
    rows = rows_of(named.records)
    empty = check_file(named.file, rows)
    print(_counts(named.file, len(rows), len(empty)))
    if empty:
        raise UserError(f"{named.file}:{empty[0]}: reason and diseases are empty, as in {len(empty)} lines; ask again")


if __name__ == "__main__":
    if sys.argv[1:2] == ["check"]:
        with one_line_errors():
            check(sys.argv[2:])
    else:
        main(Predict, submit, __doc__)
