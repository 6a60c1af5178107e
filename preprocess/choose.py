"""From the answers to one record to a row of labelled.jsonl, or to the reason why there is none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from preprocess.ask import KEYS, Label, read
from preprocess.diagnosis import disease_names, to_text
from preprocess.gates import Candidate, evidence, gate
from preprocess.records import Record


@dataclass(frozen=True)
class Outcome:
    """What is known of one sample: its journal key, and the reply as the journal keeps it; or why there is none."""

    key: str
    reply: dict[str, Any] | None
    failure: str = ""  # the client's kind of failure, or "not_asked"
    message: str = ""


@dataclass(frozen=True)
class Choice:
    """A row and the answer that a verifier is shown; or the reason for none, which is a gate's or a failure's name."""

    row: dict[str, Any] | None
    reason: str = ""
    message: str = ""
    answer: str = ""


def candidate(reply: dict[str, Any], settings: Label, question: str) -> Candidate:
    """A reply as the gates judge it."""
    found = read(reply, settings.kind)
    answer = reply["text"]
    if found.value is not None:
        answer = "\n".join(to_text(found.value[key]) or "" for key in KEYS)
    return Candidate(answer.strip(), reply["think"].strip(), reply["finish_reason"], found.value, question, found.fault)


def choose(record: Record, shown: str, outcomes: list[Outcome], settings: Label) -> Choice:
    """The answer of a record: of those that pass the gates, one of the majority's diagnosis, whose reason stands most
    in the record, then the first. `shown` is the question as the teacher saw it."""
    if missing := next((one for one in outcomes if one.reply is None), None):
        return Choice(None, missing.failure, missing.message)
    judged = [(one, candidate(one.reply, settings, shown)) for one in outcomes if one.reply]
    faults = [gate(found, settings.bounds) or _no_object(found, settings) for _, found in judged]
    passed = [pair for pair, fault in zip(judged, faults, strict=True) if not fault]
    if not passed:
        worst = Counter(faults).most_common(1)[0][0]
        return Choice(None, worst, judged[faults.index(worst)][1].fault)
    votes = Counter(_vote(found) for _, found in passed)
    most = max(votes.values())
    agreement = most / len(outcomes)
    voted = settings.n > 1 and settings.kind == "diagnosis" and "agreement" in settings.gates
    if voted and (agreement < settings.min_agreement or list(votes.values()).count(most) > 1):
        return Choice(None, "agreement", f"{most} of {len(outcomes)} samples say the same")
    first = next(vote for vote, count in votes.items() if count == most)
    best = max((pair for pair in passed if _vote(pair[1]) == first), key=lambda pair: _support(pair[1]))
    return Choice(_row(record, *best, agreement, settings), answer=best[1].answer)


def _no_object(found: Candidate, settings: Label) -> str:
    """Whatever the gates are: what holds no diagnosis is no row."""
    return "schema" if settings.kind == "diagnosis" and found.value is None else ""


def _vote(found: Candidate) -> frozenset[str]:
    return disease_names(to_text(found.value["diseases"]) or "") if found.value else frozenset()


def _support(found: Candidate) -> float:
    return evidence(to_text(found.value["reason"]) or "", found.question) if found.value else 0.0


def _row(record: Record, outcome: Outcome, found: Candidate, agreement: float, settings: Label) -> dict[str, Any]:
    id_ = record.meta.get("id", record.id)
    if found.value is None:
        row = {"id": id_, "Question": record.question, "Complex_CoT": found.think, "Response": found.answer}
    else:
        row = {"id": id_} | {key: to_text(found.value[key]) for key in KEYS} | {"feature_content": record.question}
        row |= {"reasoning_content": found.think} if found.think else {}
    voted = settings.n > 1 and settings.kind == "diagnosis"
    return row | ({"agreement": round(agreement, 3)} if voted else {}) | {"journal": outcome.key}
