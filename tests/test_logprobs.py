from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from chat.logprobs import Positions, Reader, Writer, pack, read_vocabulary, verify
from recipe import UserError
from tests.conftest import ROOT

K = 20
LONG = '{"format": "logprobs", "version": 1, ' + "x" * 70_000  # like ours, and no header

Content = list[dict[str, Any]]
Token = dict[str, Any]


def key(number: int) -> str:
    return f"{number:064x}"


def train(folder: Path, texts: list[str], vocabulary: int) -> str:
    """A byte-level BPE tokenizer in a model's folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - 3, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>"])
    folder.mkdir()
    tokenizer.save(f"{folder}/tokenizer.json")
    return str(folder)


@pytest.fixture(scope="module")
def zh(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tokenizer that splits many Chinese characters; `bytes` is by id, by another table."""
    rows = json.loads((ROOT / "data/samples/medical_o1_sft.json").read_text(encoding="utf-8"))
    texts = [row["Response"] for row in rows]
    folder = train(tmp_path_factory.mktemp("zh") / "Zh-600", texts, 600)
    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    byte = {char: number for number, char in bytes_to_unicode().items()}
    by_id = {number: bytes(byte[char] for char in text) for text, number in tokenizer.get_vocab().items()}
    answers = [tokenizer.encode(text).ids for text in texts[:20]]
    return SimpleNamespace(folder=folder, bytes=by_id, answers=answers, ids=read_vocabulary(folder).ids)


def reply(rng: random.Random, chosen: list[int], size: int, token: Callable[[int, list[int]], Token]) -> Content:
    """What a server returns for an answer: at each position K ids of `size`, mostly the chosen one among them.

    `token` has an id and the chosen ids before it.
    """
    content = []
    for i, number in enumerate(chosen):
        top = rng.sample(range(size), K)
        if number not in top and rng.random() < 0.9:
            top[rng.randrange(3)] = number
        weights = sorted((rng.gammavariate(0.1, 1) + 1e-12 for _ in top), reverse=True)
        logprobs = [math.log(weight / sum(weights)) for weight in weights]
        alternatives = [token(n, chosen[:i]) | {"logprob": x} for n, x in zip(top, logprobs, strict=True)]
        own = logprobs[top.index(number)] if number in top else -15.25
        content.append(token(number, chosen[:i]) | {"logprob": own, "top_logprobs": alternatives})
    return content


def with_bytes(zh: SimpleNamespace) -> Callable[[int, list[int]], Token]:
    """OpenAI and DeepSeek: a token's own bytes, and a text that may not be valid."""
    return lambda number, _: {"token": zh.bytes[number].decode(errors="replace"), "bytes": list(zh.bytes[number])}


def with_text(zh: SimpleNamespace) -> Callable[[int, list[int]], Token]:
    """vLLM until 2025, Ollama: the bytes are those of the text, with U+FFFD for what isn't whole."""
    return lambda number, _: as_text(zh.bytes[number].decode(errors="replace"))


def with_context(zh: SimpleNamespace) -> Callable[[int, list[int]], Token]:
    """vLLM since 2026: a part of a character is empty, and the last part has the whole of it."""

    def token(number: int, before: list[int]) -> Token:
        text = zh.bytes[number].decode(errors="replace")
        if not text.endswith("\ufffd"):
            return as_text(text)
        for n in range(1, 1 + min(4, len(before))):
            past = b"".join(zh.bytes[one] for one in before[-n:])
            text = (past + zh.bytes[number]).decode(errors="replace")
            if not text.endswith("\ufffd"):
                return as_text(text.removeprefix(past.decode(errors="ignore")))
        return as_text("")

    return token


def as_text(text: str) -> Token:
    return {"token": text, "bytes": list(text.encode())}


def with_id(number: int, _: list[int]) -> Token:
    """vLLM with `return_tokens_as_token_ids`; the bytes are of no use."""
    return as_text(f"token_id:{number}")


def id_in(token: Token) -> int:
    return int(token["token"].removeprefix("token_id:"))


def of_ids(seed: int, length: int) -> Content:
    rng = random.Random(seed)
    return reply(rng, [rng.randrange(150_000) for _ in range(length)], 150_000, with_id)


def halves(tokens: list[Token]) -> list[float]:
    return np.array([token["logprob"] for token in tokens], np.float64).astype(np.float16).tolist()


def assert_same(answer: Positions, content: Content, name: Callable[[Token], int | bytes]) -> None:
    """Each token is the id, or the bytes, that `name` has for it; each log-probability is its own as fp16."""
    assert (answer.ids.dtype, answer.chosen.dtype) == (np.int32, np.int32)
    assert (answer.logprobs.dtype, answer.chosen_logprob.dtype) == (np.float16, np.float16)
    assert len(answer.ids) == len(answer.logprobs) == len(answer.chosen) == len(answer.chosen_logprob) == len(content)
    for i, position in enumerate(content):
        top = position["top_logprobs"]
        assert [told(answer, number) for number in answer.ids[i]] == [name(token) for token in top]
        assert answer.logprobs[i].tolist() == halves(top)
        assert told(answer, answer.chosen[i]) == name(position)
    assert answer.chosen_logprob.tolist() == halves(content)


def told(answer: Positions, number: int) -> int | bytes:
    return int(number) if number >= 0 else answer.bytes_of(number)


def same(a: Positions, b: Positions) -> bool:
    names = ("ids", "chosen", "logprobs", "chosen_logprob")
    return a.escaped == b.escaped and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)


def file_of(path: Path, contents: list[Content], **options: Any) -> Path:
    with Writer(path, **options) as writer:
        for number, content in enumerate(contents):
            writer.append(key(number), content)
    return path


def test_chinese_answers_come_back_exactly_in_130_bytes_a_position(zh: SimpleNamespace, tmp_path: Path) -> None:
    rng = random.Random(5)
    contents = [reply(rng, ids, 600, with_bytes(zh)) for ids in zh.answers]
    positions = sum(map(len, contents))
    parts = sum(zh.bytes[n].decode(errors="ignore").encode() != zh.bytes[n] for ids in zh.answers for n in ids)
    assert positions >= 2000 and parts > positions / 10

    path = file_of(tmp_path / "a.logprobs", contents, tokenizer=zh.folder, model="教师")

    reader = Reader(path, zh.folder)
    by_bytes = {data: number for number, data in zh.bytes.items()}
    assert list(reader) == [key(number) for number in range(len(contents))]
    for content, answer in zip(contents, reader.values(), strict=True):
        assert_same(answer, content, lambda token: by_bytes[bytes(token["bytes"])])
    each = path.stat().st_size / positions
    as_json = sum(len(json.dumps(content, separators=(",", ":"))) for content in contents) / positions
    print(f"\n{positions:,} positions, k = {K}: {each:.1f} bytes a position, as JSON {as_json:,.0f}")
    assert each <= 130
    assert verify(path) == {
        "k": K, "model": "教师", "tokenizer": "Zh-600", "fingerprint": read_vocabulary(zh.folder).fingerprint,
        "answers": len(contents), "superseded": 0, "positions": positions, "bytes_per_position": each,
        "escaped": 0, "torn": 0,
    }  # fmt: skip


@pytest.mark.parametrize("token, trap", [(with_text, 1000), (with_context, 1)])
def test_what_a_server_decodes_for_display_never_becomes_a_wrong_id(
    zh: SimpleNamespace, token: Callable, trap: int
) -> None:
    replacement = "\ufffd".encode()
    zh = SimpleNamespace(bytes=zh.bytes | {600: replacement}, ids=zh.ids | {replacement: 600}, answers=zh.answers)
    looked_up_wrongly = kept = whole = 0
    for seed, chosen in enumerate(zh.answers[:4]):
        content = reply(random.Random(seed), chosen, 601, token(zh))
        truth = reply(random.Random(seed), chosen, 601, with_id)
        answer = pack(content, K, zh.ids)
        for i, position in enumerate(content):
            numbers = [answer.chosen[i], *answer.ids[i]]
            for number, said, true in zip(
                numbers, [position, *position["top_logprobs"]], [truth[i], *truth[i]["top_logprobs"]], strict=True
            ):
                data = bytes(said["bytes"])
                assert told(answer, number) in (id_in(true), data)
                looked_up_wrongly += zh.ids.get(data, id_in(true)) != id_in(true)
                whole += data == zh.bytes[id_in(true)] != replacement
                kept += number >= 0
    assert looked_up_wrongly >= trap
    assert kept > whole / 3


def test_a_part_of_a_character_is_no_replacement_character() -> None:
    """A vocabulary may have a token for U+FFFD, which servers send for parts of characters."""
    content = [as_text(text) | {"logprob": -1.0} for text in ("\ufffd", "肺", "肺", " \ufffd")]
    answer = pack(content, K, {"\ufffd".encode(): 1, "肺".encode(): 2, " \ufffd".encode(): 3})
    assert [told(answer, number) for number in answer.chosen] == [b"\xef\xbf\xbd", "肺".encode(), 2, b" \xef\xbf\xbd"]


def test_alternatives_that_look_alike_are_kept_as_bytes(zh: SimpleNamespace) -> None:
    """A decoder that cleans up spaces sends " ." as ".": one of the two is another token."""
    top = [as_text(text) | {"logprob": -1.0} for text in (".", "a", ".")]
    content = [as_text(text) | {"logprob": -1.0, "top_logprobs": top} for text in (".", "a", "b")]
    answer = pack(content, K, zh.ids)
    assert [told(answer, number) for number in answer.ids[0, :3]] == [b".", zh.ids[b"a"], b"."]
    assert [told(answer, number) for number in answer.chosen] == [b".", zh.ids[b"a"], zh.ids[b"b"]]


def test_the_servers_ids_come_first(zh: SimpleNamespace) -> None:
    content = of_ids(1, 50)
    assert_same(pack(content, K, zh.ids), content, id_in)
    assert_same(pack(content, K, {}), content, id_in)
    llama = [{"id": 7, "token": "肺", "bytes": list("肺".encode()), "logprob": -0.5, "top_logprobs": []}]
    assert pack(llama, K, zh.ids).chosen.tolist() == [7]
    odd = ["token_id:", "token_id:-1", "token_id:1x", " token_id:1", "token_id:2147483648", "token_id:99999999999"]
    odd_content = [{"token": text, "bytes": None, "logprob": -0.5, "top_logprobs": []} for text in odd]
    answer = pack(odd_content, K, {})
    assert [answer.bytes_of(number).decode() for number in answer.chosen] == odd
    assert pack([odd_content[0] | {"token": "token_id:2147483647"}], K, {}).chosen.tolist() == [2**31 - 1]


def test_tokens_without_an_id_are_kept_as_bytes_and_counted(zh: SimpleNamespace, tmp_path: Path) -> None:
    content = reply(random.Random(2), zh.answers[0], 600, with_bytes(zh))
    alone = file_of(tmp_path / "alone.logprobs", [content])
    assert_same(Reader(alone)[key(0)], content, lambda token: bytes(token["bytes"]))
    assert verify(alone)["escaped"] == 1

    odd = [b"", b"\0\0\xff", "鬱𠮷".encode() * 30_000, b"a"]
    for i, data in enumerate(odd):
        content[i] |= {"token": "?", "bytes": list(data)}
    content[-1] |= {"token": "\ud83d", "bytes": None}
    named = file_of(tmp_path / "named.logprobs", [content], tokenizer=zh.folder)
    answer = Reader(named)[key(0)]
    assert [told(answer, number) for number in answer.chosen[:4]] == [*odd[:3], zh.ids[b"a"]]
    assert answer.bytes_of(answer.chosen[-1]) == b"\xed\xa0\xbd"
    after_the_empty_one = K - sum(number >= 0 for number in answer.ids[1])
    assert after_the_empty_one == K
    assert verify(named)["escaped"] == (4 + K) / (len(content) * (1 + K))


def test_a_vocabulary_maps_bytes_to_one_id_or_to_none(zh: SimpleNamespace, tmp_path: Path) -> None:
    vocabulary = read_vocabulary(zh.folder)
    assert vocabulary.ids == {data: number for number, data in zh.bytes.items()}
    assert vocabulary.ids[b"<|im_end|>"] and vocabulary.ids[b"<think>"]
    assert read_vocabulary(f"{zh.folder}/tokenizer.json") == vocabulary
    copy = shutil.copytree(zh.folder, tmp_path / "copy")
    assert read_vocabulary(str(copy)).fingerprint == vocabulary.fingerprint

    whole = next(
        data for data in vocabulary.ids if len(data) == 3 and data[0] == 0xE5
    )  # "å…", as the vocabulary spells it
    tokenizer = Tokenizer.from_file(f"{zh.folder}/tokenizer.json")
    tokenizer.add_tokens([whole.decode()])
    tokenizer.save(str(tmp_path / "twice.json"))
    twice = read_vocabulary(str(tmp_path / "twice.json"))
    assert twice.ids == {data: number for data, number in vocabulary.ids.items() if data != whole}
    assert twice.fingerprint != vocabulary.fingerprint

    words = Tokenizer(models.WordLevel({"肺": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.save(str(tmp_path / "words.json"))
    assert read_vocabulary(str(tmp_path / "words.json")).ids == {}
    assert len(read_vocabulary(str(tmp_path / "words.json")).fingerprint) == 64


@pytest.mark.parametrize("content", ["", "{}", b"\xff\xfe"])
def test_a_tokenizer_that_cannot_be_read_is_one_error(write: Callable, content: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer.json: .*name a model's folder"):
        Writer(tmp_path / "a.logprobs", tokenizer=str(Path(write("m/tokenizer.json", content)).parent))
    with pytest.raises(UserError, match="nowhere"):
        Writer(tmp_path / "a.logprobs", tokenizer=str(tmp_path / "nowhere"))
    assert not (tmp_path / "a.logprobs").exists()


def test_log_probabilities_are_rounded_to_fp16() -> None:
    def kept(value: float) -> float:
        top = [as_text("a") | {"logprob": value}]
        answer = pack([as_text("a") | {"logprob": value, "top_logprobs": top}], K, {})
        assert answer.chosen_logprob[0] == answer.logprobs[0, 0]
        return float(answer.chosen_logprob[0])

    rng = random.Random(4)
    for _ in range(2000):
        value = -(10 ** rng.uniform(-9, 4.8))
        assert abs(kept(value) - value) <= max(abs(value) / 2048, 3e-8)
    for value in (0.0, -0.5, -65504.0, -math.inf):
        assert kept(value) == value
    assert kept(-9999.0) == -10000
    assert kept(-65520.0) == kept(-70000.0) == kept(-3.4e38) == -65504


def test_positions_with_fewer_alternatives_are_padded(tmp_path: Path) -> None:
    content = of_ids(3, 4)
    content[0]["top_logprobs"] = content[0]["top_logprobs"][:3]
    content[1]["top_logprobs"] = []
    content[2]["top_logprobs"] = None
    answer = Reader(file_of(tmp_path / "a.logprobs", [content]))[key(0)]
    assert (answer.ids == -1).sum(axis=1).tolist() == [K - 3, K, K, 0]
    assert np.array_equal(np.isneginf(answer.logprobs), answer.ids == -1)
    assert answer.chosen.tolist() == [id_in(token) for token in content]


def test_an_answer_may_be_empty_or_huge(tmp_path: Path) -> None:
    part = of_ids(6, 200)
    huge = part * 100
    path = file_of(tmp_path / "a.logprobs", [[], huge, None])
    reader = Reader(path)
    assert [len(answer.chosen) for answer in reader.values()] == [0, 20_000, 0]
    assert reader[key(0)].ids.shape == (0, K)
    once = pack(part, K, {})
    assert np.array_equal(reader[key(1)].ids, np.tile(once.ids, (100, 1)))
    assert np.array_equal(reader[key(1)].logprobs, np.tile(once.logprobs, (100, 1)))
    assert not reader[key(1)].ids.flags.owndata and not reader[key(1)].ids.flags.writeable
    assert reader[key(1)].ids.flags.aligned
    assert verify(file_of(tmp_path / "none.logprobs", []))["bytes_per_position"] is None


@pytest.mark.parametrize(
    "content, message",
    [
        ({"content": []}, "expected a list of tokens, got dict"),
        (["肺"], "position 0: no token as OpenAI's API has it"),
        ([{"token": "肺", "logprob": None}], "position 0: a log-probability is NaN or inf"),
        ([{"token": "肺", "logprob": "x"}], "position 0: no token as"),
        ([{"token": "肺", "logprob": -(10**400)}], "position 0: no token as"),
        ([{"token": 5, "logprob": -1.0}], "position 0: no token as"),
        ([{"token": "肺", "bytes": 9**9, "logprob": -1.0}], "position 0: no token as"),
        ([{"token": "肺", "bytes": [256], "logprob": -1.0}], "position 0: no token as"),
        ([{"token": "肺", "logprob": -1.0, "top_logprobs": {"肺": -1.0}}], "position 0: no token as"),
        ([{"token": "肺", "logprob": math.nan}], "position 0: a log-probability is NaN or inf"),
        ([{"token": "肺", "logprob": math.inf}], "position 0: a log-probability is NaN or inf"),
        ([*of_ids(1, 2), of_ids(1, 1)[0] | {"top_logprobs": of_ids(1, 21)}], "position 2: 21 alternatives, but"),
    ],
)
def test_what_is_no_log_probability_is_refused_and_the_rest_goes_on(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.logprobs"
    with Writer(path) as writer:
        writer.append(key(1), of_ids(1, 3))
        before = path.read_bytes()
        with pytest.raises(ValueError) as error:
            writer.append(key(2), content)
        assert message in str(error.value) and "\n" not in str(error.value)
        assert path.read_bytes() == before
        for wrong in ("", "ab", "g" * 64, "a" * 66):
            with pytest.raises(ValueError):
                writer.append(wrong, [])
        writer.append(key(3), of_ids(3, 3))
    assert list(Reader(path)) == [key(1), key(3)]


def test_a_later_answer_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.logprobs"
    with Writer(path) as writer:
        for number, seed in ((1, 1), (2, 2), (1, 3)):
            writer.append(key(number), of_ids(seed, 5))
    reader = Reader(path)
    assert (list(reader), reader.superseded) == ([key(1), key(2)], 1)
    assert same(reader[key(1)], pack(of_ids(3, 5), K, {}))
    assert key(2) in reader and key(3) not in reader and "no key" not in reader
    assert verify(path)["positions"] == 10


def test_a_file_cut_anywhere_keeps_its_whole_answers_and_goes_on(tmp_path: Path) -> None:
    contents = [of_ids(seed, 3 * seed) for seed in range(5)]
    path = tmp_path / "a.logprobs"
    ends = []
    with Writer(path, model="m") as writer:
        ends.append(path.stat().st_size)
        for number, content in enumerate(contents):
            writer.append(key(number), content)
            ends.append(path.stat().st_size)
    data = path.read_bytes()
    new = of_ids(9, 2)
    for cut in sorted({0, 1, 40, ends[0] - 1, *ends, *(end + d for end in ends[:-1] for d in (1, 47, 51, 52, 53)),
                       *(end - 1 for end in ends[1:]), *range(ends[0], ends[-1], 89)}):  # fmt: skip
        torn = tmp_path / f"cut-{cut}"
        torn.write_bytes(data[:cut])
        whole = [number for number, end in enumerate(ends[1:]) if end <= cut]
        if cut < ends[0]:
            with pytest.raises(UserError, match=f"cut-{cut}: ends before its first answer"):
                Reader(torn)
        else:
            reader = Reader(torn)
            assert list(reader) == [key(number) for number in whole]
            assert all(same(reader[key(n)], pack(contents[n], K, {})) for n in whole)
            assert reader.torn == cut - ends[len(whole)] == verify(torn)["torn"]
        with Writer(torn, model="m") as writer:
            writer.append(key(99), new)
        assert list(Reader(torn)) == [*(key(number) for number in whole), key(99)]
        assert torn.read_bytes() == data[: ends[len(whole)]] + torn.read_bytes()[-len(data_of(new)) :]


def data_of(content: Content) -> bytes:
    """An answer as the module's docstring lays it out, without escaped tokens."""
    answer = pack(content, K, {})
    body = b"".join(
        [
            struct.pack(f"<{answer.ids.size}i", *answer.ids.flatten()),
            struct.pack(f"<{answer.chosen.size}i", *answer.chosen),
            struct.pack(f"<{answer.logprobs.size}e", *answer.logprobs.flatten()),
            struct.pack(f"<{answer.chosen.size}e", *answer.chosen_logprob),
        ]
    )
    body += bytes(-len(body) % 4)
    head = bytes.fromhex(key(99)) + struct.pack("<4I", len(content), 0, 0, crc32(body))
    return head + struct.pack("<I", crc32(head)) + body


def test_the_layout_is_the_documented_one_and_may_hold_more(tmp_path: Path) -> None:
    path = tmp_path / "a.logprobs"
    content = of_ids(8, 7)
    with Writer(path, model="教师", k=K) as writer:
        writer.append(key(99), content)
    line, _, rest = path.read_bytes().partition(b"\n")
    assert (len(line) + 1) % 64 == 0
    header = json.loads(line)
    assert (header["format"], header["version"], header["k"], header["model"]) == ("logprobs", 1, K, "教师")
    assert rest == data_of(content)

    answer = pack(content, K, {})
    tail = np.linspace(0, 1, 7, dtype="<f4")
    columns = [["tail_mass", "<f4", 1], *header["columns"]]
    body = b"".join([tail.tobytes(), *(getattr(answer, name).tobytes() for name, _, _ in header["columns"])])
    body += struct.pack("<2I", 3, 6) + "肺".encode() + b"\xe8\x82\xba\0\xff\xff"
    body += bytes(-len(body) % 4)
    head = bytes.fromhex(key(1)) + struct.pack("<4I", 7, 2, 9, crc32(body))
    line = json.dumps(header | {"template": "qwen3", "temperature": 1.0, "columns": columns}).encode()
    more = tmp_path / "more.logprobs"
    more.write_bytes(line + b"\n" + head + struct.pack("<I", crc32(head)) + body)
    reader = Reader(more)
    read = reader[key(1)]
    assert same(read, Positions(answer.ids, answer.chosen, answer.logprobs, answer.chosen_logprob, read.escaped))
    assert (read.bytes_of(-2), read.bytes_of(-3)) == ("肺".encode(), b"\xe8\x82\xba\0\xff\xff")
    assert reader.header["template"] == "qwen3"
    assert verify(more)["answers"] == 1


def test_damage_is_told_from_a_torn_end(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.logprobs", [of_ids(seed, 4) for seed in range(3)])
    data = path.read_bytes()
    start = data.index(b"\n") + 1
    size = (len(data) - start) // 3

    def damaged(at: int) -> Path:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        return path

    for opened in (Reader, Writer):
        with pytest.raises(
            UserError, match=rf"damaged at byte {start + size}; `truncate -s {start + size}` keeps the 1 "
        ):
            opened(damaged(start + size + 5))
        with pytest.raises(UserError, match=r"first line is damaged|version 1"):
            opened(damaged(3))
    assert len(path.read_bytes()) == len(data)
    assert len(Reader(damaged(start + size + 60))) == 3
    with pytest.raises(UserError, match=f"answer {key(1)} at byte {start + size} is damaged"):
        verify(path)
    run = subprocess.run(
        [sys.executable, "-m", "chat.logprobs", "verify", path], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert (
        run.stderr
        == f"error: {path}: answer {key(1)} at byte {start + size} is damaged; bring a copy, or delete the file\n"
    )

    last = damaged(start + 2 * size + 60)  # a power cut may leave the length without the bytes
    assert len(Reader(last)) == 2
    path.write_bytes(data + bytes(5000))
    assert (len(Reader(path)), Reader(path).torn) == (3, 5000)
    Writer(path).close()
    assert path.read_bytes() == data


def test_verify_prints_what_a_file_holds(zh: SimpleNamespace, tmp_path: Path) -> None:
    content = reply(random.Random(2), zh.answers[0][:100], 600, with_bytes(zh))
    content[0] |= {"token": "鬱", "bytes": None}
    path = file_of(tmp_path / "a.logprobs", [content], tokenizer=zh.folder, model="教师")
    path.write_bytes(path.read_bytes() + b"\1" * 10)
    run = subprocess.run(
        [sys.executable, "-m", "chat.logprobs", "verify", path], cwd=ROOT, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    each = path.stat().st_size / 100
    assert run.stdout.splitlines() == [
        "1 answers, and 0 that a later one of the same key replaced",
        f"100 positions, k = 20; model 教师, {read_vocabulary(zh.folder)}",
        f"{each:.1f} bytes a position; {1 / 2100:.3%} of the tokens as bytes",
        "truncated: 10 bytes at the end are no whole answer",
    ]


def test_another_tokenizer_model_or_k_is_refused(zh: SimpleNamespace, tmp_path: Path) -> None:
    other = train(tmp_path / "Other-300", ["发热咳嗽"], 300)
    path = file_of(tmp_path / "a.logprobs", [of_ids(1, 3)], tokenizer=zh.folder, model="教师", k=K)
    before = path.read_bytes()
    for opened in (Reader, Writer):
        with pytest.raises(UserError, match=r"a.logprobs: was written with tokenizer Zh-600 \(sha256 .*Other-300"):
            opened(path, tokenizer=other)
    for options, message in [
        ({"tokenizer": "", "model": "教师"}, "with tokenizer Zh-600 .* not with no tokenizer"),
        ({"tokenizer": zh.folder, "model": "另一个"}, 'with model "教师", now it is "另一个"'),
        ({"tokenizer": zh.folder, "model": "教师", "k": 5}, "with k 20, now it is 5"),
    ]:
        with pytest.raises(UserError, match=message):
            Writer(path, **options)
    copy = shutil.copytree(zh.folder, tmp_path / "same tokens")
    Writer(path, tokenizer=str(copy), model="教师").close()
    assert len(Reader(path)) == len(Reader(path, str(copy))) == 1
    assert path.read_bytes() == before
    alone = file_of(tmp_path / "alone.logprobs", [of_ids(1, 3)])
    with pytest.raises(UserError, match="written with no tokenizer, not with tokenizer Zh-600"):
        Reader(alone, zh.folder)


@pytest.mark.parametrize(
    "text", ['{"format": "other"}\n', "病历\n" * 99, "no line", "x" * 70_000, '{"format": "x', LONG]
)
def test_a_file_of_something_else_is_left_alone(text: str, write: Callable) -> None:
    path = Path(write("记录.txt", text))
    for opened in (Reader, Writer):
        with pytest.raises(UserError, match=r"记录.txt: holds no packed log-probabilities"):
            opened(path)
    assert path.read_text(encoding="utf-8") == text


def test_a_missing_file_or_folder_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be read"):
        Reader(tmp_path / "none")
    for opened in (Reader, Writer):
        with pytest.raises(UserError, match=r"can't be (read|written) \(Is a directory\)"):
            opened(tmp_path)


def test_a_full_disk_is_one_error_and_writing_goes_on_after_it(tmp_path: Path) -> None:
    path = tmp_path / "a.logprobs"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Writer(path) as writer:
        writer.append(key(1), of_ids(1, 20))
        before = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 999, limits[1]))
        try:
            with pytest.raises(UserError, match=r"could not be written \(File too large\); what it held is kept"):
                writer.append(key(2), of_ids(2, 20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == before
        writer.append(key(3), of_ids(3, 20))
    assert list(Reader(path)) == [key(1), key(3)]
    with pytest.raises(UserError, match="could not be written"):
        writer.append(key(4), of_ids(4, 20))


def test_an_answer_is_synced_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.logprobs"
    synced = []

    def sync(file: int) -> None:
        synced.append(os.fstat(file).st_size)
        if len(synced) == 3:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", sync)
    with Writer(path) as writer:
        writer.append(key(1), of_ids(1, 2))
        size = path.stat().st_size
        with pytest.raises(UserError, match="Input/output error"):
            writer.append(key(2), of_ids(2, 2))
        assert path.stat().st_size == size == synced[1]
        writer.append(key(3), of_ids(3, 2))
    assert list(Reader(path)) == [key(1), key(3)]


CHILD = """
import json, sys
from chat.logprobs import Writer
path, contents, first = sys.argv[1], json.load(open(sys.argv[2])), int(sys.argv[3])
with Writer(path, model="教师") as writer:
    for number in range(first, first + 10_000):
        writer.append(f"{number:064x}", contents[number % len(contents)])
        print(number, flush=True)
"""


def test_kill_9_while_writing_loses_nothing_and_a_second_writer_is_refused(tmp_path: Path, write: Callable) -> None:
    contents = [of_ids(1, 40), [{"token": "鬱" * 2_000_000, "logprob": -0.5}], []]
    packed = [pack(content, K, {}) for content in contents]
    source = write("contents.json", contents)
    path = tmp_path / "a.logprobs"
    rng = random.Random(7)
    acknowledged: list[int] = []
    first = torn = 0
    for kills in range(1, 7):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, path, source, str(first)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        acknowledged.append(int(child.stdout.readline()))
        with pytest.raises(UserError, match="another run is writing to it"):
            Writer(path, model="教师")
        time.sleep(rng.uniform(0, 0.1))
        child.kill()
        acknowledged += map(int, child.communicate()[0].split())
        reader = Reader(path)
        torn += bool(reader.torn)
        numbers = [int(name, 16) for name in reader]
        assert set(acknowledged) <= set(numbers)
        assert numbers == list(range(len(numbers)))
        assert len(numbers) - len(acknowledged) <= kills
        first = len(numbers)
    assert all(same(answer, packed[int(name, 16) % 3]) for name, answer in Reader(path).items())
    assert verify(path)["answers"] == first
    print(f"\n6 kills: {first:,} answers, {len(acknowledged):,} acknowledged, torn ends {torn}")
