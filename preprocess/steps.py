"""What happens to records between reading and writing, in this order, each step counted:

    prepare            normalise, cut a patient record's diagnosis, mask or report identifiers, look for faults
    first_pass         that, then exact duplicates and length; the side by the question's hash
    contaminated       what holds a question of an evaluation file
    near_duplicates    clusters, of which the best is kept
    near_eval          training questions too near a held-out one
    over_share         what would give a source more than its share

Records pass through a spool on disk. What grows with their number: about 200 bytes each here, and what
`near.Index` and, for evaluation and held-out questions, `contamination.Guard` state.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from preprocess.clean import HARMLESS, NEEDED, excerpt, faults, question_key
from preprocess.contamination import Guard, Hit, questions_of
from preprocess.data import Data
from preprocess.healthai import cut_diagnosis, describe
from preprocess.lengths import Lengths
from preprocess.near import Cluster, Index
from preprocess.normalise import normalise
from preprocess.privacy import mask_record, scan
from preprocess.records import Record
from preprocess.think import join

PATIENTS = ("healthai", "diagnosis")
BATCH, BATCH_CHARACTERS = 500, 2_000_000  # records, and characters of them
EDGE = 160  # characters of an evaluation item that are quoted

Reasons = dict[int, tuple[str, dict[str, Any]]]  # by number: why an item is dropped, and the evidence


@dataclass
class Item:
    """A record on its way, with all that was found out about it; one line of the spool."""

    place: str
    record: Record
    file: int = 0  # the number of its input
    reason: str = ""
    evidence: dict[str, Any] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    identifiers: list[tuple[str, str, int, int]] = field(default_factory=list)  # field, kind, start, end
    key: int = 0  # 64 bits of the question's hash
    held_out: bool = False
    tokens: int = 0  # of the whole row; 0 where no tokenizer is at hand


class Spool:
    """Items in a file, one JSON object a line, to be read again in order or by number; 8 bytes of memory each."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.file = open(self.folder / "records.jsonl", "w+b")  # noqa: SIM115  (gone with its folder)
        self.ends = array("q", [0])

    def append(self, item: Item) -> None:
        self.file.seek(0, 2)
        self.file.write(json.dumps(vars(item), ensure_ascii=False, default=vars).encode() + b"\n")
        self.ends.append(self.file.tell())

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, number: int) -> Item:
        self.file.seek(self.ends[number])
        return _item(self.file.read(self.ends[number + 1] - self.ends[number]))

    def __iter__(self) -> Iterator[Item]:
        self.file.flush()
        with open(self.file.name, "rb") as file:
            yield from map(_item, file)


def _item(line: bytes) -> Item:
    values = json.loads(line)
    return Item(**values | {"record": Record(**values["record"])})


def to_row(record: Record, think_from: str = "thought") -> dict[str, str]:
    """One record as an alpaca row, the thought in the spelling that LLaMA-Factory's templates recognise."""
    think = "" if think_from == "none" else record.think
    return {
        "id": record.id,
        "system": record.system,
        "instruction": record.question,
        "input": "",
        "output": join(think, record.answer),
    }


def is_eval(question: str, share: float) -> bool:
    """Whether a question is held out: by its own hash, so that it never changes sides when data is added."""
    return _hash(question_key(question)) < share * 2**64


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


# --- one record -------------------------------------------------------------------------------------------------------


def prepare(item: Item, data: Data) -> Item:
    """Everything that one record needs without the others: its text, its identifiers, its faults, its side."""
    record = item.record
    if data.think_from == "reason" and not record.think:
        record = replace(record, think=str(record.meta.get("reason") or "").strip())
    if data.system:
        record = replace(record, system=data.system)
    if data.normalise:
        record, item.changed = _normalised(record)
    if data.cut_diagnosis and record.source in PATIENTS:
        record, cut = _without_diagnosis(record)
        item.changed += ["diagnosis_cut"] * cut
    if data.privacy != "none":
        item.identifiers = [(place.field, place.kind, place.start, place.end) for place in scan([record])]
    if data.privacy == "mask" and item.identifiers:
        # What came along may say again what is masked; nothing of it is written.
        record = replace(mask_record(record)[0], meta={"oddities": record.meta.get("oddities", [])})
        item.changed.append("masked")
    found = faults(record)
    item.reason = next((name for name in found if name in data.drop or name in NEEDED), "")
    if item.reason and (phrase := excerpt(item.reason, record)):
        item.evidence = {"found": phrase}
    item.flags = [name for name in found if name != item.reason]
    item.record, item.key = record, _hash(question_key(record.question))
    item.held_out = item.key < data.eval_share * 2**64
    return item


def _normalised(record: Record) -> tuple[Record, list[str]]:
    # A patient record is handed in again to the character, and its labels are what it is split at.
    names = ("think", "answer") if record.source in PATIENTS else ("system", "question", "think", "answer")
    texts = {name: normalise(getattr(record, name)) for name in names}
    changed = sorted({step for _, steps in texts.values() for step in steps})
    return replace(record, **{name: text.strip() for name, (text, _) in texts.items()}), changed


def _without_diagnosis(record: Record) -> tuple[Record, bool]:
    question, names = cut_diagnosis(record.question)
    if not names:
        return record, False
    odd = [name for name in record.meta.get("oddities", ()) if name != "diagnosis_tail"]
    meta = record.meta | {"oddities": odd, "fields": describe(question)[0], "weak_reference": names}
    return replace(record, question=question.strip(), meta=meta), True


# --- all records ------------------------------------------------------------------------------------------------------


def first_pass(data: Data, items: Iterable[Item], spool: Spool) -> None:
    """Prepare each item, drop what can be told without those after it, and put all of them on the spool, in order."""
    seen: dict[int, int] = {}
    lengths = Lengths(data.tokenizer, data.cutoff_len)
    for batch in _batches(items):
        for item in batch:
            prepare(item, data)
        if data.duplicates:
            _mark_duplicates(batch, seen, spool)
        _measure([item for item in batch if not item.reason], lengths, data)
        for item in batch:
            spool.append(item)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in lists of BATCH, or fewer where they are long."""
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += len(item.record.question) + len(item.record.think) + len(item.record.answer)
        if len(batch) == BATCH or size > BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _mark_duplicates(batch: list[Item], seen: dict[int, int], spool: Spool) -> None:
    """`seen` is, by a question's hash, the number of the first item that asked it."""
    for number, item in enumerate(batch, len(spool)):
        if item.reason:
            continue
        if (first := seen.setdefault(item.key, number)) != number:
            other = batch[first - len(spool)] if first >= len(spool) else spool[first]
            same = question_key(other.record.answer) == question_key(item.record.answer)
            item.reason, item.evidence = "duplicate", {"first": other.place, "same_answer": same}


def _measure(items: list[Item], lengths: Lengths, data: Data) -> None:
    rows = [to_row(item.record, data.think_from) for item in items]
    texts = [f"{row['system']}\n{row['instruction']}\n{row['output']}" for row in rows]
    for item, tokens in zip(items, lengths.count(texts), strict=True):
        item.tokens = tokens
        if lengths.is_too_long(tokens):
            item.reason, item.evidence = "too_long", {"tokens": tokens}


def _offence(guard: Guard, hit: Hit, file: str) -> dict[str, Any]:
    """The other half of an offending pair, as evidence."""
    return {
        "file": file,
        "item": hit.number,
        "item_text": guard.text_of(hit)[:EDGE],
        "coverage": round(hit.coverage, 3),
        "run": hit.run[:EDGE],
    }


def contaminated(data: Data, spool: Spool, reasons: Reasons) -> Reasons:
    """The items whose question and answer hold most of a question of an evaluation file."""
    if not data.decontaminate:
        return {}
    guard = Guard({path: questions_of(path) for path in data.decontaminate}, ordinary=map(_asked, spool))
    hits = guard.check_all(map(_asked, spool))
    alive = (_is_alive(number, item, reasons) for number, item in enumerate(spool))
    return {
        number: ("contaminated", _offence(guard, hit, hit.file))
        for number, (hit, is_alive) in enumerate(zip(hits, alive, strict=True))
        if hit and is_alive
    }


def _asked(item: Item) -> str:
    return f"{item.record.question}\n{item.record.answer}"


def near_duplicates(data: Data, spool: Spool, reasons: Reasons) -> tuple[Reasons, list[dict[str, Any]]]:
    """What to drop, and the clusters. Kept of a cluster is what has the fewest defects, then the longest thought, then
    stands first; and a member that is unlike all that are kept."""
    if not data.near_duplicates:
        return {}, []
    index = Index(folder=str(spool.folder))
    numbers, ranks = array("q"), array("q")

    def questions() -> Iterator[str]:
        for number, item in enumerate(spool):
            if _is_alive(number, item, reasons):
                numbers.append(number)
                ranks.append((len(defects(item)) << 40) - len(item.record.think))
                yield item.record.question

    index.add(questions())
    found: Reasons = {}
    written = []
    for cluster in index.clusters(data.near_duplicates):
        surplus = index.surplus(cluster, ranks.__getitem__, data.near_duplicates)
        for number, pair in surplus:
            kept = spool[numbers[pair.first + pair.second - number]]
            evidence = {
                "kept": kept.place,
                "kept_question": kept.record.question[:EDGE],
                "jaccard": _round(pair.jaccard),
            }
            found[numbers[number]] = ("near_duplicate", evidence)
        written.append(_written(cluster, {number for number, _ in surplus}, spool, numbers))
    return found, written


def _written(cluster: Cluster, surplus: set[int], spool: Spool, numbers: array[int]) -> dict[str, Any]:
    places = {number: spool[numbers[number]].place for number in cluster.members}
    return {
        "kept": [places[number] for number in cluster.members if number not in surplus],
        "dropped": [places[number] for number in cluster.members if number in surplus],
        "pairs": [[places[pair.first], places[pair.second], _round(pair.jaccard)] for pair in cluster.pairs],
    }


def _round(value: float) -> float:
    return round(value, 3)


def near_eval(data: Data, spool: Spool, reasons: Reasons) -> Reasons:
    """The training items whose question holds most of a held-out one, or is nearly the same."""
    places = [item.place for item in _alive(spool, reasons, held_out=True)]
    if not (data.near_eval and places):
        return {}
    guard = Guard(
        {"eval": (item.record.question for item in _alive(spool, reasons, held_out=True))},
        ordinary=(item.record.question for item in _alive(spool, reasons, held_out=False)),
    )
    found: Reasons = {}
    numbers = (number for number, item in enumerate(spool) if _is_alive(number, item, reasons) and not item.held_out)
    questions = (item.record.question for item in _alive(spool, reasons, held_out=False))
    for number, hit in zip(numbers, guard.check_all(questions), strict=True):
        if hit:
            found[number] = ("near_eval", _offence(guard, hit, "eval") | {"held_out": places[hit.number]})
    return found


def over_share(data: Data, spool: Spool, reasons: Reasons) -> Reasons:
    """Training items over their source's share: as many are left as keep the shares, by the questions' hashes."""
    if not data.shares:
        return {}
    keys: list[list[tuple[int, int]]] = [[] for _ in data.inputs]
    for number, item in enumerate(spool):
        if _is_alive(number, item, reasons) and not item.held_out:
            keys[item.file].append((item.key, number))
    whole = min(len(found) / share for found, share in zip(keys, data.shares, strict=True))
    counts = [int(whole * share + 1e-9) for share in data.shares]
    return {
        number: ("over_share", {"share": share})
        for found, count, share in zip(keys, counts, data.shares, strict=True)
        for _, number in sorted(found)[count:]
    }


def _is_alive(number: int, item: Item, reasons: Reasons) -> bool:
    return not item.reason and number not in reasons


def _alive(spool: Spool, reasons: Reasons, held_out: bool) -> Iterator[Item]:
    for number, item in enumerate(spool):
        if _is_alive(number, item, reasons) and item.held_out is held_out:
            yield item


def is_best(item: Item) -> bool:
    """Whether nothing speaks against a record: no defect, and the source's own score, where it gives one (delicate's
    `quality_f1`), is 1."""
    metrics = item.record.meta.get("metrics")
    return not defects(item) and (not isinstance(metrics, dict) or metrics.get("quality_f1", 1.0) == 1.0)


def defects(item: Item) -> list[str]:
    return [name for name in item.flags if name not in HARMLESS]


def sides(spool: Spool, reasons: Reasons) -> Iterator[tuple[str, Item]]:
    """(side, item) in the order of the input: `train`, `eval` or `dropped`, the item with its reason."""
    for number, item in enumerate(spool):
        if number in reasons:
            item.reason, item.evidence = reasons[number]
        yield ("dropped" if item.reason else "eval" if item.held_out else "train"), item


def summed(counts: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, by name."""
    return dict(sorted(Counter(counts).items()))
