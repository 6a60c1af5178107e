"""Every recipe parses by LLaMA-Factory's own argument classes, and the documents name only what is there."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from distill.settings import Distill
from eval.judge import Judge
from eval.pairs import Pairs
from eval.predict import Predict
from eval.review import Review
from eval.run import Eval
from preprocess.ask import Label
from preprocess.build import Data
from preprocess.download import Download
from preprocess.register import read_registry, registry_text
from recipe import load
from tests.conftest import ROOT

OURS = {
    "download.yaml": Download,
    "label.yaml": Label,
    "data.yaml": Data,
    "predict.yaml": Predict,
    "eval.yaml": Eval,
    "judge.yaml": Judge,
    "review.yaml": Review,
    "pairs.yaml": Pairs,
    "distill.yaml": Distill,
}
TRAIN, INFER = ("train.yaml", "base.yaml"), ("serve.yaml", "export.yaml")
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
THEIRS = [path for path in RECIPES if path.name in (*TRAIN, *INFER)]
FOLDERS = sorted(path.parent for path in RECIPES if path.name == "train.yaml")
HEADINGS = ["model", "method", "dataset", "output", "train", "eval"]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "recipes").rglob("*.md")])
FAMILY = ["medcot", "healthai", "healthai_distill"]
FAMILY_MAY_DIFFER = {"model_name_or_path", "adapter_name_or_path", "template", "dataset", "eval_dataset", "output_dir"}
FAMILY_MAY_DIFFER |= {"run_name", "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "learning_rate"}
FAMILY_MAY_DIFFER |= {"per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"}
VERBS = {"train": "train.yaml", "serve": "serve.yaml", "export": "export.yaml"}


def values_of(folder: Path | str, step: str = "train.yaml") -> dict[str, Any]:
    return yaml.safe_load((ROOT / "recipes" / folder / step).read_text(encoding="utf-8"))


def parse(path: Path, overrides: list[str] | None = None) -> tuple:
    """The recipe with overrides, read and checked as `llamafactory-cli` does, before it looks for a GPU."""
    from llamafactory.hparams import parser
    from omegaconf import OmegaConf
    from transformers import HfArgumentParser

    classes = parser._INFER_ARGS if path.name in INFER else parser._TRAIN_ARGS
    merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_cli(overrides or []))
    values = OmegaConf.to_container(merged)
    assert values.keys() <= {field.name for cls in classes for field in fields(cls)}
    values.pop("deepspeed", None)  # transformers imports deepspeed for it
    if values.get("bf16"):
        values["use_cpu"] = True  # the only change that parsing on a machine without a GPU needs
    return HfArgumentParser(classes).parse_dict(values)


def test_every_yaml_is_of_a_known_step() -> None:
    assert len(RECIPES) == 51 and len(FOLDERS) == 7 and len(THEIRS) == 20
    assert all(path.name in (*OURS, *TRAIN, *INFER, "fsdp.yaml", "scenarios.yaml") for path in RECIPES)


@pytest.mark.parametrize("path", [p for p in RECIPES if p.name in OURS], ids=str)
def test_ours_load(path: Path) -> None:
    assert load(OURS[path.name], str(path))


@pytest.mark.parametrize("path", THEIRS, ids=str)
def test_theirs_parse(path: Path) -> None:
    assert parse(path)


@pytest.mark.parametrize("path", THEIRS, ids=str)
def test_headings_and_flat_keys(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert found == [heading for heading in HEADINGS if heading in found] and {"model", "method", "dataset"} <= set(
        found
    )
    assert text.startswith("# ") and all(not isinstance(value, dict) for value in yaml.safe_load(text).values())
    assert re.search(rf"^#   .*llamafactory-cli \w+ {path.relative_to(ROOT)}$", text, re.MULTILINE)


def test_a_training_recipe_has_one_name() -> None:
    for folder in FOLDERS:
        values, name = values_of(folder), folder.name
        data = {"scale": "medcot"}.get(name, name)
        assert (values["run_name"], values["output_dir"]) == (name, f"saves/{name}")
        assert values["dataset"] == f"{data}_train" and values.get("eval_dataset", f"{data}_eval") == f"{data}_eval"
        assert ("eval_dataset" in values) != ("val_size" in values)
        assert "overwrite_output_dir" not in values  # without it a second call resumes
        assert values["cutoff_len"] % 8 == 0
    for path in RECIPES:
        assert yaml.safe_load(path.read_text(encoding="utf-8")).get("dataset_dir", ".") == "."


def test_serve_and_export_are_of_the_model_that_was_trained() -> None:
    for folder in FOLDERS:
        train = values_of(folder)
        for step in INFER:
            if folder.name == "scale":  # medcot's files take its adapter by override
                continue
            values = values_of(folder, step)
            same = ("model_name_or_path", "template", "finetuning_type")
            assert [values[key] for key in same] == [train[key] for key in same]
            assert values["adapter_name_or_path"] == train["output_dir"]
            if step == "export.yaml":
                assert values["export_dir"] == f"models/{folder.name}_merged"
                assert not {"quantization_bit", "use_unsloth"} & values.keys()  # neither can be merged
            else:
                assert values.get("quantization_bit") == train.get("quantization_bit")


def test_the_7b_recipes_are_one_file_but_for_the_documented_keys() -> None:
    family = {name: values_of(name) for name in FAMILY}
    for name, values in family.items():
        differ = {key for key in values | family["medcot"] if values.get(key) != family["medcot"].get(key)}
        assert differ <= FAMILY_MAY_DIFFER, name
        assert ("adapter_name_or_path" in values) != ("lora_rank" in values)  # an adapter brings its own rank
    text = (ROOT / "recipes/README.md").read_text(encoding="utf-8")
    paragraph = re.search(r"^medcot, healthai and healthai_distill are .*?\n\n", text, re.MULTILINE | re.DOTALL)
    assert paragraph and set(re.findall(r"`(\w+)`", paragraph[0])) == FAMILY_MAY_DIFFER


def test_stages_go_on_from_one_another() -> None:
    for name, before in (("healthai_distill", "healthai"), ("medcot_dpo", "medcot")):
        after, first = values_of(name), values_of(before)
        assert after["adapter_name_or_path"] == first["output_dir"] != after["output_dir"]
        assert all(after[key] == first[key] for key in ("model_name_or_path", "template", "quantization_bit"))
        assert after["learning_rate"] < first["learning_rate"] and "create_new_adapter" not in after
    dpo = values_of("medcot_dpo")  # the reference is the policy as it starts, not the base without its adapter
    assert dpo["ref_model"] == dpo["model_name_or_path"]
    assert dpo["ref_model_adapters"] == dpo["adapter_name_or_path"]
    assert dpo["ref_model_quantization_bit"] == dpo["quantization_bit"]


def test_registry_is_as_written_by_us_and_read_by_llamafactory() -> None:
    from llamafactory.data.parser import get_dataset_list

    assert (ROOT / "dataset_info.json").read_text(encoding="ascii") == registry_text({}, ROOT)
    recipes = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in THEIRS]
    names = {recipe[key] for recipe in recipes for key in ("dataset", "eval_dataset") if key in recipe}
    assert names <= read_registry(ROOT).keys()
    for data in get_dataset_list(sorted(read_registry(ROOT)), str(ROOT)):
        columns = (data.prompt, data.query, data.system, data.response, data.chosen, data.rejected)
        answers = (None, "chosen", "rejected") if data.ranking else ("output", None, None)
        assert columns == ("instruction", "input", "system", *answers)
        assert data.ranking == data.dataset_name.endswith("preferences.json")


def test_accelerate_knows_every_key_of_the_fsdp_config() -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(ROOT / "recipes/scale/fsdp.yaml"))
    assert config.distributed_type == "FSDP" and config.mixed_precision == "bf16"
    assert config.fsdp_config.keys() <= vars(launch_command_parser().parse_args(["train.py"])).keys()


def test_transformers_fills_every_auto_of_the_deepspeed_config() -> None:
    from accelerate.utils.deepspeed import HfDeepSpeedConfig
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    class Config(HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):  # without deepspeed installed the one lacks the other
        def __init__(self, path: str) -> None:
            HfDeepSpeedConfig.__init__(self, path)
            self._dtype, self.mismatches = None, []

    config = Config(str(ROOT / "recipes/scale/zero3.json"))
    arguments = parse(ROOT / "recipes/scale/train.yaml")[2]
    config.trainer_config_process(arguments)
    config.trainer_config_finalize(arguments, SimpleNamespace(config=SimpleNamespace(hidden_size=3584)), 100)
    assert config.is_zero3() and '"auto"' not in json.dumps(config.config)


def variants(path: Path) -> list[tuple[Path, list[str]]]:
    """Every override that a recipe's README shows: `make VERB RECIPE=… ARGS="…"`, a command, or bare `key=value`."""
    text = path.read_text(encoding="utf-8")
    found = []
    for verb, name, line in re.findall(r'make (train|serve|export) RECIPE=(\w+) ARGS="([^"\n]+)"', text):
        found.append((ROOT / "recipes" / name / VERBS[verb], shlex.split(line)))
    for file, line in re.findall(
        r"^.*(?:llamafactory-cli \w+|llamafactory\.launcher) (\S+yaml)(.*)$", text, re.MULTILINE
    ):
        found.append((ROOT / file, [word for word in shlex.split(line.split("`")[0]) if "=" in word]))
    for span in re.findall(r"`([a-z_]+=[^`]+|\"[a-z_]+=[^`]+)`", text):
        found.append((path.parent / "train.yaml", shlex.split(span)))
    return found


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_overrides_in_the_readme_parse(folder: Path) -> None:
    found = variants(folder / "README.md")
    assert len(found) >= (0 if folder.name == "demo" else 6)
    for path, overrides in found:
        assert parse(path, overrides)
    for line in "".join(code_blocks(folder / "README.md")).splitlines():
        if line.startswith("make train") and "ARGS" in line:  # else it would resume the recipe's own run
            assert "output_dir=saves/" in line and "run_name=" in line


def test_overrides_of_our_own_steps_in_the_documents_are_known() -> None:
    found = 0
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        verbs = "label|data|predict|submission|eval"
        for verb, name, line in re.findall(rf'make ({verbs}) RECIPE=(\w+) ARGS="([^"\n]+)"', text):
            step = {"submission": "predict"}.get(verb, verb) + ".yaml"
            assert load(OURS[step], str(ROOT / "recipes" / name / step), shlex.split(line))
            found += 1
    assert found >= 12


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
