"""Training speed and memory, measured by LLaMA-Factory's own trainer on whatever GPU is there, one row a call.

    python -m bench.train unsloth --batch 16 --accumulation 3 --memory-gib 24
    python -m bench.train peft --model demo --steps 5     # the harness itself, on a CPU
    python -m bench.train --table bench/train.jsonl

The model is random with the real architecture's sizes, the rows have the real data's lengths. `key=value` arguments
override LLaMA-Factory's, e.g. `lora_rank=8`. bench/README.md says how to read the rows.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bench import profiles, table
from bench.lengths import WARM_UP
from bench.profiles import ACCUMULATION, BATCH, ROOT
from preflight.cost import (
    CONTEXT,
    GIB,
    Architecture,
    flops_per_token,
    padding_efficiency,
    peak_of,
    read_architecture,
    read_config,
)
from recipe import UserError, one_line_errors

LOADING = 300  # seconds that a run may take to load, on top of --seconds
Event = dict[str, Any]


def read_events(path: Path) -> list[Event]:
    """What the worker has said so far; a line that is still being written is left for the next time."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def follow(process: subprocess.Popen, events: Path, deadline: float, planned: int) -> str:
    """Show the steps as they come until the process ends; say how it did: `ended`, `timed out`, `interrupted`."""
    shown = 0
    try:
        while True:
            over = process.poll() is not None
            for event in (known := read_events(events))[shown:]:
                if event["kind"] == "begin":
                    print(f"loaded in {event['load_seconds']:.0f} s, first steps are warm-up", file=sys.stderr)
                if event["kind"] == "step":
                    speed = f"{event['seconds']:.2f} s, {event['tokens'] / event['seconds']:,.0f} tokens/s"
                    print(f"step {event['number']} of {planned}: {speed}", file=sys.stderr)
            shown = len(known)
            if over or time.monotonic() > deadline:
                return "ended" if over else "timed out"
            time.sleep(0.2)
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_worker(job: dict[str, Any], work: Path, planned: int) -> tuple[list[Event], str]:
    """Run bench.worker in the work folder, since Unsloth writes into its own; its events, and how it ended."""
    events = work / "events.jsonl"
    events.unlink(missing_ok=True)
    (work / "job.json").write_text(json.dumps(job | {"events": str(events)}), encoding="utf-8")
    environment = {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # Unsloth sets it for itself; all profiles shall have it
        "HF_HOME": str(work / "hf"),
    } | os.environ
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        "HF_HUB_OFFLINE": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
    }
    with open(work / "train.log", "wb") as log:
        command = [sys.executable, "-m", "bench.worker", "job.json"]
        process = subprocess.Popen(command, cwd=work, env=environment, stdout=log, stderr=subprocess.STDOUT)
        outcome = follow(process, events, time.monotonic() + job["seconds"] + LOADING, planned)
    if outcome == "ended" and process.returncode < 0:
        outcome = f"killed by signal {-process.returncode}"
    return read_events(events), outcome


def of_kind(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["kind"] == kind]


def failure(
    events: list[Event], outcome: str, chosen: dict[str, Any], memory_gib: float | None
) -> tuple[str, str] | None:
    """Why there is no figure, in two words and in one line with what to do; None where there is one."""
    begun, steps = of_kind(events, "begin"), of_kind(events, "step")
    errors = [] if of_kind(events, "trained") else of_kind(events, "error")
    size = f"batch {chosen[BATCH]}, cutoff_len {chosen['cutoff_len']}"
    if errors and errors[-1]["out_of_memory"]:
        cap = f" under {memory_gib:g} GiB" if memory_gib else ""
        when = f"in step {len(steps) + 1}" if begun else "while loading"
        advice = "halve --batch and double --accumulation, or take a profile that needs less"
        return "out of memory", f"out of memory{cap} {when} at {size}: {advice}"
    if outcome == "killed by signal 9":
        return "killed", f"the run was killed, as the system does when the machine's own memory is full, at {size}"
    if errors and outcome == "ended":
        return "failed", " ".join(errors[-1]["message"].split())[:400]
    if begun and chosen.get("use_unsloth") and not begun[0]["engine"]["forward"].startswith("unsloth"):
        return "no Unsloth", f"Unsloth was asked for, {begun[0]['engine']['forward']} ran the model: see the log"
    if begun and chosen.get("enable_liger_kernel") and begun[0]["engine"]["forward"] != "liger_kernel":
        return "no Liger", f"Liger was asked for, {begun[0]['engine']['forward']} ran the model: see the log"
    reserved = max((step.get("reserved_gib", 0) for step in steps), default=0)
    if memory_gib and reserved > memory_gib - CONTEXT / GIB + 0.1:
        return "cap not held", f"the cap of {memory_gib:g} GiB did not hold: {reserved:.1f} GiB were reserved"
    if len(steps) <= WARM_UP:
        return "too slow", f"{outcome} after {len(steps)} steps, of which {WARM_UP} are warm-up: give it more --seconds"
    return None


def commit() -> str | None:
    """The repository's commit, `-dirty` where tracked files differ; None where there is no repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def describe(options: argparse.Namespace, chosen: dict[str, Any]) -> table.Row:
    """The part of a row that is known before the run."""
    packed = bool(chosen.get("neat_packing"))
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "profile": options.profile,
        "model": Path(options.model_path).name if options.model_path else options.model,
        "weights": "real" if options.model_path else "random",
        "settings": {
            "batch": chosen[BATCH],
            "accumulation": chosen[ACCUMULATION],
            "cutoff_len": chosen["cutoff_len"],
            "grouped": chosen["train_sampling_strategy"] == "group_by_length",
            "packed": packed,
            "rank": chosen["lora_rank"],
            "overrides": profiles.parse_overrides(options.overrides),
        },
        "memory_gib": options.memory_gib,
        "context_gib": round(CONTEXT / GIB, 2) if options.memory_gib else None,
    }


def measured(events: list[Event], model: Architecture, card_peak: float | None) -> table.Row:
    """The figures of a row, from the steps after the warm-up.

    MFU = real tokens · model FLOPs a token / (seconds · peak). HFU counts the padding and the recomputation too.
    Their per-token operations are preflight.cost's, at the rows' mean attention span, squared lengths over tokens.
    """
    begun, steps = of_kind(events, "begin")[0], of_kind(events, "step")[WARM_UP:]
    card, engine = of_kind(events, "card")[0]["card"], begun["engine"]
    seconds, tokens, padded = (sum(step[key] for step in steps) for key in ("seconds", "tokens", "padded"))
    spans = sum(s["squares"] for s in steps) / tokens, sum(s["padded_squares"] for s in steps) / padded
    useful = flops_per_token(model, spans[0], engine["trainable"], full=False, recompute=False)
    computed = flops_per_token(model, spans[1], engine["trainable"], full=False, recompute=engine["checkpointing"])
    peak = None if card.startswith("CPU:") else card_peak * 1e12 if card_peak else peak_of(card)
    logs = of_kind(events, "log")
    per_step = [[round(step["seconds"], 4), step["tokens"], step["padded"]] for step in steps]
    return {
        "engine": engine,
        "load_seconds": round(begun["load_seconds"], 1),
        "steps": len(steps),
        "warm_up_steps": WARM_UP,
        "tokens": tokens,
        "padded_tokens": padded,
        "tokens_per_second": table.rate(per_step),
        "padded_tokens_per_second": table.rate(per_step, 2),
        "padding_efficiency": tokens / padded,
        "seconds_per_step": seconds / len(steps),
        "flops_per_token": useful,
        "flops_per_padded_token": computed,
        "peak_tflops": peak and peak / 1e12,
        "mfu": peak and tokens * useful / (seconds * peak),
        "hfu": peak and padded * computed / (seconds * peak),
        "memory": {key: value for key, value in steps[-1].items() if key.endswith("_gib")},
        "memory_loading": begun["loading"],
        "loss": logs[-1]["loss"] if logs else None,
        "per_step": per_step,
    }


def append(path: str, row: table.Row) -> None:
    """Add one JSON line, on the disk before this returns."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def measure(options: argparse.Namespace) -> None:
    """One run, one row, also where it fails."""
    chosen = profiles.settings(options, gpu=options.dry_run or profiles.has_gpu())
    config = model_config(options)
    planned = WARM_UP + options.steps
    steps = profiles.row_lengths(chosen, planned)
    if options.dry_run:
        return dry_run(options, chosen, steps, planned)
    from bench import fixture

    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        work = Path(options.work or temporary).resolve()
        work.mkdir(parents=True, exist_ok=True)
        print(f"building the model and {sum(map(len, steps)):,} rows in {work}", file=sys.stderr)
        folder = Path(options.model_path or work / "models" / options.model).resolve()
        if not options.model_path:
            fixture.write_model(folder, config)
        template = fixture.write_rows(work / "data", np.concatenate(steps), folder)
        given = profiles.arguments(chosen, str(folder), template, work, planned)
        job = {"arguments": given, "memory_gib": options.memory_gib, "seconds": options.seconds}
        events, outcome = run_worker(job, work, planned)
        log = (work / "train.log").read_text(encoding="utf-8", errors="replace").splitlines()
    seen = of_kind(events, "card") or [{"card": "not known", "versions": {}}]
    row = describe(options, chosen) | {"card": seen[0]["card"], "versions": seen[0]["versions"], "ended": outcome}
    failed = failure(events, outcome, chosen, options.memory_gib)
    if failed:
        row |= {"short": failed[0], "error": failed[1]}
    else:
        row |= measured(events, read_architecture(config), options.card_peak)
    append(options.output, row)
    if failed:
        print("\n".join(log[-40:]), file=sys.stderr)
        raise UserError(f"{failed[1]}; a row that says so is in {options.output}")
    print(table.table([row]))


def model_config(options: argparse.Namespace) -> dict[str, Any]:
    """config.json of the model that is measured; UserError where the formulas do not cover it."""
    if options.model_path:
        config = read_config(options.model_path)
        if read_architecture(config) is None:
            raise UserError(f"--model-path {options.model_path}: no config.json of a dense decoder there")
        return config
    from bench import fixture

    if options.model not in fixture.MODELS:
        raise UserError(f"--model {options.model}: not known; choose one of {', '.join(fixture.MODELS)}")
    return fixture.MODELS[options.model]


def dry_run(options: argparse.Namespace, chosen: dict[str, Any], steps: list[np.ndarray], planned: int) -> None:
    """Print LLaMA-Factory's arguments and what is known of the rows, without building or running anything."""
    model = options.model_path or f"WORK/models/{options.model}"
    given = profiles.arguments(chosen, model, "deepseekr1", Path("WORK"), planned)
    print(yaml.safe_dump(given, sort_keys=False, allow_unicode=True).strip())
    lengths = np.concatenate(steps)
    p50, p95, p99 = np.percentile(lengths, [50, 95, 99])
    print(
        f"# {len(lengths):,} rows in {planned} steps, {WARM_UP} of them warm-up; tokens: mean {lengths.mean():.0f}, ",
        end="",
    )
    print(f"p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, max {lengths.max()}")
    if not chosen.get("neat_packing"):
        parts = [part for step in steps[WARM_UP:] for part in np.array_split(step, chosen[ACCUMULATION])]
        print(f"# padding efficiency to be expected: {padding_efficiency(parts):.3f}")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", nargs="?", help=", ".join(profiles.PROFILES))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="LLaMA-Factory settings on top")
    parser.add_argument("--table", metavar="FILE", help="print the rows of FILE as a table, and run nothing")
    parser.add_argument("--model", default="qwen2.5-7b", help="demo, qwen2.5-7b, qwen2.5-1.5b, qwen3-0.6b")
    parser.add_argument("--model-path", metavar="DIR", help="a model folder with real weights instead")
    parser.add_argument("--batch", type=int, help="rows of a micro-batch")
    parser.add_argument("--accumulation", type=int, help="micro-batches of an optimiser step")
    parser.add_argument("--cutoff-len", type=int, help="longest row, in tokens; a packed row's length")
    parser.add_argument("--attention", choices=["sdpa", "fa2"], help="default: the profile's, else LLaMA-Factory's")
    parser.add_argument("--group-by-length", action=argparse.BooleanOptionalAction, help="default: the profile's")
    parser.add_argument("--steps", type=int, default=20, help=f"to measure, after {WARM_UP} of warm-up (default 20)")
    parser.add_argument("--seconds", type=float, default=300, help="of training at most, warm-up too (default 300)")
    parser.add_argument("--memory-gib", type=float, help="cap a GPU's memory as if it were a card of this size")
    parser.add_argument("--card-peak", type=float, metavar="TFLOPS", help="dense bf16 peak of a card that is not known")
    parser.add_argument("--output", default="bench/train.jsonl", help="where the row is appended")
    parser.add_argument("--work", metavar="DIR", help="keep model, rows and log here; a second call reuses the model")
    parser.add_argument("--dry-run", action="store_true", help="print arguments and lengths, and run nothing")
    options = parser.parse_intermixed_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a lease that ends shall leave its row too
    with one_line_errors():
        if options.table:
            print(table.table(table.read_rows(options.table)))
        elif options.profile is None:
            raise UserError(f"name a profile ({', '.join(profiles.PROFILES)}) or --table FILE")
        else:
            measure(options)


if __name__ == "__main__":
    main()
