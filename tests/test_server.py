"""A real `llamafactory-cli api`: started, asked, stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
import yaml

from chat.server import serve
from eval.arms import Arm, read_arms
from eval.batched import folder_of
from eval.predict import Predict, run
from eval.run import read_answers
from preprocess.think import well_formed
from recipe import UserError
from tests.conftest import ROOT
from tests.teacher import teacher


@pytest.fixture
def recipe(tiny: SimpleNamespace, tmp_path: Path) -> str:
    values = yaml.safe_load((ROOT / "recipes/demo/serve.yaml").read_text(encoding="utf-8"))
    values |= {"model_name_or_path": f"{tiny.root}/model", "adapter_name_or_path": tiny.adapter}
    path = tmp_path / "tiny" / "serve.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def gone(port: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while listens(port) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not listens(port)


@pytest.mark.slow
def test_it_answers_with_the_key_only_and_stops_even_on_an_error(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="mine"), serve(recipe, log=f"{tmp_path}/log") as server:
        port = int(server.base_url.split(":")[2].split("/")[0])
        assert server.model == "tiny" and [model.id for model in server.client().models.list()] == ["tiny"]
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=server.base_url, api_key="wrong").models.list()
        sockets = subprocess.run(["ss", "-ltnH"], capture_output=True, text=True, check=False).stdout
        assert all(line.split()[3].startswith("127.0.0.1:") for line in sockets.splitlines() if f":{port} " in line)
        assert server.api_key not in Path(f"{tmp_path}/log").read_text(encoding="utf-8")
        raise RuntimeError("mine")
    assert gone(port)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_process_that_started_it(recipe: str, tmp_path: Path, number: signal.Signals) -> None:
    code = (
        "import sys, time; from chat.server import serve\n"
        "with serve(sys.argv[1], log=sys.argv[2]) as server:\n"
        "    print(server.base_url, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, recipe, f"{tmp_path}/log"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    port = int(parent.stdout.readline().split(":")[2].split("/")[0])
    assert listens(port)
    parent.send_signal(number)
    parent.wait()
    assert gone(port)


def read(folder: Path, arm: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"answers-{arm}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_both_arms_answer_the_same_prompts_once(
    tiny: SimpleNamespace, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instructions = tmp_path / "instructions.jsonl"
    instructions.write_text(
        '{"id": "i1", "question": "三句话说说发热。", "checks": [{"check": "len.sentences", "most": 3}]}\n'
    )
    settings = Predict(
        recipe, "tiny_eval", str(tmp_path), str(instructions), limit=3, max_tokens=8, dataset_dir=str(tiny.root)
    )
    run(settings)
    base, tuned = (read(tmp_path, arm) for arm in ("base", "tuned"))
    assert [row["id"] for row in base] == [row["id"] for row in tuned] and len(base) == 4
    assert [row["asked"] for row in base] == [row["asked"] for row in tuned]
    assert base[3]["checks"] == [{"check": "len.sentences", "most": 3}] and "checks" not in base[0]
    assert [row["raw"] for row in base] != [row["raw"] for row in tuned]
    assert all(row["finish_reason"] == "length" and row["tokens"] == 8 for row in base)
    assert {row["weights"] for row in base}.isdisjoint(row["weights"] for row in tuned)
    before = (tmp_path / "answers-tuned.jsonl").read_bytes()
    monkeypatch.setattr("eval.predict.serve", lambda *_: pytest.fail("a server was started, though all is answered"))
    run(settings)
    assert (tmp_path / "answers-tuned.jsonl").read_bytes() == before


@pytest.mark.slow
def test_many_at_a_time_is_the_same_from_the_same_weights(
    tiny: SimpleNamespace, recipe: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    del values["quantization_bit"]  # what is merged is not in 4 bits
    Path(recipe).write_text(yaml.safe_dump(values), encoding="utf-8")
    given = {"limit": 6, "max_tokens": 24, "dataset_dir": str(tiny.root)}
    for engine in ("llamafactory", "transformers"):
        run(Predict(recipe, "tiny_eval", str(tmp_path / engine), engine=engine, **given))
    for arm in ("base", "tuned"):
        one, other = (read(tmp_path / engine, arm) for engine in ("llamafactory", "transformers"))
        assert [row["raw"] for row in one] == [row["raw"] for row in other]
        assert [row["engine"] for row in other] == ["transformers"] * 6 and one[0]["weights"] == other[0]["weights"]
    assert not (tmp_path / "transformers/.serve").exists()
    arms = read_arms(["base", f"tuned={tiny.adapter}"])
    shutil.copy(tmp_path / "transformers/answers-base.jsonl", tmp_path / "llamafactory")
    with pytest.raises(UserError, match=r"different engines \(base by transformers, tuned by llamafactory\)"):
        read_answers(str(tmp_path / "llamafactory"), arms, f"{tiny.root}/model")


def test_another_spelling_of_the_prompt_is_refused(recipe: str, tmp_path: Path) -> None:
    values = yaml.safe_load(Path(recipe).read_text(encoding="utf-8")) | {"enable_thinking": False}
    Path(recipe).write_text(yaml.safe_dump(values), encoding="utf-8")
    asked = [[{"role": "user", "content": "咳嗽三周，要紧吗？"}]]
    with pytest.raises(UserError, match=r"template qwen3: transformers would ask '咳嗽三周，要紧吗？' with \d+ tokens"):
        folder_of(Arm("base", "base"), recipe, tmp_path / "served", asked)


def test_an_arm_may_be_a_server_elsewhere(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-0123456789")
    with (
        teacher(style="cot", faults=0.2, kinds="500") as one,
        teacher(style="cot", thought="inline", refuses="top_p") as two,
    ):
        arms = [f"a={one.base_url}#teacher", f"b={two.base_url}#teacher"]
        settings = Predict("recipes/demo/serve.yaml", "tiny_eval", str(tmp_path), arms=arms, dataset_dir=str(tiny.root))
        with pytest.raises(UserError, match=r"does not support top_p.; change what is asked"):
            run(settings)
        answered = one.stats()["answers"]
        two.set(refuses="")
        run(settings)
        assert one.stats()["answers"] == answered == 37
    rows = {arm: read(tmp_path, arm) for arm in "ab"}
    assert all(
        row["raw"] == f"<think>\n{row['think']}\n</think>\n\n{row['answer']}" for row in [*rows["a"], *rows["b"]]
    )
    assert [row["asked"] for row in rows["a"]] == [row["asked"] for row in rows["b"]]


def test_answers_of_other_weights_are_not_taken(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that knows the arms by name: new weights under the old name are asked again."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-0123456789")
    adapter = tmp_path / "adapter"
    shutil.copytree(tiny.adapter, adapter)
    recipe = tmp_path / "serve.yaml"
    recipe.write_text(f"model_name_or_path: {tiny.root}/model\nadapter_name_or_path: {adapter}\n")
    with teacher(style="cot", thought="closing", models="base,tuned") as server:
        settings = Predict(
            str(recipe),
            "tiny_eval",
            str(tmp_path / "out"),
            base_url=server.base_url,
            limit=3,
            dataset_dir=str(tiny.root),
        )
        run(settings)
        before, first = server.stats()["answers"], read(tmp_path / "out", "tuned")
        with open(next(adapter.glob("*.safetensors")), "r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x01")
        run(settings)
        assert server.stats()["answers"] == before + 3
    second = read(tmp_path / "out", "tuned")
    assert {row["weights"] for row in first}.isdisjoint(row["weights"] for row in second)
    assert all(
        well_formed(row["raw"]) and row["engine"] == "server" for row in second
    )  # the template opens the thought


@pytest.mark.slow
def test_a_server_that_can_not_start_says_why(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log: llamafactory-cli api ended with code 1; its last line: .*Error"):  # noqa: SIM117
        with serve(recipe, ["adapter_name_or_path=no_such_adapter"], log=f"{tmp_path}/log"):
            pytest.fail("it started")


def test_a_missing_model_folder_is_named_at_once(recipe: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"serve\.yaml: model_name_or_path: no folder models/none"):  # noqa: SIM117
        with serve(recipe, ["model_name_or_path=models/none"], log=f"{tmp_path}/log"):
            pytest.fail("it started")


def test_a_missing_adapter_is_named_before_any_server_starts(tiny: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text(f"model_name_or_path: x\nadapter_name_or_path: {tmp_path}\n")
    with pytest.raises(
        UserError, match=r"arms: tuned: .* has no adapter_config\.json and no config\.json; train it first"
    ):
        run(Predict(f"{tmp_path}/serve.yaml", "tiny_eval", str(tmp_path), dataset_dir=str(tiny.root)))


def test_a_proxy_is_not_asked_about_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from chat.server import Server

    monkeypatch.setitem(os.environ, "HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setitem(os.environ, "ALL_PROXY", "http://127.0.0.1:9")
    client = Server("http://127.0.0.1:8/v1", "key", "m").client()
    assert not client._client._mounts
