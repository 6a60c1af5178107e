"""Log-probabilities of answers, packed beside the journal: the k likeliest tokens of each position, as ids and fp16.

    with Writer("data/medcot/answers.logprobs", tokenizer="models/Qwen3-8B", model="qwen3-8b") as writer:
        writer.append(key, reply["choices"][0]["logprobs"]["content"])  # before the journal's line with that key
    Reader("data/medcot/answers.logprobs")[key].ids  # int32 [positions, k]

    python -m chat.logprobs verify data/medcot/answers.logprobs

**Which id.** The one that the server tells: vLLM's `return_tokens_as_token_ids` ("token_id:123"), llama.cpp's `id`.
Else the one that the named tokenizer (`tokenizer.json`, byte-level BPE) has for exactly the token's bytes. A token is
kept as its bytes ("escaped") where none has them, or several have, and where the server's bytes may not be the token's:
- they hold U+FFFD: vLLM and Ollama send that for a part of a character, which Chinese tokens often are;
- the chosen token before was such a part, or empty: vLLM then adds the part's bytes to this one's;
- two alternatives of the position have them: alternatives are different tokens.

**fp16.** Rounded to the nearest: off by at most |x| / 2048 (0.001 at -2, 0.008 at -16), and by 3e-8 near 0. -inf
stays, what is below -65504 becomes -65504. Where a position has fewer than k alternatives, the rest is padding: id -1,
log-probability -inf.

**The file.** One line of JSON (`head -1 FILE | jq`), padded with spaces to a multiple of 64 bytes, then the answers,
all numbers little-endian:

    key                 32 bytes, the journal's hash
    n, m, size, b, h    uint32 each: positions, escaped tokens, their bytes, CRC-32 of what follows, of the head so far
    columns             as the header lists them, [name, dtype, width]: n x width values, one column after the other
    escaped tokens      m uint32 lengths, then the bytes; the first has the id -2, the second -3, ...
    zeros               up to a multiple of 4 bytes

A reader steps over columns and header keys that it doesn't know, so a file may hold more (distill.pack: a tail mass).
An answer counts once it is whole: what a killed run left unfinished at the end is dropped when the next one goes on.
Where a key was written twice, the later answer counts.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import mmap
import os
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from recipe import UserError, one_line_errors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAGIC = b'{"format": "logprobs", "version": 1, '
HEADER_LIMIT = 1 << 16  # bytes
HEAD = struct.Struct("<32s5I")
PAD, ESCAPED = -1, -2  # ids: no alternative, the first escaped token
LARGEST_ID = 2**31 - 1
FP16_MAX = 65504.0
TOKEN_ID = re.compile(r"token_id:([0-9]{1,10})")
REPLACEMENT = "\ufffd".encode()


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's ids by their tokens' bytes, where no two share them; and the SHA-256, in hex, of all of it."""

    name: str = ""
    fingerprint: str = ""
    ids: Mapping[bytes, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"tokenizer {self.name} (sha256 {self.fingerprint[:12]})" if self.fingerprint else "no tokenizer"


@dataclass(frozen=True, eq=False)
class Positions:
    """One answer of n tokens. An id of 0 or more is the tokenizer's, -1 is padding, one below is an escaped token."""

    ids: np.ndarray  # int32 [n, k], in the server's order
    chosen: np.ndarray  # int32 [n]
    logprobs: np.ndarray  # float16 [n, k]
    chosen_logprob: np.ndarray  # float16 [n]
    escaped: list[bytes]
    more: Mapping[str, np.ndarray] = field(default_factory=dict)  # the file's other columns, flat

    def bytes_of(self, token: int) -> bytes:
        """The bytes of an escaped token, by its id."""
        return self.escaped[ESCAPED - token]


def read_vocabulary(tokenizer: str) -> Vocabulary:
    """The vocabulary of a model's folder or a `tokenizer.json`, added tokens included; an empty one for "".

    The fingerprint is of all (id, bytes), whatever the folder is called. Of a tokenizer that isn't byte-level BPE it is
    of the tokens as they are spelled, and `ids` is empty: their decoding can't be undone, only the server knows the id.
    Raises UserError where there is no such file, or the tokenizers library can't read it.
    """
    if not tokenizer:
        return Vocabulary()
    from tokenizers import Tokenizer

    path = Path(tokenizer).expanduser().resolve()
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"tokenizer: {path}: {error}; name a model's folder, or leave the tokenizer out") from None
    return vocabulary_of(loaded, path.parent.name)


def vocabulary_of(loaded: Tokenizer, name: str) -> Vocabulary:
    """`read_vocabulary` of a tokenizer that is loaded already."""
    from tokenizers import models

    decoder = loaded.decoder
    byte_level = isinstance(loaded.model, models.BPE) and decoder is not None and decoder.decode(["Ġä½ł"]) == " 你"
    alphabet = _byte_alphabet() if byte_level else {}
    tokens = {(number, _bytes(text, alphabet)) for text, number in loaded.get_vocab(with_added_tokens=False).items()}
    tokens |= {(number, added.content.encode()) for number, added in loaded.get_added_tokens_decoder().items()}
    lines = "".join(f"{number} {data.hex()}\n" for number, data in sorted(tokens))
    times = Counter(data for _, data in tokens)
    ids = {data: number for number, data in tokens if times[data] == 1} if byte_level else {}
    return Vocabulary(name, hashlib.sha256(lines.encode()).hexdigest(), ids)


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of byte-level BPE stands for: printable bytes by their own, others from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _bytes(text: str, alphabet: dict[str, int]) -> bytes:
    """The bytes of a vocabulary's token; a special one stands there as plain text."""
    if all(char in alphabet for char in text):
        return bytes(alphabet[char] for char in text)
    return text.encode()


def pack(content: list[dict[str, Any]], k: int, ids: Mapping[bytes, int]) -> Positions:
    """A reply's `logprobs.content` as arrays; `ids` is a Vocabulary's.

    Raises ValueError, with the position, for more than k alternatives and for what isn't tokens with numbers.
    """
    if not isinstance(content, list):
        raise ValueError(f"expected a list of tokens, got {type(content).__name__}")
    numbers = np.full((len(content), 1 + k), PAD, "<i4")  # the chosen token first
    values = np.full((len(content), 1 + k), -np.inf)
    escaped: dict[bytes, int] = {}
    apart = True  # whether the bytes of this position's tokens can't be mixed with those of the token before
    for i, chosen in enumerate(content):
        try:
            row = [chosen, *(chosen.get("top_logprobs") or [])]
            names = [_name(token) for token in row]
            values[i, : len(row)] = [token["logprob"] for token in row[: 1 + k]]
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):  # may quote what the server sent
            raise ValueError(f"position {i}: no token as OpenAI's API has it") from None
        if len(row) > 1 + k:
            raise ValueError(f"position {i}: {len(row) - 1} alternatives, but the file has room for {k}")
        if np.isnan(values[i]).any() or values[i].max() == np.inf:
            raise ValueError(f"position {i}: a log-probability is NaN or inf")
        times = Counter(names[1:])
        for j, name in enumerate(names):
            number: int | None = None
            if isinstance(name, int):
                number = name
            elif apart and times[name] < 2 and REPLACEMENT not in name:
                number = ids.get(name)
            numbers[i, j] = escaped.setdefault(name, ESCAPED - len(escaped)) if number is None else number
        apart = isinstance(names[0], int) or (names[0] != b"" and REPLACEMENT not in names[0])
    halves = np.where(np.isinf(values), values, values.clip(-FP16_MAX, FP16_MAX)).astype("<f2")
    return Positions(numbers[:, 1:], numbers[:, 0], halves[:, 1:], halves[:, 0], list(escaped))


def _name(token: dict[str, Any]) -> int | bytes:
    """A token's id where the server tells it, else its bytes."""
    text, data, number = token["token"], token.get("bytes"), token.get("id")
    if match := TOKEN_ID.fullmatch(text):
        number = int(match[1])
    if type(number) is int and 0 <= number <= LARGEST_ID:
        return number
    return text.encode("utf-8", "surrogatepass") if data is None else bytes(list(data))


class Writer:
    """Appends answers to a file, which is made where there is none; one writer at a time, in one thread.

    `k` is the most alternatives that a position may have; `columns` (name, dtype, width) and `more`, keys of the
    header, are what the file holds besides. Raises UserError where it was made with another tokenizer, model, k,
    columns or keys, is damaged, is being written to, or is something else.
    """

    def __init__(
        self,
        path: str | Path,
        tokenizer: str | Vocabulary = "",
        model: str = "",
        k: int = 20,
        columns: Sequence[list[Any]] = (),
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.k = k
        self.vocabulary = read_vocabulary(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self.columns = [*_columns(k), *columns]
        self._more = more or {}
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UserError(f"{path}: can't be written ({error.strerror}); name another file") from None
        try:
            self._end = self._open(_header(k, model, self.vocabulary, self.columns) | self._more)
        except BaseException:
            self.close()
            raise

    def _open(self, header: dict[str, Any]) -> int:
        """Lock the file, drop what isn't whole at its end, and return where it ends then."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path}: another run is writing to it; wait for that one, or end it") from None
        if _is_unstarted(os.pread(self._file, HEADER_LIMIT, 0)):
            self._end = 0
            self._write(_header_line(header))
            _sync_folder(Path(self.path).parent)
            return self._end
        with mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) as data:
            there, start = _read_header(data, self.path)
            _check_tokenizer(there, self.vocabulary, self.path)
            for key in ("model", "k", "columns", *self._more):
                if there.get(key) != header[key]:
                    old, new = (json.dumps(found.get(key), ensure_ascii=False) for found in (there, header))
                    raise UserError(f"{self.path}: was made with {key} {old}, now it is {new}; name another file")
            end = _index(data, start, there["columns"], self.path).end
        os.ftruncate(self._file, end)
        return end

    def append(self, key: str, content: list[dict[str, Any]] | None) -> None:
        """Keep one answer's `logprobs.content` under the journal's key, 64 hex digits; it is on the disk on return.

        Raises ValueError where it can't be packed, UserError where it can't be written; the file is then as it was.
        """
        self.append_all([(key, pack([] if content is None else content, self.k, self.vocabulary.ids))])

    def append_all(self, answers: Iterable[tuple[str, Positions]]) -> None:
        """Keep packed answers by their keys, in one write; they are on the disk on return."""
        self._write(b"".join(_answer(key, positions, self.columns) for key, positions in answers))

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            os.ftruncate(self._file, self._end)  # what a failed write may have left
            while left:
                left = left[os.write(self._file, left) :]
            os.fdatasync(self._file)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
            reason = f"could not be written ({error.strerror})"
            raise UserError(f"{self.path}: {reason}; what it held is kept; make room and run again") from None
        self._end += len(data)

    def close(self) -> None:
        """Close the file and give up its lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Reader(Mapping[str, Positions]):
    """A file's answers by the journal's key, in the order in which the keys came, as they were when it was opened.

    The arrays are read-only views of the mapped file. `header` has k, model, tokenizer and fingerprint; `superseded`
    is how many answers a later one replaced, `torn` how many bytes at the end are no whole answer. A tokenizer, where
    one is named, must be the one that the file was written with.

    Raises UserError where the file can't be read, is damaged before its end, or has another tokenizer's ids.
    """

    def __init__(self, path: str | Path, tokenizer: str = "") -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                if _is_unstarted(file.read(HEADER_LIMIT)):
                    raise UserError(f"{path}: ends before its first answer; write to it, or delete it")
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f"{path}: can't be read ({error.strerror})") from None
        self.header, start = _read_header(self._data, path)
        if tokenizer:
            _check_tokenizer(self.header, read_vocabulary(tokenizer), path)
        index = _index(self._data, start, self.header["columns"], path)
        self._offsets = index.offsets
        self.superseded = index.superseded
        self.torn = len(self._data) - index.end

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[str]:
        return (key.hex() for key in self._offsets)

    def __getitem__(self, key: str) -> Positions:
        at = self._offset(key)
        _, n, m, *_ = HEAD.unpack_from(self._data, at)
        at += HEAD.size
        arrays: dict[str, np.ndarray] = {}
        for name, dtype, width in self.header["columns"]:
            arrays[name] = np.frombuffer(self._data, dtype, n * width, at)
            at += arrays[name].nbytes
        for name in ("ids", "logprobs"):
            arrays[name] = arrays[name].reshape(n, self.header["k"])
        lengths = np.frombuffer(self._data, "<u4", m, at).tolist()
        at += 4 * m
        escaped = []
        for length in lengths:
            escaped.append(self._data[at : at + length])
            at += length
        known = [arrays.pop(name) for name, _, _ in _columns(self.header["k"])]
        return Positions(*known, escaped, arrays)

    def _offset(self, key: str) -> int:
        try:
            return self._offsets[_hash(key)]
        except (KeyError, ValueError, TypeError):
            raise KeyError(key) from None

    def check(self, key: str) -> None:
        """UserError where an answer is not what was written."""
        at = self._offset(key)
        _, n, m, size, body, _ = HEAD.unpack_from(self._data, at)
        begin = at + HEAD.size
        if crc32(self._data[begin : begin + _body_size(n, m, size, _row_size(self.header["columns"]))]) != body:
            raise UserError(f"{self.path}: answer {key} at byte {at} is damaged; bring a copy, or delete the file")


def verify(path: str | Path) -> dict[str, Any]:
    """Check every answer and count what the file holds.

    `escaped` is the share of tokens, chosen ones and alternatives, that are kept as bytes; `bytes_per_position` is the
    whole file over its positions, None where it has none. Raises UserError as Reader does.
    """
    reader = Reader(path)
    positions = tokens = escaped = 0
    for key, answer in reader.items():
        reader.check(key)
        positions += len(answer.chosen)
        for ids in (answer.ids, answer.chosen):
            tokens += int(np.count_nonzero(ids != PAD))
            escaped += int(np.count_nonzero(ids <= ESCAPED))
    return {
        **{key: reader.header[key] for key in ("k", "model", "tokenizer", "fingerprint")},
        "answers": len(reader),
        "superseded": reader.superseded,
        "positions": positions,
        "bytes_per_position": Path(path).stat().st_size / positions if positions else None,
        "escaped": escaped / tokens if tokens else 0.0,
        "torn": reader.torn,
    }


def _columns(k: int) -> list[list[Any]]:
    """Name, dtype and values a position of each column; the wider dtype first, so that all are aligned."""
    return [["ids", "<i4", k], ["chosen", "<i4", 1], ["logprobs", "<f2", k], ["chosen_logprob", "<f2", 1]]


def _header(k: int, model: str, vocabulary: Vocabulary, columns: list[list[Any]]) -> dict[str, Any]:
    names = {"tokenizer": vocabulary.name, "fingerprint": vocabulary.fingerprint}
    return {"k": k, "model": model, **names, "columns": columns}


def _header_line(header: dict[str, Any]) -> bytes:
    line = MAGIC + json.dumps(header, ensure_ascii=False).encode()[1:]
    return line + b" " * (-(len(line) + 1) % 64) + b"\n"


def _is_unstarted(beginning: bytes) -> bool:
    """Whether a file is empty, or was left in the middle of its header."""
    torn = b"\n" not in beginning and len(beginning) < HEADER_LIMIT
    return torn and beginning[: len(MAGIC)] == MAGIC[: len(beginning)]


def _read_header(data: mmap.mmap, path: str | Path) -> tuple[dict[str, Any], int]:
    """The header, and where it ends."""
    start = data.find(b"\n", 0, HEADER_LIMIT) + 1
    if data[: len(MAGIC)] != MAGIC or not start:
        raise UserError(f"{path}: holds no packed log-probabilities, version 1; name another file")
    try:
        header = json.loads(data[:start])
        _row_size(header["columns"])
        whole = all(column in header["columns"] for column in _columns(header["k"]))
        whole = whole and all(isinstance(header[key], str) for key in ("model", "tokenizer", "fingerprint"))
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"{path}: its first line is damaged; bring a copy, or delete the file")
    return header, start


def _check_tokenizer(header: dict[str, Any], vocabulary: Vocabulary, path: str | Path) -> None:
    if header["fingerprint"] != vocabulary.fingerprint:
        written = Vocabulary(header["tokenizer"], header["fingerprint"])
        raise UserError(f"{path}: was written with {written}, not with {vocabulary}; name that one, or another file")


def _hash(key: str) -> bytes:
    """The journal's key as 32 bytes."""
    data = bytes.fromhex(key)
    if len(data) != 32:
        raise ValueError(f"expected a key of 64 hex digits, got {len(key)}")
    return data


def _row_size(columns: list[list[Any]]) -> int:
    """Bytes of a position."""
    return sum(np.dtype(dtype).itemsize * width for _, dtype, width in columns)


def _body_size(n: int, m: int, size: int, row: int) -> int:
    return -(-(n * row + 4 * m + size) // 4) * 4


def _answer(key: str, positions: Positions, columns: list[list[Any]]) -> bytes:
    """One answer as the file has it."""
    lengths = [len(data) for data in positions.escaped]
    values = vars(positions) | positions.more
    parts = [values[name].astype(dtype).tobytes() for name, dtype, _ in columns]
    body = b"".join([*parts, np.array(lengths, "<u4").tobytes(), *positions.escaped])
    body += bytes(-len(body) % 4)
    head = HEAD.pack(_hash(key), len(positions.chosen), len(lengths), sum(lengths), crc32(body), 0)[:-4]
    return head + struct.pack("<I", crc32(head)) + body


@dataclass(frozen=True)
class _Index:
    offsets: dict[bytes, int]  # where the last answer of each key begins
    superseded: int
    end: int  # of the last whole answer


def _index(data: mmap.mmap, start: int, columns: list[list[Any]], path: str | Path) -> _Index:
    """Step from head to head; UserError where the file is damaged rather than cut off."""
    data.madvise(mmap.MADV_RANDOM)  # a page for each head, not all that lies between
    row = _row_size(columns)
    offsets: dict[bytes, int] = {}
    count, at = 0, start
    while at + HEAD.size <= len(data):
        key, n, m, size, body, head = HEAD.unpack_from(data, at)
        begin = at + HEAD.size
        if crc32(data[at : begin - 4]) != head:
            if _is_zero(data, at):  # after a power cut a file may be longer than what was written
                break
            raise UserError(f"{path}: damaged at byte {at}; `truncate -s {at}` keeps the {count} answers before it")
        end = begin + _body_size(n, m, size, row)
        if end > len(data) or (end == len(data) and crc32(data[begin:end]) != body):
            break
        offsets[key] = at
        count, at = count + 1, end
    data.madvise(mmap.MADV_NORMAL)
    return _Index(offsets, count - len(offsets), at)


def _is_zero(data: mmap.mmap, at: int, step: int = 1 << 20) -> bool:
    return not any(data[i : i + step].strip(b"\0") for i in range(at, len(data), step))


def _sync_folder(folder: Path) -> None:
    """Put a new file's name on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> None:
    """`python -m chat.logprobs verify FILE`: what it holds, or one line on what is wrong with it."""
    parser = argparse.ArgumentParser(description="Check a file of packed log-probabilities and count what it holds.")
    parser.add_argument("command", choices=["verify"])
    parser.add_argument("file")
    with one_line_errors():
        found = verify(parser.parse_args().file)
        print(f"{found['answers']:,} answers, and {found['superseded']:,} that a later one of the same key replaced")
        tokenizer = Vocabulary(found["tokenizer"], found["fingerprint"])
        print(f"{found['positions']:,} positions, k = {found['k']}; model {found['model'] or 'not named'}, {tokenizer}")
        if found["positions"]:
            print(f"{found['bytes_per_position']:.1f} bytes a position; {found['escaped']:.3%} of the tokens as bytes")
        print(
            f"truncated: {found['torn']:,} bytes at the end are no whole answer" if found["torn"] else "not truncated"
        )


if __name__ == "__main__":
    main()
