"""Every recipe parses by LLaMA-Factory's own argument classes, and the documents name only what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from eval.predict import Predict
from eval.run import Eval
from preprocess.build import Data
from recipe import load
from tests.conftest import ROOT

OURS = {"data.yaml": Data, "predict.yaml": Predict, "eval.yaml": Eval}
THEIRS = ("train.yaml", "base.yaml", "serve.yaml")
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
HEADINGS = ["model", "method", "dataset", "output", "train", "eval"]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "recipes").rglob("*.md")])


def test_every_yaml_is_of_a_known_step() -> None:
    assert len(RECIPES) == 11
    assert all(path.name in (*OURS, *THEIRS) for path in RECIPES)


@pytest.mark.parametrize("path", [p for p in RECIPES if p.name in OURS], ids=str)
def test_ours_load(path: Path) -> None:
    assert load(OURS[path.name], str(path))


@pytest.mark.parametrize("path", [p for p in RECIPES if p.name in THEIRS], ids=str)
def test_theirs_parse(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import fields

    from llamafactory.hparams import parser
    from transformers import HfArgumentParser

    classes = parser._INFER_ARGS if path.name == "serve.yaml" else parser._TRAIN_ARGS
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert values.keys() <= {field.name for cls in classes for field in fields(cls)}
    if values.get("bf16"):
        values["use_cpu"] = True  # the only change that parsing on a machine without a GPU needs
    HfArgumentParser(classes).parse_dict(values)


@pytest.mark.parametrize("path", [p for p in RECIPES if p.name in THEIRS], ids=str)
def test_headings_and_flat_keys(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert found == [heading for heading in HEADINGS if heading in found] and {"model", "method", "dataset"} <= set(
        found
    )
    assert text.startswith("# ") and all(not isinstance(value, dict) for value in yaml.safe_load(text).values())


def test_a_training_recipe_has_one_name() -> None:
    for path in RECIPES:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name == "train.yaml":
            name = path.parent.name
            assert (values["run_name"], values["output_dir"]) == (name, f"saves/{name}")
            assert (values["dataset"], values["eval_dataset"]) == (f"{name}_train", f"{name}_eval")
            assert "overwrite_output_dir" not in values  # without it a second call resumes
        assert values.get("dataset_dir", ".") == "."


def code_blocks(path: Path) -> list[str]:
    return re.findall(r"```\w*\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_documents_name_only_what_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    commands = [line for block in code_blocks(path) for line in block.splitlines()] + re.findall(r"`([^`]+)`", prose)
    used = [match[1] for line in commands if (match := re.match(r"make ([a-z][a-z-]*)", line))]
    assert set(used) <= targets and (used or path.name not in ("README.md", "README_zh.md") or path.parent != ROOT)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (path.parent / link).exists(), link
    for named in re.findall(r"\b((?:recipes|preprocess|eval|chat|tests|bench)/[\w./-]+\.(?:py|yaml|md|html))", text):
        assert (ROOT / named).exists(), named


def _numbers(line: str) -> list[str]:
    return re.findall(r"\d+(?:[.,]\d+)*", line)


def test_the_two_readmes_keep_step() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README_zh.md"
    assert code_blocks(english) == code_blocks(chinese)
    numbers = [re.findall(r"^\|.*\|$", path.read_text(encoding="utf-8"), re.MULTILINE) for path in (english, chinese)]
    assert len(numbers[0]) == len(numbers[1])
    for ours, theirs in zip(*numbers, strict=True):
        assert _numbers(ours) == _numbers(theirs)


def test_pins_are_exact_and_have_a_reason() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w-]+==[\w.]+ +# .+", line) for line in lines)
    frozen = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    for line in lines + [w for w in (ROOT / "requirements-dev.txt").read_text().splitlines() if w and w[0] != "#"]:
        assert line.split()[0].lower().replace("_", "-") in frozen
