"""Perplexity of 500 records on a CPU: ours, LLaMA-Factory's own `do_eval`, and lm_eval's HFLM; seconds and memory.

    python -m bench.perplexity [--quick] [--records 500] [--work build/bench-perplexity]

The model has Qwen2's shape (hidden 256, 4 layers, vocabulary 151,936, fp32) and random weights, the records have the
lengths of medical-o1 (zh), in tokens. Each tool scores the same ids in a process of its own, the rivals at the batch
size that was their fastest on a tenth of the records. Timed is the scoring; beside it stand the seconds of the whole
process, imports and loading included, and its peak resident memory (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bench.lengths import draw_lengths
from recipe import UserError, one_line_errors

ROOT = Path(__file__).parent.parent
RIVALS = {"LLaMA-Factory do_eval": "llamafactory", "lm_eval HFLM": "hflm"}
BATCHES = (1, 2, 4, 8, 16)
BAR = 1.5
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
}
Run = dict[str, Any]

# --- in a process of its own: the scoring -----------------------------------------------------------------------------


def prepare(folder: Path, records: int) -> Run:
    """The model once, the records, a training recipe, and the ids for HFLM, which takes no records."""
    import yaml

    from bench.fixture import MODELS, write_model, write_rows
    from eval.tokens import load_rows, read_arguments

    write_model(folder.parent / "model", MODELS["demo"] | SHAPE)
    template = write_rows(folder, draw_lengths(records), folder.parent / "model")
    recipe = {"model_name_or_path": f"{folder.parent}/model", "stage": "sft", "finetuning_type": "lora"}
    recipe |= {"dataset": "bench", "dataset_dir": str(folder), "template": template, "cutoff_len": 2048}
    recipe |= {"output_dir": f"{folder}/out", "use_cpu": True, "report_to": "none"}
    (folder / "train.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    rows, _ = load_rows(read_arguments(f"{folder}/train.yaml"))
    told = [{"ids": row.ids, "start": row.start, "end": row.end} for row in rows]
    (folder / "rows.json").write_text(json.dumps(told), encoding="utf-8")
    return {"tokens": sum(len(row.ids) for row in rows), "scored": sum(row.end - row.start for row in rows)}


def ours(folder: Path, batch: int) -> Run:
    from eval.perplexity import load_model, token_nll
    from eval.tokens import load_rows, read_arguments

    arguments = read_arguments(f"{folder}/train.yaml")
    rows, tokenizer = load_rows(arguments)
    model = load_model(arguments, tokenizer)
    begin = time.perf_counter()
    nll = token_nll(model, rows, batch)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "nll": [values.sum() for values in nll]}


def llamafactory(folder: Path, batch: int) -> Run:
    import yaml
    from llamafactory.train.tuner import run_exp

    recipe = yaml.safe_load((folder / "train.yaml").read_text(encoding="utf-8"))
    recipe |= {"dataset": None, "eval_dataset": "bench", "do_eval": True, "per_device_eval_batch_size": batch}
    run_exp(recipe)
    result = json.loads((folder / "out/eval_results.json").read_text(encoding="utf-8"))
    return {"seconds": result["eval_runtime"], "loss": result["eval_loss"]}


def hflm(folder: Path, batch: int) -> Run:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = folder.parent / "model"
    model = AutoModelForCausalLM.from_pretrained(place, dtype="auto").eval()
    lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(place), batch_size=batch, max_length=4096)
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    requests = [
        (("", str(i)), row["ids"][: row["start"]], row["ids"][row["start"] : row["end"]]) for i, row in enumerate(rows)
    ]
    begin = time.perf_counter()
    found = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    return {"seconds": time.perf_counter() - begin, "nll": [-total for total, _ in found]}


def work(arguments: argparse.Namespace) -> None:
    """Do what the parent asked and write it to `result.json`."""
    folder = Path(arguments.work)
    if arguments.worker == "prepare":
        result = prepare(folder, arguments.records)
    else:
        result = {"ours": ours, "llamafactory": llamafactory, "hflm": hflm}[arguments.worker](folder, arguments.batch)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    result["peak_mib"] = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


# --- the comparison ---------------------------------------------------------------------------------------------------


def run_worker(kind: str, folder: Path, records: int, batch: int = 0) -> Run:
    """One process: what it found, and its `process_seconds`; what it said is in the folder's worker.log."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.perplexity", "--worker", kind, "--work", str(folder)]
    command += ["--batch", str(batch), "--records", str(records)]
    # LOCAL_RANK keeps lm_eval from a download at import.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"LOCAL_RANK": "1"} if kind == "hflm" else {}
    begin = time.perf_counter()
    with open(folder / "worker.log", "wb") as log:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise UserError(f"{folder}/worker.log: the process of {kind} failed; it says why")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    told = f"{result['seconds']:.1f} s, {result['peak_mib']:,.0f} MiB" if "seconds" in result else "ready"
    print(f"{kind}, {records} records, batch {batch or 'by itself'}: {told}", file=sys.stderr, flush=True)
    return result | {"process_seconds": seconds, "batch": batch}


def surroundings() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("llamafactory", "lm_eval", "torch", "transformers"))
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, Python {platform.python_version()}, {packages}, "
        f"{len(os.sched_getaffinity(0))} cores, load {load}."
    )


def line(name: str, run: Run, trials: dict[int, Run]) -> list[str]:
    tried = ", ".join(f"{size}: {one['seconds']:.1f} s, {one['peak_mib']:,.0f} MiB" for size, one in trials.items())
    cells = [name, str(run["batch"] or "by tokens"), f"{run['seconds']:.1f}", f"{run['process_seconds']:.1f}"]
    return [*cells, f"{run['peak_mib']:,.0f}", tried or "—"]


def compare(folder: Path, records: int, sizes: tuple[int, ...]) -> str:
    """Measure, and say it as Markdown."""
    begun, few = surroundings(), max(records // 10, 4)
    trial, whole = folder / "trial", folder / "whole"
    run_worker("prepare", trial, few)
    counts = run_worker("prepare", whole, records)
    trials = {name: {size: run_worker(kind, trial, few, size) for size in sizes} for name, kind in RIVALS.items()}
    best = {name: min(runs, key=lambda size: runs[size]["seconds"]) for name, runs in trials.items()}
    mine = run_worker("ours", whole, records)
    rivals = {name: run_worker(kind, whole, records, best[name]) for name, kind in RIVALS.items()}
    heads = ["tool", "batch", "scoring, s", "whole process, s", "peak MiB", f"tried on {few} records"]
    rows = [line("eval.perplexity", mine, {}), *(line(name, run, trials[name]) for name, run in rivals.items())]
    fastest = min(run["seconds"] for run in rivals.values())
    lowest = min(run["peak_mib"] for run in rivals.values())
    ratio, less = fastest / mine["seconds"], mine["peak_mib"] / lowest
    theirs = np.array(rivals["lm_eval HFLM"]["nll"])
    apart = np.abs(np.array(mine["nll"]) / theirs - 1).max()
    table = "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows))
    return (
        f"{begun}\n\n{records} records, {counts['tokens']:,} tokens, {counts['scored']:,} scored.\n\n{table}\n\n"
        f"{ratio:.2f} × the faster of the two (bar {BAR} ×: {'met' if ratio >= BAR else 'NOT met'}), "
        f"at {100 * less:.0f} % of the lower peak memory (bar: below 100 %: {'met' if less < 1 else 'NOT met'}). "
        f"Largest relative difference to HFLM in a record's log-probability: {apart:.1e}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--work", default="build/bench-perplexity", help="the model (160 MB) and the records")
    parser.add_argument("--quick", action="store_true", help="20 records and two batch sizes: to try the command")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return work(arguments)
    with one_line_errors():
        records, sizes = (20, (1, 4)) if arguments.quick else (arguments.records, BATCHES)
        print(compare(Path(arguments.work).resolve(), records, sizes))


if __name__ == "__main__":
    main()
