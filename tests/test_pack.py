"""The stored form of a teacher's distributions: exact, small, and refused where it is not what it should be."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from chat.logprobs import HEAD, PAD, Reader, Vocabulary, Writer
from distill.pack import Distribution, Meta, Pack, check, fault, open_writer, row_key, stored, to_positions, verify
from recipe import UserError
from tests.conftest import ROOT

SIZE, K = 50_000, 20
META = Meta("f" * 64, "qwen", 2048, ("a", "b"), "teacher", "e" * 64, 1.0, K, SIZE)
NAMES = Vocabulary("student", META.tokenizer)


def drawn(n: int, k: int = K, size: int = SIZE, number: int = 0) -> Distribution:
    """Softmaxes of random logits over `size` tokens: their k largest and the rest."""
    draw = np.random.default_rng(number)
    logits = draw.normal(0, 4, (n, size))
    logprobs = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
    ids = np.argsort(-logprobs, 1)
    ordered = np.take_along_axis(logprobs, ids, 1)
    tail = np.logaddexp.reduce(ordered[:, k:], axis=1) if k < size else np.full(n, -np.inf)
    return Distribution(ids[:, :k], ordered[:, :k], tail, np.ones(n, bool))


def add(path: Path, rows: dict[str, Distribution], meta: Meta = META) -> None:
    """Append rows to a file of a pack."""
    with open_writer(path, meta, dataclasses.replace(NAMES, fingerprint=meta.tokenizer)) as writer:
        for key, row in rows.items():
            label = np.zeros(len(row.tail))
            writer.append_all([(key, to_positions(row.ids, row.logprobs, row.tail, label, label))])


def key(number: int) -> str:
    return row_key([number, 2], [-100, 2])


def test_what_is_read_back_is_exact_in_130_bytes_a_position(tmp_path: Path) -> None:
    rows = {key(i): drawn(n, size=2000, number=i) for i, n in enumerate((1, 40, 300))}
    add(tmp_path / "0.logprobs", rows)
    pack = Pack.open(tmp_path)
    assert len(pack) == 3 and set(pack) == set(rows) and pack.meta == META
    for name, row in rows.items():
        found = pack.get(name)
        assert found.ids.dtype == np.int64 and np.array_equal(found.ids, row.ids) and found.known.all()
        for ours, theirs in ((found.logprobs, row.logprobs), (found.tail, row.tail)):
            assert ours.dtype == np.float32 and np.array_equal(ours, theirs.astype(np.float16))
    counted = verify(tmp_path)
    assert counted["positions"] == counted["known"] == 341 and counted["rows"] == 3 and counted["repeated"] == 0
    print(f"\n{counted['bytes_per_position']:.2f} bytes a position, 341 positions in 3 rows")
    assert counted["bytes_per_position"] <= 130  # the header and the rows' heads included
    assert pack.get(key(9)) is None and key(9) not in pack


def test_a_row_is_its_ids_and_its_labels() -> None:
    keys = {row_key([1, 2], [-100, 2]), row_key([1, 2], [1, 2]), row_key([1, 2, -100], [2]), row_key([12], [-100, 2])}
    assert len(keys) == 4 and all(re.fullmatch("[0-9a-f]{64}", one) for one in keys)
    assert row_key((1, 2), np.array([-100, 2])) == row_key([1, 2], [-100, 2])


def test_fewer_alternatives_and_positions_that_nobody_knows(tmp_path: Path) -> None:
    row = drawn(3, 4, 4)
    ids, logprobs, tail = row.ids, row.logprobs, row.tail
    ids[1, 2:], logprobs[1, 2:] = PAD, -np.inf
    tail[1] = np.log1p(-np.exp(logprobs[1, :2]).sum())
    ids[2], logprobs[2], tail[2] = PAD, -np.inf, 0
    add(tmp_path / "0.logprobs", {key(0): row}, dataclasses.replace(META, k=4, vocabulary=4))
    found = Pack.open(tmp_path).get(key(0))
    assert found.known.tolist() == [True, True, False]
    assert np.array_equal(found.ids, ids) and np.isneginf(found.tail[0]) and np.isneginf(found.logprobs[1, 2:]).all()
    assert verify(tmp_path)["known"] == 2


def test_the_top_of_more_keeps_the_mass() -> None:
    row = drawn(30, 20, 400)
    few = row.top(3)
    assert few.ids.shape == (30, 3)
    np.testing.assert_allclose(np.exp(few.logprobs).sum(1) + np.exp(few.tail), 1)
    assert fault(few, 400) == ""
    np.testing.assert_allclose(row.top(20).tail, row.tail)


def test_rows_are_found_in_every_file(tmp_path: Path) -> None:
    add(tmp_path / "0.logprobs", {key(0): drawn(2, size=100), key(1): drawn(3, size=100)})
    add(tmp_path / "1.logprobs", {key(1): drawn(3, size=100), key(2): drawn(4, size=100)})
    add(tmp_path / "0.logprobs", {key(3): drawn(5, size=100)})
    pack = Pack.open(tmp_path)
    assert [len(pack.get(key(i)).tail) for i in range(4)] == [2, 3, 4, 5]
    assert verify(tmp_path)["rows"] == 4 and verify(tmp_path)["repeated"] == 1


# --- what is refused

CHANGES = {
    "tokenizer": ("d" * 64, "tokenizer ffffffffffff, here it is dddddddddddd"),
    "template": ("qwen3", "template qwen, here it is qwen3"),
    "cutoff_len": (512, "cutoff_len 2048, here it is 512"),
    "dataset": (("a",), "dataset a, b, here it is a"),
    "teacher": ("other", "teacher teacher, here it is other"),
    "revision": ("c" * 64, "revision eeeeeeeeeeee, here it is cccccccccccc"),
    "k": (21, "stores k = 20 tokens a position, 21 are asked for"),
    "vocabulary": (40_000, "has ids up to 50000, the student's are below 40000"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_pack_than_expected_is_refused(name: str) -> None:
    value, message = CHANGES[name]
    with pytest.raises(UserError, match=f"data/pack: .*{re.escape(message)}"):
        check(META, dataclasses.replace(META, **{name: value}), "data/pack")


def test_what_is_not_asked_about_is_not_refused() -> None:
    check(META, META)
    check(META, dataclasses.replace(META, teacher="", revision="", k=0, vocabulary=0, temperature=0.6))
    check(META, dataclasses.replace(META, k=10, vocabulary=60_000))


def test_a_file_of_other_settings_is_refused(tmp_path: Path) -> None:
    add(tmp_path / "0.logprobs", {key(0): drawn(2, size=100)})
    other = dataclasses.replace(META, revision="c" * 64)
    with pytest.raises(UserError, match=r'made with revision "eeee.*now it is "cccc'):
        add(tmp_path / "0.logprobs", {}, other)
    add(tmp_path / "1.logprobs", {key(1): drawn(2, size=100)}, other)
    with pytest.raises(UserError, match=r"1.logprobs: was not made with the settings of .*0.logprobs"):
        Pack.open(tmp_path)
    with pytest.raises(UserError, match=r"1.logprobs: was made with revision cccc.*, here it is eeee"):
        stored(tmp_path, META)


def test_a_pack_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.logprobs"
    add(path, {key(i): drawn(9, size=100) for i in range(3)})
    whole = path.read_bytes()
    for left in (1, 100, 1300):
        path.write_bytes(whole[:-left])
        with pytest.raises(UserError, match=r"0.logprobs: cut off, \d+ bytes at its end are no row"):
            Pack.open(tmp_path)
    path.write_bytes(whole[:70])
    with pytest.raises(UserError, match="ends before its first answer"):
        Pack.open(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="no distributions of a teacher in it; run `make teach` first"):
        Pack.open(tmp_path)
    with Writer(path, k=3) as writer:
        writer.append(key(0), [])
    with pytest.raises(UserError, match="holds an API's answers, not aligned yet"):
        Pack.open(tmp_path)


def test_a_changed_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.logprobs"
    add(path, {key(i): drawn(9, size=100) for i in range(3)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="is damaged"):
        verify(tmp_path)


def nan(row: Distribution) -> None:
    row.logprobs[1, 2] = np.nan


def nan_tail(row: Distribution) -> None:
    row.tail[1] = np.nan


def too_high(row: Distribution) -> None:
    row.ids[1, 2] = SIZE


def too_low(row: Distribution) -> None:
    row.ids[1, 2] = -2


def rising(row: Distribution) -> None:
    row.logprobs[1, [2, 3]] = row.logprobs[1, [3, 2]] + [0.5, -0.5]
    row.logprobs[1, 3] = row.logprobs[1, 2] + 0.3


def heavy(row: Distribution) -> None:
    row.logprobs[1, 0] += 0.3


def light(row: Distribution) -> None:
    row.tail[1] = -np.inf


def twice(row: Distribution) -> None:
    row.ids[1, 1] = row.ids[1, 0]


def nameless(row: Distribution) -> None:
    row.ids[1, 2] = PAD


FAULTS = {nan: "NaN", nan_tail: "NaN", too_high: "to 50000, but", too_low: "from -2 to", rising: "do not descend"}
FAULTS |= {heavy: "a mass of 1", light: "a mass of 0", nameless: "without a token", twice: "named twice"}


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda one: one.__name__)
def test_what_is_no_distribution_is_refused(tmp_path: Path, spoil) -> None:
    """Rows whose checksums are right: the fault was written."""
    row = drawn(4, size=60)
    row.tail[:] = np.log1p(-np.exp(row.logprobs).sum(1))
    spoil(row)
    add(tmp_path / "0.logprobs", {key(0): drawn(2, size=60), key(1): row})
    pack = Pack.open(tmp_path)
    assert pack.get(key(0)) is not None
    for read in (lambda: pack.get(key(1)), lambda: verify(tmp_path)):
        with pytest.raises(UserError, match=f"0.logprobs: row {key(1)[:12]}: .*{FAULTS[spoil]}"):
            read()


# --- kills

WRITING = """
import sys
from tests.test_pack import META, NAMES, drawn, key, open_writer, to_positions
row = drawn(200, size=300)
with open_writer(sys.argv[1], META, NAMES) as writer:
    done = {one for one in __import__("chat.logprobs").logprobs.Reader(sys.argv[1])}
    for i in range(400):
        if key(i) not in done:
            writer.append_all([(key(i), to_positions(row.ids, row.logprobs, row.tail, row.tail, row.tail))])
            print(i, flush=True)
"""


def test_kill_9_loses_no_row_and_writes_none_twice(tmp_path: Path) -> None:
    path, told = tmp_path / "0.logprobs", []
    for kills in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITING, path], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        if kills < 3:
            told.append(int(process.stdout.readline()))
            time.sleep(0.02 * kills)
            process.send_signal(signal.SIGKILL)
        told += map(int, process.communicate(timeout=60)[0].split())
    found = verify(tmp_path)
    assert found["rows"] == 400 and found["repeated"] == 0 and set(Pack.open(tmp_path)) == {key(i) for i in range(400)}
    assert len(told) == len(set(told))  # what was told once was never written again
    print(f"\n{found['bytes_per_position']:.2f} bytes a position, rows of 200")
    assert found["bytes_per_position"] <= 130


def test_the_command_line_proves_or_refuses_a_pack(tmp_path: Path) -> None:
    path = tmp_path / "0.logprobs"
    add(path, {key(i): drawn(9, size=100) for i in range(3)})

    def command() -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "distill.pack", "verify", str(tmp_path)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)

    done = command()
    assert done.returncode == 0 and "3 rows in 1 files, 0 of them written twice" in done.stdout
    assert "27 positions, 27 with a distribution; k = 20" in done.stdout
    data = bytearray(path.read_bytes())
    start = data.index(b"\n") + 1
    body = bytearray(data[start + HEAD.size : start + HEAD.size + 9 * 128])
    body[9 * 84 : 9 * 84 + 2] = np.float16(np.nan).tobytes()  # the first log-probability, behind ids and chosen
    head = HEAD.pack(*HEAD.unpack_from(data, start)[:4], crc32(body), 0)[:-4]
    data[start : start + HEAD.size + len(body)] = head + crc32(head).to_bytes(4, "little") + body
    path.write_bytes(data)
    assert len(Reader(path)) == 3
    done = command()
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "a log-probability is NaN" in done.stderr
