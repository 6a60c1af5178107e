"""Small invented rows and a tiny model, made anew for each run: nothing is downloaded, nothing is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
# Threads of tiny models wait for one another: beside one busy process the suite took five times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
ROWS = [
    {
        "Question": f"第{i}天咳嗽，{what}，要紧吗？",
        "Complex_CoT": f"先看{what}，再想感染。",
        "Response": f"{what}时去门诊。",
    }
    for i, what in enumerate(
        ["发热38.5℃", "夜里加重", "痰中带血", "胸痛", "气短", "没有别的不舒服", "服药后皮疹", "体重下降"], 1
    )
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a file under tmp_path (text, bytes, or a value as JSON) and return its path."""

    def _write(name: str, content: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            path.write_text(text, encoding="utf-8")
        return str(path)

    return _write


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tiny model, the samples as `tiny_train` and `tiny_eval`, a LoRA adapter that changes something, a recipe."""
    import torch
    import yaml
    from peft import LoraConfig, get_peft_model

    from preprocess.build import Data, build
    from recipes.demo.build_model import build_model, build_tokenizer

    root = tmp_path_factory.mktemp("tiny")
    samples = f"{ROOT}/data/samples/medical_o1_sft.json"
    build(Data(samples, "tiny", f"{root}/data", eval_share=0.15, dataset_dir=str(root)))
    rows = json.loads((root / "data/train.json").read_text(encoding="utf-8"))
    tokenizer = build_tokenizer([row["instruction"] + row["output"] for row in rows], 600)
    model = build_model(tokenizer)
    tokenizer.save_pretrained(root / "model")
    model.save_pretrained(root / "model")
    torch.manual_seed(0)
    adapter = get_peft_model(
        build_model(tokenizer),
        LoraConfig(r=4, target_modules="all-linear", modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
    )
    for name, weight in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    adapter.save_pretrained(root / "adapter")
    recipe = yaml.safe_load((ROOT / "recipes/demo/train.yaml").read_text(encoding="utf-8"))
    recipe |= {"model_name_or_path": f"{root}/model", "dataset_dir": str(root), "output_dir": f"{root}/saves"}
    recipe |= {"dataset": "tiny_train", "eval_dataset": "tiny_eval", "report_to": "none"}
    del recipe["quantization_bit"]
    (root / "train.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return SimpleNamespace(
        root=root, recipe=f"{root}/train.yaml", adapter=f"{root}/adapter", tokenizer=tokenizer, model=model.eval()
    )
