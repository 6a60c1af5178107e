"""Which models are compared, what tells their weights apart, and what they are asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.arms import EDGE, Arm, fingerprint, read_arms
from eval.predict import Predict, prompts
from recipe import UserError


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name, file in (("lora", "adapter_config.json"), ("full", "config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(name.encode() * 9)
    return tmp_path


def test_each_kind_is_told_by_what_is_there(folders: Path) -> None:
    base, lora, full, teacher = read_arms(
        ["base", f"lora={folders}/lora", f"full = {folders}/full", "teacher=https://api.example.com/v1#deepseek-chat"]
    )
    assert base == Arm("base", "base") and base.overrides == ["adapter_name_or_path=null"]
    assert (lora.kind, lora.overrides) == ("adapter", [f"adapter_name_or_path={folders}/lora"])
    assert full.overrides == [f"model_name_or_path={folders}/full", "adapter_name_or_path=null"]
    assert (teacher.kind, teacher.place, teacher.model) == ("server", "https://api.example.com/v1", "deepseek-chat")


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (["base"], "expected two or more"),
        (["base", "base"], "each with a name of its own"),
        (["base", "tuned=saves/none"], "tuned: saves/none has no adapter_config.json and no config.json"),
        (["base", "a b=x"], "'a b' is no name"),
        (["base", "train=x"], "'train' is the name of a figure"),
        (["base", "t=https://api.example.com/v1"], r"t=https://api.example.com/v1#model"),
    ],
)
def test_what_is_no_arm_is_one_line(arms: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_arms(arms)
    assert "\n" not in str(error.value)


def test_prompts_are_the_first_of_a_set_and_some_from_all_over_the_instructions(write: Callable[..., str]) -> None:
    rows = [
        {"id": str(i), "system": "简短。" * (i == 0), "instruction": "咳嗽", "input": "三天", "output": "x"}
        for i in range(3)
    ]
    asked = [{"id": f"i{i}", "question": "发热怎么办？", "checks": [{"check": "lang.zh"}]} for i in range(10)]
    place = Path(write("held.json", rows)).parent
    write("dataset_info.json", {"held": {"file_name": "held.json"}})
    instructions = write("asked.jsonl", "".join(json.dumps(row) + "\n" for row in asked))
    found = prompts(Predict("serve.yaml", "held", "out", instructions, limit=2, dataset_dir=str(place)))
    assert [row["id"] for row in found] == ["0", "1", "i0", "i5"]
    assert found[0]["messages"][0] == {"role": "system", "content": "简短。"} and found[0]["system"] == "简短。"
    assert found[1]["messages"] == [{"role": "user", "content": "咳嗽\n三天"}] and "system" not in found[1]
    assert len(prompts(Predict("serve.yaml", "held", "out", instructions, limit=20, dataset_dir=str(place)))) == 13


def test_a_fingerprint_is_of_the_weights_alone(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(str(folders / "lora"))
    (folders / "lora/README.md").write_text("x")
    assert fingerprint(str(folders / "lora")) == before != fingerprint(str(folders / "full"))
    weights = folders / "lora/model.safetensors"
    weights.write_bytes(b"other" + weights.read_bytes()[5:])
    assert fingerprint(str(folders / "lora")) != before
    monkeypatch.setattr("eval.arms.WHOLE", 0)
    for change in (0, 3 * EDGE - 1):
        data = bytearray(3 * EDGE)
        weights.write_bytes(data)
        before = fingerprint(str(folders / "lora"))
        data[change] = 1
        weights.write_bytes(data)
        assert fingerprint(str(folders / "lora")) != before
    with pytest.raises(UserError, match="no weights in it"):
        fingerprint(str(folders))
