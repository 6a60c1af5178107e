"""Real 4-bit QLoRA by `llamafactory-cli train`, on a CPU, in seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from chat.server import _command
from preprocess.build import Data, build
from recipe import load
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def train(tiny: SimpleNamespace, out: Path, *overrides: str) -> list[str]:
    return [
        *(_command(), "train", "recipes/demo/train.yaml"),
        *(f"model_name_or_path={tiny.root}/model", f"dataset_dir={tiny.root}", f"output_dir={out}"),
        *("dataset=tiny_train", "eval_dataset=tiny_eval", "report_to=none", "max_steps=2", "logging_steps=1"),
        *overrides,
    ]


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output[-3000:]
    return output


def state(out: Path) -> dict:
    return json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))


def test_the_demo_recipe_trains_on_what_the_medcot_recipe_builds(
    tiny: SimpleNamespace, tmp_path: Path, write: Callable
) -> None:
    row = {
        "Question": "A man coughs for {} weeks. Why?",
        "Complex_CoT": "Okay, {} weeks is long.",
        "Response": "See a doctor.",
    }
    rows = [{key: text.format(i) for key, text in row.items()} for i in range(60)]
    overrides = [f"input={write('o1.json', rows)}", f"output={tmp_path}/data", f"dataset_dir={tmp_path}"]
    build(load(Data, f"{ROOT}/recipes/medcot/data.yaml", overrides))
    out = tmp_path / "saves"
    log = run(train(tiny, out, f"dataset_dir={tmp_path}", "dataset=medcot_train", "eval_dataset=medcot_eval"))
    assert "Quantizing model to 4 bit with bitsandbytes" in log
    assert (out / "adapter_model.safetensors").exists() and state(out)["global_step"] == 2


def test_a_killed_run_goes_on_from_its_last_checkpoint(tiny: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "saves"
    command = train(tiny, out, "max_steps=60", "save_steps=20")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(out.glob("checkpoint-*")) and not (out / "trainer_state.json").exists()
    log = run(command)
    assert "Resuming training from" in log or "Continuing training from" in log
    history = [row["step"] for row in state(out)["log_history"] if "loss" in row]
    assert history == list(range(1, 61))


def test_wandb_keeps_an_offline_run_with_the_curves(tiny: SimpleNamespace, tmp_path: Path) -> None:
    run(train(tiny, tmp_path / "saves", "report_to=wandb"), WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    for key in ("loss", "grad_norm", "learning_rate", "epoch", "global_step"):
        assert f"train/{key}".encode() in file.read_bytes()
    accepted = run([str(Path(sys.executable).with_name("wandb")), "sync", "--dry-run", str(file.parent)])
    assert "Would sync 1 run" in accepted
