"""What happens to records between reading and writing, in this order, each step counted:

    prepare            normalise, cut a patient record's diagnosis, mask or report identifiers, look for faults
    first_pass         that, and the length; the side by the question's hash
    duplicates         the same question but for form; the best is kept
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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from chat.scenarios import Scenario, of_question, read_scenarios
from chat.scenarios import find as find_scenario
from preprocess.clean import HARMLESS, NEEDED, excerpt, faults, question_key
from preprocess.contamination import Guard, Hit
from preprocess.data import Data
from preprocess.healthai import cut_diagnosis, describe
from preprocess.lengths import Lengths
from preprocess.near import Cluster, Index, are_opposed
from preprocess.normalise import normalise
from preprocess.privacy import find, mask_all, mask_record, scan
from preprocess.records import Record, content_id
from preprocess.sources import questions_of
from preprocess.think import join
from recipe import UserError

PATIENTS = ("healthai", "diagnosis")
BATCH, BATCH_CHARACTERS = 500, 2_000_000  # records, and characters of them
EDGE = 160  # characters of an evaluation item that are quoted

_scenarios = cache(read_scenarios)
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
    return key_hash(question) < share * 2**64


def key_hash(question: str) -> int:
    """64 bits of the SHA-256 of the question's key."""
    return int.from_bytes(hashlib.sha256(question_key(question).encode()).digest()[:8], "big")


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
    if data.scenarios and not record.system:  # behind the normalising: at work the prompt is asked to the character
        record = replace(record, system=_scenario(record, data.scenarios, item.place).prompt)
    if data.cut_diagnosis and record.source in PATIENTS:
        record, cut = _without_diagnosis(record)
        item.changed += ["diagnosis_cut"] * cut
    if data.privacy != "none":
        item.identifiers = [(place.field, place.kind, place.start, place.end) for place in scan([record])]
    if data.privacy == "mask":
        record = _masked(record)
        item.changed += ["masked"] * bool(item.identifiers)
    found = faults(record)
    share = agreement(record)
    item.reason = next((name for name in found if name in data.drop or name in NEEDED), "")
    if item.reason and (phrase := excerpt(item.reason, record)):
        item.evidence = {"found": phrase}
    if not item.reason and share < data.min_agreement:
        item.reason, item.evidence = "agreement", {"agreement": share}
    item.flags = [name for name in found if name != item.reason]
    item.record, item.key = record, key_hash(record.question)
    item.held_out = is_eval(record.question, data.eval_share)
    return item


def _scenario(record: Record, path: str, place: str) -> Scenario:
    """The one that a record names under `scenario`, else that of its question's words."""
    known, name = _scenarios(path), record.meta.get("scenario")
    try:
        return find_scenario(known, name) if isinstance(name, str | int) else of_question(known, record.question)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def agreement(record: Record) -> float:
    """The share of a teacher's samples that say the same diagnosis, as `make label` writes it; 1 where it does not."""
    value = record.meta.get("agreement")
    return float(value) if type(value) in (int, float) else 1.0


def _normalised(record: Record) -> tuple[Record, list[str]]:
    # A patient record is handed in again to the character, and its labels are what it is split at.
    names = ("think", "answer") if record.source in PATIENTS else ("system", "question", "think", "answer")
    texts = {name: normalise(getattr(record, name)) for name in names}
    changed = sorted({step for _, steps in texts.values() for step in steps})
    return replace(record, **{name: text.strip() for name, (text, _) in texts.items()}), changed


def _masked(record: Record) -> Record:
    """A record that says nothing of a person: of what came along with it, only what later steps need is left."""
    kept = ("oddities", "metrics", "agreement", "weak_reference")
    meta = {name: record.meta[name] for name in kept if name in record.meta}
    if "weak_reference" in meta:
        meta["weak_reference"] = mask_all(meta["weak_reference"])[0]
    id_ = content_id(record.id) if find(record.id) else record.id
    return replace(mask_record(record)[0], id=id_, meta=meta)


def _without_diagnosis(record: Record) -> tuple[Record, bool]:
    question, names = cut_diagnosis(record.question)
    if not names:
        return record, False
    odd = [name for name in record.meta.get("oddities", ()) if name != "diagnosis_tail"]
    meta = record.meta | {"oddities": odd, "fields": describe(question)[0], "weak_reference": names}
    return replace(record, question=question.strip(), meta=meta), True


# --- all records ------------------------------------------------------------------------------------------------------


def first_pass(data: Data, items: Iterable[Item], spool: Spool) -> None:
    """Prepare each item, drop what can be told of it alone, and put all of them on the spool, in order."""
    lengths = Lengths(data.tokenizer, data.cutoff_len)
    for batch in _batches(items):
        for item in batch:
            prepare(item, data)
        _measure([item for item in batch if not item.reason], lengths, data)
        for item in batch:
            spool.append(item)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in lists of BATCH, or fewer where they are long."""
    batch, size = [], 0
    for item in items:
        batch.append(item)
        size += len(_texts(item))
        if len(batch) == BATCH or size > BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _texts(item: Item) -> str:
    return f"{item.record.question}\n{item.record.think}\n{item.record.answer}"


def _measure(items: list[Item], lengths: Lengths, data: Data) -> None:
    rows = [to_row(item.record, data.think_from) for item in items]
    texts = [f"{row['system']}\n{row['instruction']}\n{row['output']}" for row in rows]
    for item, tokens in zip(items, lengths.count(texts), strict=True):
        item.tokens = tokens
        if lengths.is_too_long(tokens):
            item.reason, item.evidence = "too_long", {"tokens": tokens}


def alive(spool: Spool, reasons: Reasons, held_out: bool | None = None) -> Iterator[tuple[int, Item]]:
    """By number, the items that nothing has dropped yet; of one side, if one is named."""
    for number, item in enumerate(spool):
        if not item.reason and number not in reasons and held_out in (None, item.held_out):
            yield number, item


def rank(item: Item) -> int:
    """How good an item is among its like, the lowest best: few defects, then a long thought."""
    return (len(defects(item)) << 40) - len(item.record.think)


def duplicates(data: Data, spool: Spool) -> Reasons:
    """The items whose question is another's but for form; the best of them is kept, and of equals the first."""
    best: dict[int, tuple[int, int]] = {}
    found: Reasons = {}
    if not data.duplicates:
        return found
    for number, item in alive(spool, {}):
        mine = rank(item), number
        best[item.key] = min(best.get(item.key, mine), mine)
    for number, item in alive(spool, {}):
        kept = best[item.key][1]
        if kept != number:
            other = spool[kept]
            same = question_key(other.record.answer) == question_key(item.record.answer)
            found[number] = ("duplicate", {"kept": other.place, "same_answer": same})
    return found


def contaminated(data: Data, spool: Spool, reasons: Reasons) -> tuple[Reasons, dict[str, int]]:
    """The items that hold most of a question of an evaluation file; and how many questions each file has."""
    questions = dict.fromkeys(data.decontaminate, 0)
    found: Reasons = {}
    if not questions:
        return found, questions

    def counted(path: str) -> Iterator[str]:
        for question in questions_of(path):
            questions[path] += 1
            yield question

    ordinary = (_texts(item) for _, item in alive(spool, reasons))
    guard = Guard({path: counted(path) for path in questions}, ordinary)
    numbers = (number for number, _ in alive(spool, reasons))
    hits = guard.check_all(_texts(item) for _, item in alive(spool, reasons))
    for number, hit in zip(numbers, hits, strict=True):
        if hit:
            evidence = {"file": hit.file, "item": hit.number} | _offence(guard, hit)
            if data.privacy == "mask":  # the evaluation file's own words are not masked
                del evidence["item_text"]
            found[number] = ("contaminated", evidence)
    return found, questions


def _offence(guard: Guard, hit: Hit) -> dict[str, Any]:
    """The other half of an offending pair, as evidence."""
    text = guard.text_of(hit)[:EDGE]
    return {"item_text": text, "coverage": round(hit.coverage, 3), "run": hit.run[:EDGE]}


def near_duplicates(data: Data, spool: Spool, reasons: Reasons) -> tuple[Reasons, list[dict[str, Any]]]:
    """What is nearly the same question as one that is kept, and the clusters. Of a cluster the best is kept, and every
    member that is unlike all that are kept, or says the opposite."""
    found: Reasons = {}
    written = []
    if not data.near_duplicates:
        return found, written
    index = Index(folder=str(spool.folder))
    numbers, ranks = array("q"), array("q")

    def questions() -> Iterator[str]:
        for number, item in alive(spool, reasons):
            numbers.append(number)
            ranks.append(rank(item))
            yield item.record.question

    index.add(questions())
    for cluster in index.clusters(data.near_duplicates):
        surplus = set()
        for number, pair in index.surplus(cluster, ranks.__getitem__, data.near_duplicates):
            item, kept = spool[numbers[number]], spool[numbers[pair.first + pair.second - number]]
            if not are_opposed(item.record.question, kept.record.question):
                evidence = {"kept": kept.place, "kept_question": kept.record.question[:EDGE]}
                found[numbers[number]] = ("near_duplicate", evidence | {"jaccard": round(pair.jaccard, 3)})
                surplus.add(number)
        written.append(_written(cluster, surplus, spool, numbers))
    return found, written


def _written(cluster: Cluster, surplus: set[int], spool: Spool, numbers: array[int]) -> dict[str, Any]:
    places = {number: spool[numbers[number]].place for number in cluster.members}
    return {
        "kept": [places[number] for number in cluster.members if number not in surplus],
        "dropped": [places[number] for number in cluster.members if number in surplus],
        "pairs": [[places[pair.first], places[pair.second], round(pair.jaccard, 3)] for pair in cluster.pairs],
    }


def near_eval(data: Data, spool: Spool, reasons: Reasons) -> Reasons:
    """The training items whose question holds most of a held-out one, or is nearly the same."""
    places = [item.place for _, item in alive(spool, reasons, held_out=True)]
    found: Reasons = {}
    if not (data.near_eval and places):
        return found

    def questions(held_out: bool) -> Iterator[str]:
        return (item.record.question for _, item in alive(spool, reasons, held_out))

    guard = Guard({"eval": questions(True)}, ordinary=questions(False))
    numbers = (number for number, _ in alive(spool, reasons, held_out=False))
    for number, hit in zip(numbers, guard.check_all(questions(False)), strict=True):
        if hit:
            found[number] = ("near_eval", {"held_out": places[hit.number]} | _offence(guard, hit))
    return found


def over_share(data: Data, spool: Spool, reasons: Reasons) -> Reasons:
    """Training items over their source's share of the rows that are written: as many are left as keep the shares, by
    the questions' hashes."""
    if not data.shares:
        return {}
    files: list[list[tuple[int, int, int]]] = [[] for _ in data.inputs]
    for number, item in alive(spool, reasons, held_out=False):
        files[item.file].append((item.key, number, times(item, data)))
    rows = [sum(weight for _, _, weight in items) for items in files]
    whole = min(count / share for count, share in zip(rows, data.shares, strict=True))
    found: Reasons = {}
    for items, share in zip(files, data.shares, strict=True):
        room = whole * share + 1e-9
        for _, number, weight in sorted(items):
            room -= weight
            if room < 0:
                found[number] = ("over_share", {"share": share})
    return found


def times(item: Item, data: Data) -> int:
    """How often a training row is written: where nothing else speaks against it, `upsample` times if all samples agree,
    once at `min_agreement`, and evenly between."""
    least = data.min_agreement
    weight = (agreement(item.record) - least) / (1 - least) if least < 1 else 1.0
    whole = int((data.upsample - 1) * weight + 0.02)  # an agreement has three decimals: 0.833 are five of six
    return 1 + whole if is_best(item) else 1


def is_best(item: Item) -> bool:
    """Whether nothing speaks against a record: no defect, and the source's own score, where it gives one (delicate's
    `quality_f1`), is 1."""
    metrics = item.record.meta.get("metrics")
    return not defects(item) and (not isinstance(metrics, dict) or metrics.get("quality_f1", 1.0) == 1.0)


def defects(item: Item) -> list[str]:
    """What was found that speaks against a record."""
    return [name for name in item.flags if name not in HARMLESS]


def sides(spool: Spool, reasons: Reasons) -> Iterator[tuple[str, Item]]:
    """(side, item) in the order of the input: `train`, `eval` or `dropped`, the item with its reason."""
    for number, item in enumerate(spool):
        if number in reasons:
            item.reason, item.evidence = reasons[number]
        yield ("dropped" if item.reason else "eval" if item.held_out else "train"), item
