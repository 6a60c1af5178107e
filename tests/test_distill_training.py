"""Real training with a teacher's distributions, by the command, on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from chat.server import beside
from tests.conftest import ROOT
from tests.test_training import assert_ends_like, assert_wandb_has, checkpoints, history, kill_when, logged, run

pytestmark = pytest.mark.slow

FIGURES = ("loss", "ce", "kl", "agreement", "without_teacher")


@pytest.fixture(scope="module")
def pack(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distill.yaml for the demo's QLoRA on the tiny rows, and 30 of them scored by the model with its adapter."""
    folder = tmp_path_factory.mktemp("pack")
    recipe = yaml.safe_load((ROOT / "recipes/demo/train.yaml").read_text(encoding="utf-8"))
    recipe |= {"model_name_or_path": f"{tiny.root}/model", "dataset_dir": str(tiny.root), "dataset": "tiny_train"}
    recipe |= {"eval_dataset": "tiny_eval", "report_to": "none", "max_steps": 4, "logging_steps": 1, "max_samples": 40}
    (folder / "train.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    keys = {"train": f"{folder}/train.yaml", "pack": f"{folder}/pack", "teacher": f"{tiny.root}/model", "limit": 30}
    keys |= {"teacher_adapter": tiny.adapter, "alpha": 0.7, "temperature": 2.0, "weight_thought": 3.0}
    (folder / "distill.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    run([sys.executable, "-m", "distill.score", f"{folder}/distill.yaml"])
    return folder


def distilled(pack: Path, out: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "distill.train", f"{pack}/distill.yaml", f"output_dir={out}", *overrides]


def weights(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "adapter_model.safetensors")


def apart(one: Path, other: Path) -> float:
    """How far apart two adapters are, relative to the size of the first."""
    first, second = weights(one), weights(other)
    difference = sum(float((first[name] - second[name]).square().sum()) for name in first)
    return (difference / sum(float(value.square().sum()) for value in first.values())) ** 0.5


def test_without_alpha_a_run_is_llamafactorys_own(tiny: SimpleNamespace, pack: Path, tmp_path: Path) -> None:
    quiet = ("neftune_noise_alpha=null", "gradient_accumulation_steps=3", "do_eval=false")
    log = run(distilled(pack, tmp_path / "ours", *quiet, "alpha=0", "weight_thought=1"))
    assert f"{pack}/pack: a teacher for 30 of 40 rows" in log
    run([beside("llamafactory-cli"), "train", f"{pack}/train.yaml", f"output_dir={tmp_path}/own", *quiet])
    ours, own = history(tmp_path / "ours"), history(tmp_path / "own")
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in own], rel=1e-6)
    assert [row["grad_norm"] for row in ours] == pytest.approx([row["grad_norm"] for row in own], rel=1e-5)
    assert apart(tmp_path / "ours", tmp_path / "own") < 1e-5
    assert all(row.keys() >= set(FIGURES) for row in ours) and any(row["without_teacher"] for row in ours)


@pytest.fixture(scope="module")
def first(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that every other setting is held against."""
    out = tmp_path_factory.mktemp("first") / "saves"
    run(distilled(pack, out, "do_eval=false"))
    return out


@pytest.mark.parametrize(
    "override",
    [
        *("temperature=4", "alpha=0.2", "direction=reverse", "tail=renormalise", "k=2"),
        *("weight_thought=1", "weight_answer=3", "weight_markup=0"),
    ],
)
def test_each_setting_changes_the_trained_student(pack: Path, first: Path, tmp_path: Path, override: str) -> None:
    run(distilled(pack, tmp_path / "saves", "do_eval=false", override))
    assert apart(first, tmp_path / "saves") > 1e-4


def test_the_same_settings_train_the_same_student_and_wandb_has_its_figures_apart(
    pack: Path, first: Path, tmp_path: Path
) -> None:
    command = distilled(pack, tmp_path / "saves", "do_eval=false", "report_to=wandb")
    run(command, WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    assert apart(first, tmp_path / "saves") == 0
    assert_wandb_has(tmp_path, FIGURES)


def test_two_processes_train_in_full_like_one(pack: Path, tmp_path: Path) -> None:
    quiet = ("neftune_noise_alpha=null", "finetuning_type=full", "quantization_bit=null", "do_eval=false")
    quiet += ("additional_target=null",)
    one, two = tmp_path / "one", tmp_path / "two"
    run(distilled(pack, one, *quiet))
    command = distilled(pack, two, *quiet, "per_device_train_batch_size=1", "ddp_backend=gloo")
    log = run(command, FORCE_TORCHRUN="1", NPROC_PER_NODE="2")
    assert "world size: 2" in log
    for key in (*FIGURES, "grad_norm"):
        assert [row[key] for row in history(two)] == pytest.approx([row[key] for row in history(one)], rel=1e-4)


def test_a_killed_run_ends_like_an_undisturbed_one(pack: Path, tmp_path: Path) -> None:
    long = ("max_steps=24", "save_steps=4", "lora_dropout=0.1")
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "saves"
    run(distilled(pack, undisturbed, *long))

    def steps_are_lost() -> bool:
        whole = [number for number, is_whole in checkpoints(out) if is_whole]
        return bool(whole) and len(whole) == len(checkpoints(out)) and logged(out) >= max(whole) + 2

    command = distilled(pack, out, *long)
    kill_when(steps_are_lost, command)
    last = max(number for number, _ in checkpoints(out))
    assert f"Resuming training from {out}/checkpoint-{last}." in run(command)
    assert_ends_like(undisturbed, out)


def preflight(pack: Path, *overrides: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "preflight", f"{pack}/distill.yaml", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_check_knows_the_loss_and_what_a_checkpoint_was_trained_with(pack: Path, tmp_path: Path) -> None:
    out = (f"output_dir={tmp_path}/saves", "save_steps=2")
    code, said = preflight(pack, *out)
    assert code == 0 and "warned      distill.yaml: temperature 2 with tail: bucket" in said
    assert "distill.yaml: temperature" not in preflight(pack, f"output_dir={tmp_path}/other", "tail=renormalise")[1]
    run(distilled(pack, tmp_path / "saves", "save_steps=2", "do_eval=false"))
    assert preflight(pack, *out)[0] == 0
    code, said = preflight(pack, *out, "alpha=0.2")
    assert code == 1 and "'alpha': 0.7" in said and "'alpha': 0.2" in said and "2 refused" not in said
    code, said = preflight(pack, *out, "packing=true")
    assert code == 1 and "rows that are packed can't be told apart" in said
    code, said = preflight(pack, *out, "cutoff_len=256")
    assert code == 1 and "was made with cutoff_len 512, here it is 256" in said


def test_a_refusal_is_one_line_and_nothing_is_trained(pack: Path, tmp_path: Path) -> None:
    command = distilled(pack, tmp_path / "saves", "template=qwen")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and "was made with template qwen3, here it is qwen" in line
    assert "Traceback" not in done.stderr and not (tmp_path / "saves").exists()


def test_one_random_state_of_the_bench(tmp_path: Path) -> None:
    from bench.distill import student_table, students

    (state,) = students(tmp_path, 1, epochs=4.0)
    assert state["distilled"][0] < state["cross-entropy"][0] and state["distilled"][1] < state["cross-entropy"][1]
    assert "1 of 1" in student_table([state])
