"""Distillation measured: what it gives a tiny student, what a step costs, what the teacher's scoring costs.

    python -m bench.distill --what students [--states 5]   # five random states, some minutes on two cores
    python -m bench.distill --what step [--model demo] [--batch 8] [--length 512]
    python -m bench.distill --what score [--model demo] [--rows 200]

students  A tiny teacher learns the sample records and writes its own answers to all prompts. A smaller student learns
          those of the training prompts for the same steps twice: from the text alone (alpha 0, LLaMA-Factory's own
          loss), and from the teacher's distributions beside it. On the held-out prompts' answers: KL(teacher‖student)
          over the whole vocabulary, and perplexity.
step      Forward and backward pass of the same batch with LLaMA-Factory's loss and with this one, the reading of the
          pack included; models of `bench.fixture`, the 7B one in 4 bits with LoRA, where there is a GPU.
score     Tokens a second of `distill.score` against a forward pass of the same batches that keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from chat.server import beside
from distill.pack import Pack
from eval.statistics import bootstrap
from recipe import UserError, one_line_errors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROOT = Path(__file__).parent.parent
BARS = {"step": 1.25, "score": 0.9}
# The student: half of the teacher's width, two layers of its three.
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
LOSS = {"k": 20, "temperature": 1.0, "alpha": 0.9, "direction": "forward", "tail": "bucket"}
VOCABULARY, NEW_TOKENS, BATCH = 1500, 128, 256

# --- students ---------------------------------------------------------------------------------------------------------


def run(command: list[str], log: Path) -> None:
    """A command in the project's folder; UserError with the place of its output where it fails."""
    environment = os.environ | {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.setdefault("OMP_NUM_THREADS", "1")  # threads of tiny models wait for one another
    with open(log, "wb") as output:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        raise UserError(f"{log}: {' '.join(command[1:4])} ended with code {done.returncode}; it says why")


def write_recipe(path: Path, **keys: Any) -> str:
    """A training recipe like the demo's base.yaml, by LLaMA-Factory."""
    recipe = yaml.safe_load((ROOT / "recipes/demo/base.yaml").read_text(encoding="utf-8"))
    del recipe["neftune_noise_alpha"]
    recipe |= {"dataset_dir": str(path.parent), "save_strategy": "no", "logging_steps": 20}
    path.write_text(yaml.safe_dump(recipe | keys), encoding="utf-8")
    return str(path)


def make_teacher(folder: Path, epochs: float) -> str:
    """A trained teacher, the text that it writes (`own_train`, `own_eval`), and a recipe for students of it."""
    from preprocess.build import Data, build
    from recipes.demo.build_model import build_model, build_tokenizer

    samples = f"{ROOT}/data/samples/medical_o1_sft.json"
    build(Data(samples, "given", f"{folder}/data", eval_share=0.15, dataset_dir=str(folder)))
    sides = {side: json.loads((folder / f"data/{side}.json").read_text(encoding="utf-8")) for side in ("train", "eval")}
    tokenizer = build_tokenizer([row["instruction"] + row["output"] for row in sides["train"]], VOCABULARY)
    tokenizer.save_pretrained(folder / "random")
    build_model(tokenizer).save_pretrained(folder / "random")
    keys = {"model_name_or_path": f"{folder}/random", "dataset": "given_train", "output_dir": f"{folder}/teacher"}
    recipe = write_recipe(folder / "teacher.yaml", **keys, num_train_epochs=epochs)
    run([beside("llamafactory-cli"), "train", recipe], folder / "teacher.log")
    write_own_text(folder, sides, tokenizer)
    keys = {"model_name_or_path": f"{folder}/student", "dataset": "own_train", "output_dir": f"{folder}/trained"}
    return write_recipe(folder / "student.yaml", **keys)


@torch.inference_mode()
def write_own_text(folder: Path, sides: dict[str, list[dict[str, str]]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Sample the teacher's answers at temperature 1, and register them; bytes that are no character are left out."""
    from transformers import AutoModelForCausalLM

    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher").eval()
    tokenizer.padding_side = "left"
    torch.manual_seed(0)
    for side, rows in sides.items():
        prompts = [f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n" for row in rows]
        written = []
        for begin in range(0, len(prompts), BATCH):
            asked = tokenizer(prompts[begin : begin + BATCH], return_tensors="pt", padding=True)
            asked.pop("token_type_ids", None)
            told = teacher.generate(**asked, do_sample=True, top_k=0, max_new_tokens=NEW_TOKENS)
            for line in told[:, asked["input_ids"].shape[1] :].tolist():
                end = line.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in line else len(line)
                written.append(tokenizer.decode(line[:end]).replace("\N{REPLACEMENT CHARACTER}", ""))
        rows = [
            {"instruction": row["instruction"], "input": "", "output": text.strip()}
            for row, text in zip(rows, written, strict=True)
            if text.strip()
        ]
        (folder / f"own_{side}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    tokenizer.padding_side = "right"
    registry = {f"own_{side}": {"file_name": f"own_{side}.json"} for side in sides}
    (folder / "dataset_info.json").write_text(json.dumps(registry), encoding="utf-8")


def write_student(folder: Path, state: int) -> None:
    """A random student with the teacher's tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(folder / "teacher").to_dict() | SIZES | {"layer_types": None}
    torch.manual_seed(state)
    student = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    student.save_pretrained(folder / "student")
    AutoTokenizer.from_pretrained(folder / "random").save_pretrained(folder / "student")


@torch.inference_mode()
def held_out(folder: Path, recipe: str) -> tuple[float, float]:
    """KL(teacher‖student) in nats a token, and perplexity, of what the teacher wrote to the held-out prompts."""
    from transformers import AutoModelForCausalLM

    from distill.score import load_rows, read_recipe

    teacher, student = (AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in ("teacher", "trained"))
    values = yaml.safe_load(Path(recipe).read_text(encoding="utf-8")) | {"dataset": "own_eval"}
    (folder / "eval.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    kl = nll = count = 0.0
    for row in load_rows(read_recipe(f"{folder}/eval.yaml"))[0]:
        ids, places = torch.tensor([row.ids]), torch.tensor(row.scored)
        p, q = (model(ids).logits[0, places - 1].double().log_softmax(-1) for model in (teacher, student))
        kl += float((p.exp() * (p - q)).sum())
        nll -= float(q.gather(1, ids[0, places][:, None]).sum())
        count += len(places)
    return kl / count, float(np.exp(nll / count))


def students(folder: Path, states: int, epochs: float = 8.0) -> list[dict[str, tuple[float, float]]]:
    """By random state, KL and perplexity on held-out rows of a student by `cross-entropy` and of one by `distilled`."""
    recipe = make_teacher(folder, 2 * epochs)
    values = {"train": recipe, "pack": f"{folder}/pack", "teacher": f"{folder}/teacher"} | LOSS
    (folder / "distill.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    found = []
    for state in range(states):
        write_student(folder, state)
        if not state:
            run([sys.executable, "-m", "distill.score", f"{folder}/distill.yaml"], folder / "score.log")
        figures = {}
        for name, alpha in (("cross-entropy", 0.0), ("distilled", LOSS["alpha"])):
            keys = [f"alpha={alpha}", f"seed={state}", f"num_train_epochs={epochs}"]
            shutil.rmtree(folder / "trained", ignore_errors=True)
            run([sys.executable, "-m", "distill.train", f"{folder}/distill.yaml", *keys], folder / f"{name}.log")
            figures[name] = held_out(folder, recipe)
        told = ", ".join(f"{name}: KL {kl:.4f}, perplexity {ppl:.2f}" for name, (kl, ppl) in figures.items())
        print(f"state {state}: {told}", file=sys.stderr, flush=True)
        found.append(figures)
    return found


def student_table(found: Sequence[dict[str, tuple[float, float]]]) -> str:
    """Means over the random states, with 95 % intervals (`eval.statistics.bootstrap`, the state as the unit)."""
    lines = ["| figure on held-out rows | cross-entropy | distilled | change | lower in |", "|---|---|---|---|---|"]
    for number, name in enumerate(("KL to the teacher, nats a token", "perplexity")):
        before, after = (np.array([state[arm][number] for state in found]) for arm in ("cross-entropy", "distilled"))
        cells = [_interval(values) for values in (before, after, after - before)]
        lines.append(f"| {name} | {' | '.join(cells)} | {(after < before).sum()} of {len(found)} |")
    return "\n".join(lines)


def _interval(values: np.ndarray) -> str:
    ends = bootstrap(np.column_stack([values, np.ones(len(values))]), lambda s: s[..., 0] / s[..., 1])
    return f"{ends['value']:.4g} [{ends['low']:.4g}, {ends['high']:.4g}]" if ends else "—"


# --- step and score ---------------------------------------------------------------------------------------------------


def prepare(folder: Path, model: str, lengths: Sequence[int]) -> str:
    """A random model of a real shape, rows of these lengths, and the recipe."""
    from bench.fixture import MODELS, write_model, write_rows

    write_model(folder / "model", MODELS[model])
    template = write_rows(folder, np.array(lengths), folder / "model")
    keys = {"model_name_or_path": f"{folder}/model", "dataset": "bench", "template": template, "cutoff_len": 4096}
    keys |= {"output_dir": f"{folder}/out", "finetuning_type": "lora", "lora_rank": 8, "lora_target": "all"}
    if torch.cuda.is_available():
        keys |= {"use_cpu": False, "bf16": True, "disable_gradient_checkpointing": False}
        keys |= {"quantization_bit": 4} if model != "demo" else {}
    return write_recipe(folder / "train.yaml", **keys)


def load_to_train(recipe: str) -> tuple[PreTrainedModel, list[dict[str, list[int]]]]:
    """The model as LLaMA-Factory trains it, and its rows."""
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_model

    from distill.score import load_rows, read_recipe

    rows, tokenizer = load_rows(read_recipe(recipe))
    model, _, training, finetuning, _ = get_train_args(yaml.safe_load(Path(recipe).read_text(encoding="utf-8")))
    loaded = load_model(tokenizer, model, finetuning, is_trainable=True).to(training.device).train()
    return loaded, [{"input_ids": list(row.ids), "labels": list(row.labels)} for row in rows]


def invented_pack(folder: Path, recipe: str, vocabulary: int, k: int = 20) -> Pack:
    """A pack of the recipe's rows with drawn distributions."""
    from distill.pack import open_writer, read_vocabulary, to_positions
    from distill.score import load_rows, meta_of, read_recipe

    arguments = read_recipe(recipe)
    rows, tokenizer = load_rows(arguments)
    known, random = read_vocabulary(tokenizer), np.random.default_rng(0)
    shutil.rmtree(folder, ignore_errors=True)
    with open_writer(
        folder / "0.logprobs", meta_of(arguments.data, known, "none", "0", k, vocabulary), known
    ) as writer:
        for row in rows:
            n = len(row.scored)
            drawn = -np.sort(-random.dirichlet(np.full(k + 1, 0.3), n)[:, :-1])
            ids = np.array([random.choice(vocabulary, k, replace=False) for _ in range(n)])
            tail, labels = np.log(1 - drawn.sum(1)), np.array([row.labels[place] for place in row.scored])
            writer.append_all([(row.key, to_positions(ids, np.log(drawn), tail, labels, tail))])
    return Pack.open(folder)


def alternately(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, in turns, after one of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def step(folder: Path, model: str, batch: int, length: int, rounds: int) -> str:
    """Step time and, on a GPU, peak memory of both losses on one batch."""
    from distill.loss import Loss
    from distill.trainer import Collator, Meter, distil

    recipe = prepare(folder, model, [length] * batch)
    loaded, rows = load_to_train(recipe)
    device, vocabulary = loaded.device, loaded.config.vocab_size
    pack = invented_pack(folder / "pack", recipe, vocabulary - 64)

    def padded(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:  # rows of one length
        return {name: torch.tensor([feature[name] for feature in features]) for name in ("input_ids", "labels")}

    collator = Collator(padded, pack, 20, lambda ids, labels: np.ones(sum(label != -100 for label in labels), "<f4"))
    distil(loaded.get_base_model(), Loss(temperature=2.0), Meter())
    peaks: dict[str, float] = {}

    def one(name: str, collate: Callable[[list[dict[str, list[int]]]], dict[str, Any]]) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        inputs = _to(collate(rows), device)
        with torch.autocast(device.type, torch.bfloat16) if device.type == "cuda" else nullcontext():
            loss = loaded(**inputs).loss
        loss.backward()
        loaded.zero_grad()
        peaks[name] = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0

    steps = {"plain": lambda: one("plain", padded), "distilled": lambda: one("distilled", collator)}
    medians = {name: statistics.median(seconds) for name, seconds in alternately(steps, rounds).items()}
    ratio = medians["distilled"] / medians["plain"]
    told = ", ".join(f"{name} {medians[name] * 1e3:,.1f} ms" for name in medians)
    told += f"; peak {peaks['plain']:.1f} and {peaks['distilled']:.1f} GiB" * torch.cuda.is_available()
    scored = sum(label != -100 for row in rows for label in row["labels"])
    what = f"{model}, {batch} x {length} tokens, {scored} of them labels, median of {rounds}"
    return f"{what}: {told}; {_bar(ratio, 'step')}"


def _to(value: Any, device: torch.device) -> Any:
    return {name: _to(one, device) for name, one in value.items()} if isinstance(value, dict) else value.to(device)


def score(folder: Path, model: str, rows: int, rounds: int) -> str:
    """Tokens a second of the teacher's scoring, writing included, and of a forward pass that keeps nothing."""
    from bench.lengths import draw_lengths
    from distill.pack import open_writer, read_vocabulary
    from distill.score import distributions, load_rows, meta_of, read_recipe
    from eval.perplexity import BATCH_TOKENS, batches, load_model

    recipe = prepare(folder, model, draw_lengths(rows))
    arguments = read_recipe(recipe)
    found, tokenizer = load_rows(arguments)
    loaded, known = load_model(arguments, tokenizer).eval(), read_vocabulary(tokenizer)
    meta = meta_of(arguments.data, known, model, "0", 20, loaded.config.vocab_size)

    def ours() -> None:
        shutil.rmtree(folder / "pack", ignore_errors=True)
        with open_writer(folder / "pack/0.logprobs", meta, known) as writer:
            for part in distributions(loaded, found, 20, loaded.config.vocab_size):
                writer.append_all(part)

    @torch.inference_mode()
    def plain() -> None:
        pieces = [(number, (0, 0, len(row.ids) + 1)) for number, row in enumerate(found)]
        for part in batches(pieces, BATCH_TOKENS.get(loaded.device.type, BATCH_TOKENS["cuda"])):
            longest = max(len(found[number].ids) for number, _ in part)
            ids = torch.zeros(len(part), longest, dtype=torch.long)
            for line, (number, _) in enumerate(part):
                ids[line, : len(found[number].ids)] = torch.tensor(found[number].ids)
            loaded(input_ids=ids.to(loaded.device), use_cache=False)

    seconds = {name: statistics.median(s) for name, s in alternately({"plain": plain, "score": ours}, rounds).items()}
    tokens = sum(len(row.ids) for row in found)
    told = ", ".join(f"{name} {tokens / one:,.0f} tokens a second" for name, one in seconds.items())
    what = f"{model}, {len(found)} rows, {tokens:,} tokens, median of {rounds}"
    return f"{what}: {told}; {_bar(seconds['plain'] / seconds['score'], 'score')}"


def _bar(ratio: float, what: str) -> str:
    met = ratio <= BARS[what] if what == "step" else ratio >= BARS[what]
    return f"{ratio:.2f} x (bar {BARS[what]} x: {'met' if met else 'NOT met'})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=["students", "step", "score"], required=True)
    parser.add_argument("--states", type=int, default=5, help="students: random states")
    parser.add_argument("--model", default="demo", help="step, score: a shape of bench.fixture")
    parser.add_argument("--batch", type=int, default=8, help="step: rows a batch")
    parser.add_argument("--length", type=int, default=512, help="step: tokens a row")
    parser.add_argument("--rows", type=int, default=200, help="score: rows, of lengths as the real data's")
    parser.add_argument("--rounds", type=int, default=7, help="step, score: repetitions; the median counts")
    parser.add_argument("--work", help="a folder to keep (default: a temporary one)")
    given = parser.parse_args()
    with one_line_errors(), nullcontext(given.work) if given.work else tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if given.what == "students":
            print(student_table(students(folder, given.states)))
        elif given.what == "step":
            print(step(folder, given.model, given.batch, given.length, given.rounds))
        else:
            print(score(folder, given.model, given.rows, given.rounds))


if __name__ == "__main__":
    main()
