"""An API's log-probabilities on the student's tokens: by bytes, what is cut differently masked, nothing guessed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
from functools import cache
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from transformers.convert_slow_tokenizer import bytes_to_unicode

from chat.logprobs import Writer, read_vocabulary
from distill.align import UNTOLD, align, common, likeliest, matches
from distill.pack import Pack, verify
from distill.score import Row, load_rows, read_recipe, score
from distill.settings import Distill
from preprocess.build import Data, build
from recipe import UserError
from recipes.demo.build_model import build_tokenizer
from tests.conftest import ROOT
from tests.teacher import teacher, tokens

K = 5
COUNT = 12

Content = list[dict[str, Any]]


def key(number: int) -> str:
    return f"{number:064x}"


@pytest.fixture(scope="module")
def given(tiny: SimpleNamespace) -> list[dict[str, str]]:
    """The first rows of the training data."""
    return json.loads((tiny.root / "data/train.json").read_text(encoding="utf-8"))[:COUNT]


@pytest.fixture(scope="module")
def rows(tiny: SimpleNamespace) -> list[Row]:
    return load_rows(read_recipe(tiny.recipe), COUNT)[0]


@pytest.fixture(scope="module")
def other(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tokenizer of fewer and other merges than the student's."""
    folder = tmp_path_factory.mktemp("other")
    tokenizer = build_tokenizer(["今天天气很好，我们去公园散步吧。胸痛发热咳嗽。" * 3, "要先排除可以" * 5], 500)
    tokenizer.save_pretrained(folder)
    return SimpleNamespace(folder=str(folder), tokenizer=tokenizer)


@cache
def bytes_of(tokenizer: Any) -> dict[int, bytes]:
    """By another table of characters than the one under test."""
    byte = {char: number for number, char in bytes_to_unicode().items()}
    found = {}
    for text, number in tokenizer.get_vocab().items():
        plain = number in tokenizer.added_tokens_decoder
        found[number] = text.encode() if plain else bytes(byte[char] for char in text)
    return found


def reply(text: str, tokenizer: Any, as_ids: bool = False, mass: float = 0.9) -> Content:
    """What OpenAI's API returns for `text`: each token's bytes, K alternatives, the chosen one the second of them."""
    names, draw = bytes_of(tokenizer), random.Random(text)

    def token(number: int, x: float) -> dict[str, Any]:
        shown = f"token_id:{number}" if as_ids else names[number].decode(errors="replace")
        return {"token": shown, "bytes": list(shown.encode() if as_ids else names[number]), "logprob": x}

    content = []
    for chosen in tokenizer.encode(text, add_special_tokens=False):
        others = draw.sample([number for number in names if number != chosen], K - 1)
        weights = [K - i + draw.random() / 2 for i in range(K)]
        values = [float(np.log(mass * weight / sum(weights))) for weight in weights]
        top = [token(*pair) for pair in zip([others[0], chosen, *others[1:]], values, strict=True)]
        content.append(token(chosen, values[1]) | {"top_logprobs": top})
    return content


def label(
    folder: Path, given: list[dict[str, str]], replies: list[Content], tokenizer: str = "", temperature: float = 0.6
) -> Path:
    """What the label step leaves of these answers; the path of answers.logprobs."""
    folder.mkdir()
    with Writer(folder / "answers.logprobs", tokenizer=tokenizer, model="api", k=K) as writer:
        for number, content in enumerate(replies):
            writer.append(key(number), content)
    labelled = [{"id": row["id"], "journal": key(number)} for number, row in enumerate(given)]
    lines = "".join(json.dumps(row) + "\n" for row in labelled)
    (folder / "labelled.jsonl").write_text(lines, encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps({"settings": {"temperature": temperature}}))
    return folder / "answers.logprobs"


@pytest.fixture
def settings(tiny: SimpleNamespace, tmp_path: Path) -> Distill:
    return Distill(
        train=tiny.recipe,
        pack=f"{tmp_path}/pack",
        logprobs=f"{tmp_path}/label/answers.logprobs",
        k=K,
        limit=COUNT,
    )


# --- with the student's own tokenizer


@pytest.mark.parametrize("as_ids", [False, True])
def test_the_same_tokenizer_is_aligned_exactly(
    tiny: SimpleNamespace,
    settings: Distill,
    tmp_path: Path,
    given: list[dict[str, str]],
    rows: list[Row],
    as_ids: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replies = [reply(row["output"], tiny.tokenizer, as_ids) for row in given]
    label(tmp_path / "label", given, replies, "" if as_ids else f"{tiny.root}/model")
    score(dataclasses.replace(settings, teacher=f"{tiny.root}/model" if as_ids else ""))
    pack, ids = Pack.open(settings.pack), {data: number for number, data in bytes_of(tiny.tokenizer).items()}
    assert len(pack) == COUNT and pack.meta.temperature == 1 and pack.meta.teacher == "api" and pack.meta.k == K
    for row, content in zip(rows, replies, strict=True):
        found = pack.get(row.key)
        assert found.known.tolist() == [True] * len(content) + [False] * 2  # the end token and its newline: not said
        for i, position in enumerate(content):
            top = position["top_logprobs"]
            named = [int(one["token"][9:]) if as_ids else ids[bytes(one["bytes"])] for one in top]
            assert found.ids[i].tolist() == named and named[1] == row.labels[row.scored[i]]
            values = np.array([one["logprob"] for one in top]).astype(np.float16)
            assert np.array_equal(found.logprobs[i], values)
            assert np.exp(found.tail[i]) == pytest.approx(1 - np.exp(values.astype(float)).sum(), abs=1e-4)
    assert verify(settings.pack)["known"] == sum(map(len, replies))
    said = capsys.readouterr().out
    assert f"{COUNT} rows, {COUNT} of them with the teacher's answer" in said
    assert "100.0% of the alternatives are tokens of the student" in said and "\n  0 where the teacher's" in said


def test_fewer_alternatives_are_the_likeliest(
    tiny: SimpleNamespace, settings: Distill, tmp_path: Path, given: list[dict[str, str]], rows: list[Row]
) -> None:
    replies = [reply(row["output"], tiny.tokenizer) for row in given]
    for content in replies:
        for position in content:
            position["top_logprobs"].reverse()  # a server's order is its own
    label(tmp_path / "label", given, replies, f"{tiny.root}/model")
    align(dataclasses.replace(settings, k=2))
    found = Pack.open(settings.pack).get(rows[0].key)
    assert found.ids.shape[1] == 2 and (found.ids[:-2, 1] == rows[0].labels[rows[0].scored[0] : -2]).all()
    assert (np.exp(found.tail[:-2]) > 0.1).all()
    with pytest.raises(UserError, match=r"answers.logprobs: stores k = 5 tokens a position, 6 are asked for"):
        align(dataclasses.replace(settings, k=6))


# --- with another one


def boundaries(tokens: list[bytes]) -> list[tuple[int, int]]:
    ends = list(accumulate(map(len, tokens)))
    return list(zip([0, *ends[:-1]], ends, strict=True))


def test_tokens_that_are_cut_differently_are_masked(
    tiny: SimpleNamespace,
    other: SimpleNamespace,
    settings: Distill,
    tmp_path: Path,
    given: list[dict[str, str]],
    rows: list[Row],
) -> None:
    replies = [reply(row["output"], other.tokenizer) for row in given]
    label(tmp_path / "label", given, replies, other.folder)
    loose = dataclasses.replace(settings, teacher=other.folder, min_match=0.0)
    counts, pack, ours = align(loose), Pack.open(settings.pack), bytes_of(tiny.tokenizer)
    masked = 0
    for row, content in zip(rows, replies, strict=True):
        student = boundaries([ours[row.labels[place]] for place in row.scored[:-2]])
        teacher = boundaries([bytes(one["bytes"]) for one in content])
        found = pack.get(row.key)
        assert [*found.known] == [one in teacher for one in student] + [False] * 2
        for i in np.flatnonzero(found.known):
            position = content[teacher.index(student[i])]
            spelled = {bytes(one["bytes"]): np.float16(one["logprob"]) for one in position["top_logprobs"]}
            kept = {ours[n]: x for n, x in zip(found.ids[i].tolist(), found.logprobs[i], strict=True) if n >= 0}
            assert kept == {data: x for data, x in spelled.items() if data in ours.values()}
        masked += int((~found.known[:-2]).sum())
    assert counts["known"] > 0 and masked == counts["common"] - counts["known"] > 100
    assert counts["mapped"] < counts["alternatives"]


def test_another_vocabulary_is_refused_with_the_share_that_matches(
    other: SimpleNamespace, settings: Distill, tmp_path: Path, given: list[dict[str, str]]
) -> None:
    label(tmp_path / "label", given, [reply(row["output"], other.tokenizer) for row in given], other.folder)
    with pytest.raises(
        UserError, match=r": (\d\d\.\d)% of the teacher's tokens match the student's, expected min_match"
    ):
        align(dataclasses.replace(settings, teacher=other.folder))
    assert not list(Path(settings.pack).glob("*")) and not list(Path(settings.pack).glob(".*"))


def test_the_tokenizer_of_a_servers_ids_must_be_known(
    tiny: SimpleNamespace, other: SimpleNamespace, settings: Distill, tmp_path: Path, given: list[dict[str, str]]
) -> None:
    replies = [reply(row["output"], tiny.tokenizer, True) for row in given]
    label(tmp_path / "label", given, replies)
    with pytest.raises(UserError, match="holds a server's token ids; name the folder of its tokenizer"):
        align(settings)
    label(tmp_path / "named", given, replies, f"{tiny.root}/model")
    with pytest.raises(UserError, match=r"was written with tokenizer model \(sha256 .*, not with tokenizer other"):
        align(dataclasses.replace(settings, logprobs=f"{tmp_path}/named/answers.logprobs", teacher=other.folder))


def test_parts_of_characters_are_not_guessed(
    tiny: SimpleNamespace, settings: Distill, tmp_path: Path, given: list[dict[str, str]], rows: list[Row]
) -> None:
    """A server that tells U+FFFD for what is no whole character: whatever is known is still right."""
    replies = [reply(row["output"], tiny.tokenizer) for row in given]
    for content in replies:
        for position in content:
            for one in (position, *position["top_logprobs"]):
                one["bytes"] = list(one["token"].encode())
    label(tmp_path / "label", given, replies, f"{tiny.root}/model")
    counts = align(dataclasses.replace(settings, min_match=0.0))
    ours, pack = bytes_of(tiny.tokenizer), Pack.open(settings.pack)
    for row, content in zip(rows, replies, strict=True):
        found = pack.get(row.key)
        for i in np.flatnonzero(found.known):
            assert ours[row.labels[row.scored[i]]] == bytes(content[i]["bytes"])
            assert all("\ufffd".encode() not in ours[number] for number in found.ids[i].tolist() if number >= 0)
    assert counts["spoken"] > counts["common"] and "answered" in counts


# --- texts that differ


def test_a_json_answer_is_aligned_string_by_string() -> None:
    row = '<think>\n平卧加重。\n</think>\n\n{"reason": "夜间咳嗽，平卧加重", "diseases": "哮喘"}'.encode()
    said = (
        '好的，<think>平卧加重。</think>```json\n{\n  "diseases":"哮喘",\n  "reason":"夜间咳嗽，平卧加重"\n}'.encode()
    )
    found = {
        row[begin:end].decode(): said[begin + shift : end + shift].decode() for begin, end, shift in common(row, said)
    }
    assert found == {one: one for one in ("平卧加重。", '"reason"', '"夜间咳嗽，平卧加重"', '"diseases"', '"哮喘"')}


def test_a_reason_that_was_made_the_thought_is_the_answers() -> None:
    answer = '{"reason": "胸痛两天", "diseases": "冠心病"}'
    row = f"<think>\n胸痛两天\n</think>\n\n{answer}".encode()
    ((begin, end, shift),) = common(row, answer.encode())
    assert row[begin:end].decode() == answer and begin + shift == 0


def test_what_stands_there_twice_is_not_aligned() -> None:
    assert list(common("咳嗽".encode(), "咳嗽，咳嗽".encode())) == []
    assert list(common("咳嗽".encode(), "咳嗽。".encode())) == [(0, 6, 0)]
    thought, answer = "<think>\n咳。\n</think>\n\n感冒".encode(), "<think>咳。感冒?</think>感冒".encode()
    assert [(begin, end) for begin, end, _ in common(thought, answer)] == [(8, 14)]  # 感冒 twice behind the thought


def test_a_hole_in_what_was_said_is_no_text() -> None:
    assert matches([b"ab", b"c"], [b"ab", UNTOLD, b"c"]) == {}
    assert matches([b"ab", b"c"], [UNTOLD, b"ab", b"c", UNTOLD]) == {0: 1, 1: 2}


def test_what_matches_is_the_same_bytes_whatever_the_cut() -> None:
    dice = random.Random(0)

    def cut(data: bytes) -> list[bytes]:
        ends = sorted({*dice.sample(range(1, len(data)), dice.randrange(len(data))), len(data)})
        return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    known = 0
    for _ in range(2000):
        thought, answer = ("".join(dice.choices("咳嗽ab，", k=dice.randrange(1, 9))) for _ in range(2))
        ours = f"<think>\n{thought}\n</think>\n\n{answer}".encode()
        theirs = dice.choice([ours, f"<think>{thought}</think>{answer}".encode(), answer.encode(), b"?" + ours])
        ours, theirs = cut(ours), cut(theirs)
        places = [list(accumulate(map(len, tokens), initial=0)) for tokens in (ours, theirs)]
        shifts = set()
        for i, j in matches(ours, theirs).items():
            if j is not None:
                assert ours[i] == theirs[j]
                shifts.add(places[1][j] - places[0][i])
                known += 1
        assert len(shifts) <= 2  # of the thought and of the answer
    assert known > 1000


def test_alternatives_are_tokens_of_the_student_or_none() -> None:
    ids = {b"a": 1, b"b": 2, b"c": 3}
    alternatives = [(b"b", -2.0), (b"a", -1.0), (b"zz", -1.5), (b"c", -3.0), (b"c", -4.0), (b"", -0.5)]
    assert likeliest(alternatives, ids) == [(1, -1.0), (2, -2.0)]  # c twice: one of them isn't


# --- which answer is a row's


def dataset(tiny: SimpleNamespace, folder: Path, given: list[dict[str, str]]) -> str:
    """A recipe of rows of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(given, ensure_ascii=False), encoding="utf-8")
    columns = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    (folder / "dataset_info.json").write_text(json.dumps({"own": {"file_name": "rows.json", "columns": columns}}))
    values = yaml.safe_load(Path(tiny.recipe).read_text(encoding="utf-8"))
    values |= {"dataset": "own", "dataset_dir": str(folder), "eval_dataset": None, "do_eval": False}
    (folder / "train.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return f"{folder}/train.yaml"


def test_the_same_answer_to_two_questions_is_told_apart(
    tiny: SimpleNamespace, settings: Distill, tmp_path: Path, given: list[dict[str, str]]
) -> None:
    one, two, three, four = (dict(row, id=str(n), output=given[0]["output"]) for n, row in enumerate(given[:4]))
    four["id"] = three["id"]  # which of the two answers is meant can't be told
    train = dataset(tiny, tmp_path / "data", [one, two, three, given[9]])
    replies = [reply(one["output"], tiny.tokenizer, mass=mass) for mass in (0.5, 0.7, 0.8, 0.9)]
    label(tmp_path / "label", [one, two, three, four], replies, f"{tiny.root}/model")
    counts = align(dataclasses.replace(settings, train=train))
    assert counts["rows"] == 4 and counts["answered"] == 2
    pack = Pack.open(settings.pack)
    first, second, *others = load_rows(read_recipe(train))[0]
    for row, left in ((first, 0.5), (second, 0.3)):
        assert np.exp(pack.get(row.key).tail[0]) == pytest.approx(left, abs=1e-3)
    assert [pack.get(row.key) for row in others] == [None, None]


def test_a_data_set_of_other_answers_is_refused(
    tiny: SimpleNamespace, settings: Distill, tmp_path: Path, given: list[dict[str, str]]
) -> None:
    strangers = [dict(row, id=f"x{row['id']}") for row in given]
    label(tmp_path / "label", strangers, [reply(row["output"], tiny.tokenizer) for row in given])
    with pytest.raises(UserError, match=r"no row of the data set is one of its answers; was it made of labelled.jsonl"):
        align(settings)


def test_probabilities_that_are_none_are_refused(
    tiny: SimpleNamespace, settings: Distill, tmp_path: Path, given: list[dict[str, str]]
) -> None:
    replies = [reply(row["output"], tiny.tokenizer, mass=1.3) for row in given]
    label(tmp_path / "label", given, replies, f"{tiny.root}/model")
    with pytest.raises(UserError, match=r"row \w{12}: the teacher's probabilities at token 0 add up to 1.300, not 1"):
        align(settings)
    assert not list(Path(settings.pack).glob("*"))


def test_a_damaged_answer_is_refused(
    tiny: SimpleNamespace, settings: Distill, tmp_path: Path, given: list[dict[str, str]]
) -> None:
    path = label(tmp_path / "label", given, [reply(row["output"], tiny.tokenizer) for row in given])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        align(settings)


@pytest.mark.slow
def test_from_the_label_step_to_a_pack(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """A server that cuts its answer otherwise than the student, and tells nothing about its thought's tokens."""
    samples = ROOT / "data/samples/camp_data_step_1_without_answer.jsonl"
    with teacher() as server:
        given = [f"input={samples}", f"output={tmp_path}", f"base_url={server.base_url}", "model=teacher", "limit=12"]
        line = [sys.executable, "-m", "preprocess.label", "recipes/healthai/label.yaml", *given, "top_logprobs=5"]
        environment = os.environ | {"OPENAI_API_KEY": "sk-planted-0123456789"}
        subprocess.run(line, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
    build(Data(f"{tmp_path}/labelled.jsonl", "own", f"{tmp_path}/data", think_from="reason", dataset_dir=str(tmp_path)))
    values = yaml.safe_load(Path(tiny.recipe).read_text(encoding="utf-8"))
    values |= {"dataset": "own_train", "eval_dataset": "own_eval", "dataset_dir": str(tmp_path), "cutoff_len": 4096}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    settings = Distill(f"{tmp_path}/train.yaml", f"{tmp_path}/pack", logprobs=f"{tmp_path}/answers.logprobs", k=5)
    counts = align(dataclasses.replace(settings, min_match=0.0))
    assert counts["rows"] == counts["answered"] >= 8 and counts["common"] > counts["known"] > 100
    ours, pack = bytes_of(tiny.tokenizer), Pack.open(settings.pack)
    for row in load_rows(read_recipe(settings.train))[0]:
        found, spelled = pack.get(row.key), [ours[row.labels[place]] for place in row.scored]
        answer = b"".join(spelled).partition(b"</think>\n\n")[2].decode()
        known = [spelled[i] for i in np.flatnonzero(found.known)]
        assert known and set(known) <= set(tokens(answer))
        assert not found.known[: spelled.index(b"</think>")].any()


def test_the_fingerprint_of_a_loaded_tokenizer_is_its_files(tiny: SimpleNamespace) -> None:
    from distill.pack import tokenizer_fingerprint

    arguments = read_recipe(tiny.recipe)
    assert tokenizer_fingerprint(load_rows(arguments, 1)[1]) == read_vocabulary(f"{tiny.root}/model").fingerprint
