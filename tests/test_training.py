"""Real 4-bit QLoRA by `llamafactory-cli train`, on a CPU, in seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from chat.server import beside
from preprocess.build import Data, build
from recipe import load
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

TOKENS = "include_num_input_tokens_seen=non_padding"
KEYS = ("loss", "grad_norm", "learning_rate", "epoch", "global_step", "train_tokens_per_second")
LONG = ("max_steps=30", "max_samples=20", "save_steps=4", "lora_dropout=0.1")


def train(tiny: SimpleNamespace, out: Path, *overrides: str) -> list[str]:
    return [
        *(beside("llamafactory-cli"), "train", "recipes/demo/train.yaml"),
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


def history(out: Path) -> list[dict]:
    return [row for row in state(out)["log_history"] if "loss" in row]


def evaluation(out: Path) -> float:
    return json.loads((out / "eval_results.json").read_text(encoding="utf-8"))["eval_loss"]


def checkpoints(out: Path) -> list[tuple[int, bool]]:
    """The number of each checkpoint, and whether its last file is there."""
    folders = {int(path.name.partition("-")[2]): path for path in out.glob("checkpoint-*")}
    return [(number, (folders[number] / "trainer_state.json").exists()) for number in sorted(folders)]


def logged(out: Path) -> int:
    log = out / "trainer_log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


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


@pytest.fixture(scope="module")
def undisturbed(tiny: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that draws random numbers: shuffling over three epochs, dropout, NEFTune noise."""
    out = tmp_path_factory.mktemp("undisturbed") / "saves"
    run(train(tiny, out, *LONG))
    return out


def kill_when(ready: Callable[[], bool], command: list[str]) -> None:
    """Start a run and SIGKILL it while `ready`; it is stopped first, so that nothing happens between look and kill."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if ready():
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            if ready():
                process.kill()
                process.wait()
                return
            process.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    pytest.fail("the run ended before it could be killed")


def assert_ends_like(undisturbed: Path, out: Path) -> None:
    losses, expected = ({row["step"]: row["loss"] for row in history(folder)} for folder in (out, undisturbed))
    assert losses == pytest.approx(expected, abs=1e-5)
    assert evaluation(out) == pytest.approx(evaluation(undisturbed), abs=1e-5)


def test_a_run_killed_between_checkpoints_ends_like_an_undisturbed_one(
    tiny: SimpleNamespace, tmp_path: Path, undisturbed: Path
) -> None:
    out = tmp_path / "saves"

    def steps_are_lost() -> bool:
        whole = [number for number, is_whole in checkpoints(out) if is_whole]
        return bool(whole) and len(whole) == len(checkpoints(out)) and logged(out) >= max(whole) + 2

    command = train(tiny, out, *LONG)
    kill_when(steps_are_lost, command)
    last = max(number for number, _ in checkpoints(out))
    assert f"Resuming training from {out}/checkpoint-{last}." in run(command)
    assert_ends_like(undisturbed, out)


def test_a_run_killed_within_a_checkpoint_ends_like_an_undisturbed_one(
    tiny: SimpleNamespace, tmp_path: Path, undisturbed: Path
) -> None:
    out = tmp_path / "saves"

    def newest_is_half_written() -> bool:
        return [is_whole for _, is_whole in checkpoints(out)][-2:] == [True, False]

    command = train(tiny, out, *LONG)
    kill_when(newest_is_half_written, command)
    (last, _), (half, _) = checkpoints(out)[-2:]
    checked = run([sys.executable, "-m", "preflight", *command[command.index("train") + 1 :]])
    assert f"checkpoint-{half} was half written" in checked
    assert f"Resuming training from {out}/checkpoint-{last}." in run(command)
    assert_ends_like(undisturbed, out)
    assert (out / f"half-checkpoint-{half}.partial").is_dir()


def test_two_processes_train_like_one(tiny: SimpleNamespace, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    # Without the noise, which each process draws for itself, both runs see the same batches and take the same steps.
    quiet = ("max_steps=12", "max_samples=30", "neftune_noise_alpha=null")
    one, two = tmp_path / "one", tmp_path / "two"
    run(train(tiny, one, *quiet))
    log = run(
        train(tiny, two, *quiet, "per_device_train_batch_size=1", "ddp_backend=gloo"),
        FORCE_TORCHRUN="1",
        NPROC_PER_NODE="2",
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    )
    assert "world size: 2" in log
    assert [row["loss"] for row in history(two)] == pytest.approx([row["loss"] for row in history(one)], rel=1e-3)
    assert evaluation(two) == pytest.approx(evaluation(one), rel=0.02)
    base = AutoModelForCausalLM.from_pretrained(tiny.root / "model")
    tokens = tiny.tokenizer("咳嗽", return_tensors="pt").input_ids
    before = base(tokens).logits
    assert not PeftModel.from_pretrained(base, two)(tokens).logits.allclose(before)


def assert_wandb_has(folder: Path, keys: Sequence[str]) -> Path:
    """The one offline run in a folder, which has these curves and the machine's own."""
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    kept, deadline = b"", time.monotonic() + 60
    while b"proc.memory.rssMB" not in kept and time.monotonic() < deadline:  # wandb's own process writes the last of it
        time.sleep(0.2)
        kept = file.read_bytes()
    for key in keys:
        assert f"train/{key}".encode() in kept, key
    assert b"proc.memory.rssMB" in kept
    return file


def test_wandb_keeps_an_offline_run_with_the_curves(tiny: SimpleNamespace, tmp_path: Path) -> None:
    command = train(tiny, tmp_path / "saves", "report_to=wandb", TOKENS)
    run(command, WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    file = assert_wandb_has(tmp_path, KEYS)
    accepted = run([str(Path(sys.executable).with_name("wandb")), "sync", "--dry-run", str(file.parent)])
    assert "Would sync 1 run" in accepted


def test_swanlab_keeps_a_local_run_without_account_or_network(tiny: SimpleNamespace, tmp_path: Path) -> None:
    swanlab = ("use_swanlab=true", "swanlab_mode=local", f"swanlab_logdir={tmp_path}/swanlog", TOKENS)
    nowhere = {"HOME": str(tmp_path), "HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
    run(train(tiny, tmp_path / "saves", *swanlab), **nowhere)
    (file,) = tmp_path.glob("swanlog/run-*/backup.swanlab")
    for key in KEYS:
        assert file.read_bytes().count(f'"key": "train/{key}", "step"'.encode()) == 2


def test_liger_is_there_for_the_packed_profile() -> None:
    from llamafactory.extras.misc import check_version

    check_version("liger-kernel>=0.6.3", mandatory=True)
    assert find_spec("liger_kernel.transformers")


def test_an_export_is_the_adapted_model_with_a_modelfile(tiny: SimpleNamespace, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "merged"
    paths = (f"model_name_or_path={tiny.root}/model", f"adapter_name_or_path={tiny.adapter}", f"export_dir={out}")
    run([beside("llamafactory-cli"), "export", "recipes/demo/export.yaml", *paths])
    assert "FROM ." in (out / "Modelfile").read_text() and "<|im_end|>" in (out / "Modelfile").read_text()
    tokens = AutoTokenizer.from_pretrained(out)("咳嗽三周", return_tensors="pt").input_ids
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.root / "model"), tiny.adapter)
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="float32")
    assert (merged(tokens).logits - adapted(tokens).logits).abs().max() < 0.05  # stored in bf16
