"""A teacher's distributions, stored small: at each response position the k likeliest tokens and the mass of the rest.

    pack = Pack.open("data/healthai_distill/teacher")
    pack.get(row_key(input_ids, labels)).logprobs  # float32 [n, k], n labels that are not -100; None: not in the pack

    python -m distill.pack verify data/healthai_distill/teacher

A pack is a folder of files as `chat.logprobs` writes them, one for each process that scored, with one column more, the
log of the mass outside the k (`tail`), and more in the header: all of `Meta`. A row of training data is found by the
hash of its token ids and labels. 128 bytes a position at k = 20, and 52 a row.

What is stored is rounded to fp16: a log-probability x by at most |x| / 2048. What is read is checked: the row's CRC-32,
ids of the vocabulary, descending log-probabilities without NaN, and a mass of 1.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from chat.logprobs import FP16_MAX, PAD, Positions, Reader, Vocabulary, Writer, vocabulary_of
from recipe import UserError, one_line_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
SUFFIX = ".logprobs"
TAIL = ["tail", "<f2", 1]


@dataclass(frozen=True)
class Meta:
    """What a pack was made from. `tokenizer` is a fingerprint, `dataset` names, ids are below `vocabulary`."""

    tokenizer: str
    template: str
    cutoff_len: int
    dataset: tuple[str, ...]
    teacher: str
    revision: str
    temperature: float
    k: int
    vocabulary: int


@dataclass(frozen=True, eq=False)
class Distribution:
    """The teacher's distributions over one row's n response tokens: at index i what it predicts for the i-th label.

    Where a position has fewer than k alternatives, the rest is id -1 with log-probability -inf. Where it has none,
    `known` is false and `tail` 0: nothing is said about it.
    """

    ids: np.ndarray  # int64 [n, k]
    logprobs: np.ndarray  # float32 [n, k], natural log, descending
    tail: np.ndarray  # float32 [n], log of the mass outside the k
    known: np.ndarray  # bool [n]

    def top(self, k: int) -> Distribution:
        """The same with the k likeliest alone; the mass of the others goes to the tail."""
        rest = np.concatenate([self.tail[:, None], self.logprobs[:, k:]], 1)
        tail = np.logaddexp.reduce(rest, axis=1).clip(max=0)
        return Distribution(self.ids[:, :k], self.logprobs[:, :k], tail, self.known)


def row_key(input_ids: Sequence[int], labels: Sequence[int]) -> str:
    """SHA-256, in hex, over a row's token ids and labels, unpadded, as LLaMA-Factory's data set has them."""
    digest = hashlib.sha256(np.int64(len(input_ids)).tobytes())
    for values in (input_ids, labels):
        digest.update(np.asarray(values, "<i8").tobytes())
    return digest.hexdigest()


def read_vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The vocabulary of a loaded tokenizer; UserError for one that isn't of the tokenizers library."""
    name = Path(tokenizer.name_or_path).name
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{name}: its tokenizer is a slow one, without a tokenizer.json; take a model that has one")
    return vocabulary_of(tokenizer.backend_tokenizer, name)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256, in hex, over all (id, bytes) of a tokenizer, whatever its folder is called."""
    return read_vocabulary(tokenizer).fingerprint


def check(found: Meta, expected: Meta, where: str | Path = "pack") -> None:
    """UserError names the first thing in which a pack is not what is expected, both sides in one line.

    The pack may hold more alternatives and have a smaller vocabulary. An empty `teacher` or `revision`, a `k` or
    `vocabulary` of 0 in `expected` is not asked about, nor is the temperature.
    """
    again = "score into another folder (pack=…), or name the recipe it was made for"
    for name in ("tokenizer", "template", "cutoff_len", "dataset", "teacher", "revision"):
        old, new = getattr(found, name), getattr(expected, name)
        if old != new and not (name in ("teacher", "revision") and not new):
            raise UserError(f"{where}: was made with {name} {_shown(old)}, here it is {_shown(new)}; {again}")
    if expected.k > found.k:
        raise UserError(f"{where}: stores k = {found.k} tokens a position, {expected.k} are asked for; {again}")
    if expected.vocabulary and found.vocabulary > expected.vocabulary:
        raise UserError(f"{where}: has ids up to {found.vocabulary}, the student's are below {expected.vocabulary}")


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(value)
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def open_writer(path: str | Path, meta: Meta, vocabulary: Vocabulary) -> Writer:
    """A file of a pack to append to, made where there is none; UserError where it was made with another `meta`."""
    values = asdict(meta) | {"dataset": list(meta.dataset)}
    more = {name: values[name] for name in _MORE}
    return Writer(path, vocabulary, meta.teacher, meta.k, columns=[TAIL], more=more)


_MORE = [field.name for field in fields(Meta) if field.name not in ("tokenizer", "teacher", "k")]


def to_positions(
    ids: np.ndarray, logprobs: np.ndarray, tail: np.ndarray, chosen: np.ndarray, chosen_logprob: np.ndarray
) -> Positions:
    """A row as the file has it: `ids`, `logprobs` [n, k], the others [n]."""

    def half(values: np.ndarray) -> np.ndarray:
        return np.where(np.isneginf(values), values, values.clip(-FP16_MAX, 0)).astype("<f2")

    return Positions(ids, chosen, half(logprobs), half(chosen_logprob), [], {"tail": half(tail)})


def read_meta(reader: Reader) -> Meta:
    """The header of one file; UserError where it holds no distributions of a teacher."""
    header = reader.header
    if TAIL not in header["columns"] or not all(name in header for name in _MORE):
        raise UserError(f"{reader.path}: holds an API's answers, not aligned yet; name it in distill.yaml as logprobs")
    more = {name: header[name] for name in _MORE} | {"dataset": tuple(header["dataset"])}
    return Meta(tokenizer=header["fingerprint"], teacher=header["model"], k=header["k"], **more)


def readers(folder: str | Path) -> list[Reader]:
    """The files of a pack, as they are now; UserError where one can't be read."""
    return [Reader(path) for path in sorted(Path(folder).glob(f"*{SUFFIX}")) if path.stat().st_size]


def stored(folder: str | Path, meta: Meta) -> set[str]:
    """The keys of the rows that a pack holds so far; UserError where a file of it was made with another `meta`."""
    files = readers(folder)
    for file in files:
        check(read_meta(file), meta, file.path)
    return {key for file in files for key in file}


class Pack:
    """A pack, memory-mapped: opening it reads the heads of its rows, `get` the row.

    Raises UserError where it is empty, was cut off, is damaged, or has files that were made with different settings.
    """

    def __init__(self, folder: str | Path, files: Sequence[Reader]) -> None:
        self.folder, self.files = folder, files
        if not files:
            raise UserError(f"{folder}: no distributions of a teacher in it; run `make teach` first")
        self.meta = read_meta(files[0])
        for file in files:
            if read_meta(file) != self.meta:
                raise UserError(f"{file.path}: was not made with the settings of {files[0].path}; keep one of them")
            if file.torn:
                what = f"{file.path}: cut off, {file.torn} bytes at its end are no row"
                raise UserError(f"{what}; `make teach` goes on, with as many processes as before")

    @classmethod
    def open(cls, folder: str | Path) -> Pack:
        return cls(folder, readers(folder))

    @cached_property
    def _where(self) -> dict[str, Reader]:
        return {key: file for file in self.files for key in file}

    def __len__(self) -> int:
        return len(self._where)

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def get(self, key: str) -> Distribution | None:
        """A row's distributions, None where the pack hasn't got it; UserError where they are not what was written."""
        if (file := self._where.get(key)) is None:
            return None
        file.check(key)
        positions = file[key]
        found = _distribution(positions)
        if wrong := fault(found, self.meta.vocabulary):
            raise UserError(f"{file.path}: row {key[:12]}: {wrong}; delete the file and run `make teach` again")
        return found


def _distribution(positions: Positions) -> Distribution:
    ids = positions.ids.astype(np.int64)
    logprobs, tail = (values.astype(np.float32) for values in (positions.logprobs, positions.more["tail"]))
    return Distribution(ids, logprobs, tail, ids[:, 0] != PAD)


def fault(found: Distribution, vocabulary: int) -> str:
    """What can't be a teacher's distribution, in words; "" where all is well."""
    ids, logprobs = found.ids, found.logprobs
    if np.isnan(logprobs).any() or np.isnan(found.tail).any():
        return "a log-probability is NaN"
    if ids.size and (ids.max() >= vocabulary or ids.min() < PAD):
        return f"token ids from {ids.min()} to {ids.max()}, but the vocabulary has {vocabulary}"
    ordered = np.sort(ids, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PAD)).any():
        return "a token that is named twice"
    if ((ids == PAD) & (logprobs > -np.inf)).any():
        return "a log-probability without a token"
    if (logprobs[:, 1:] > logprobs[:, :-1]).any():
        return "log-probabilities that do not descend"
    mass = np.exp(logprobs.astype(np.float64)).sum(1) + np.exp(found.tail.astype(np.float64))
    if (np.abs(mass - 1) > slack(ids.shape[1])).any():
        return f"a mass of {mass[np.abs(mass - 1).argmax()]:.4f}, expected 1"
    return ""


def slack(k: int) -> float:
    """How far from 1 a mass may be: fp16 is off by |log p| / 2048, over k + 1 parts at most by their entropy / 2048."""
    return 1e-4 + float(np.log(1 + k)) / 2048


def verify(folder: str | Path) -> dict[str, Any]:
    """Read and check every row, and count: rows, positions, known ones, rows written twice, bytes a position."""
    pack = Pack.open(folder)
    positions = known = 0
    for key in pack:
        found = pack.get(key)
        positions, known = positions + len(found.known), known + int(found.known.sum())
    size = sum(Path(file.path).stat().st_size for file in pack.files)
    return asdict(pack.meta) | {
        "files": len(pack.files),
        "rows": len(pack),
        "repeated": sum(len(file) + file.superseded for file in pack.files) - len(pack),
        "positions": positions,
        "known": known,
        "bytes_per_position": size / positions if positions else None,
    }


def main() -> None:
    """`python -m distill.pack verify FOLDER`: what it holds, or one line on what is wrong with it."""
    parser = argparse.ArgumentParser(description="Check a pack of a teacher's distributions and count what it holds.")
    parser.add_argument("command", choices=["verify"])
    parser.add_argument("folder")
    with one_line_errors():
        found = verify(parser.parse_args().folder)
        print(f"{found['rows']:,} rows in {found['files']} files, {found['repeated']:,} of them written twice")
        print(f"{found['positions']:,} positions, {found['known']:,} with a distribution; k = {found['k']}")
        print(f"teacher {found['teacher']} ({found['revision'][:12]}), temperature {found['temperature']:g}")
        print(f"{', '.join(found['dataset'])}, template {found['template']}, cutoff_len {found['cutoff_len']}")
        if found["positions"]:
            print(f"{found['bytes_per_position']:.1f} bytes a position")
        print("every row is whole: ids, order, mass and CRC-32")


if __name__ == "__main__":
    main()
