"""`make data` as a whole, and each of its parts, measured in one run: the figures of the README's data section.

    python -m bench.preprocess [--what data|real|near|identifiers|all] [--quick]
    REAL_DATA=../shared/data python -m bench.preprocess --what real      # the public files, every oddity counted

`data` writes medical-o1-like records (question, thought and answer of about 80, 520 and 280 Chinese characters, as in
the published file) by a seeded generator, a tenth of the questions near-duplicates of others and one in a hundred the
question of an evaluation file, and builds them in a process of its own with everything switched on: normalisation,
near-duplicates, decontamination, lengths by a tokenizer, held-out neighbours, the card.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench import identifiers
from bench.near import ZH, edited, record, surroundings, table
from preprocess.normalise import measures
from preprocess.records import read_rows, to_json
from preprocess.sources import read_records, recognise
from preprocess.think import split
from recipes.demo.build_model import build_tokenizer

SIZES = (25_000, 200_000)
EVALUATION = 2_000  # questions of the evaluation file
NEAR, LEAKED = 0.1, 0.01  # shares of the records
RECIPE = """\
input: {folder}/records.json
dataset: bench
output: {folder}/out
dataset_dir: {folder}
decontaminate: [{folder}/evaluation.jsonl]
tokenizer: {folder}/tokenizer
cutoff_len: 2048
privacy: {privacy}
"""


def rows(count: int, seed: int = 1) -> Iterator[dict[str, str]]:
    """medical-o1-like rows; the planted ones stand among the others."""
    rng = random.Random(seed)
    asked: list[str] = []
    leaks = list(questions())
    for _ in range(count):
        draw = rng.random()
        if asked and draw < NEAR:
            question = edited(rng, rng.choice(asked), 0.02)
        elif draw < NEAR + LEAKED:
            question = edited(rng, rng.choice(leaks), 0.02)
        else:
            question = record(rng, ZH, rng.randrange(30, 130), 0.05)
            asked = [*asked[-5_000:], question]
        think, answer = record(rng, ZH, rng.randrange(250, 790), 0), record(rng, ZH, rng.randrange(120, 440), 0)
        yield {"Question": question, "Complex_CoT": think, "Response": answer}


def questions() -> Iterator[str]:
    rng = random.Random(0)
    return (record(rng, ZH, rng.randrange(40, 160), 0.05) for _ in range(EVALUATION))


def write_files(folder: Path, count: int, privacy: str) -> int:
    """The records, the evaluation file, a byte-level BPE tokenizer and data.yaml; the bytes of the records."""
    sample = []
    with open(folder / "records.json", "w", encoding="utf-8") as file:
        for number, row in enumerate(rows(count)):
            file.write(("[\n" if not number else ",\n") + to_json(row))
            sample += [row["Complex_CoT"]] if number < 500 else []
        file.write("\n]\n")
    with open(folder / "evaluation.jsonl", "w", encoding="utf-8") as file:
        file.writelines(to_json({"question": question}) + "\n" for question in questions())
    build_tokenizer(sample, 4000).save_pretrained(folder / "tokenizer")
    (folder / "data.yaml").write_text(RECIPE.format(folder=folder, privacy=privacy), encoding="utf-8")
    return (folder / "records.json").stat().st_size


# A process's peak memory counts what its parent had when it began, so a small one stands between.
TIMED = """
import os, resource, subprocess, sys, time
begin = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(time.perf_counter() - begin, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
sys.exit(code)
"""


def timed_build(recipe: Path) -> tuple[float, float, float]:
    """Seconds, CPU seconds and peak MiB of `python -m preprocess.build`."""
    build = [sys.executable, "-m", "preprocess.build", str(recipe)]
    done = subprocess.run([sys.executable, "-c", TIMED, *build], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    seconds, cpu, peak = map(float, done.stdout.split())
    return seconds, cpu, peak


def changed_measures(folder: Path) -> tuple[int, int]:
    """Kept rows, and how many of them hold other digits, units or signs than the record they came of."""
    given = {
        _measures(row["Question"], row["Complex_CoT"], row["Response"])
        for _, row in read_rows(f"{folder}/records.json")
    }
    kept = changed = 0
    for name in ("train", "eval"):
        for _, row in read_rows(f"{folder}/out/{name}.json"):
            parts = split(row["output"])
            kept += 1
            changed += _measures(row["instruction"], parts.think, parts.answer) not in given
    return kept, changed


def _measures(*texts: str) -> int:
    return hash(tuple(tuple(sorted(measures(text))) for text in texts))


def data(quick: bool) -> Iterator[str]:
    """The whole of `make data`, by size; the throughput at the largest against that at the smallest."""
    found, lines, speeds = [], [], []
    for count, privacy in [(size // (10 if quick else 1), "none") for size in SIZES] + [
        (SIZES[0] // (10 if quick else 1), "mask")
    ]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            size = write_files(folder, count, privacy)
            seconds, cpu, peak = timed_build(folder / "data.yaml")
            counts = json.loads((folder / "out/counts.json").read_text(encoding="utf-8"))
            kept, changed = changed_measures(folder)
        speeds.append(count / seconds)
        cells = [
            f"{count:,}",
            privacy,
            f"{size / 2**20:,.0f}",
            f"{seconds:.1f}",
            f"{cpu:.1f}",
            f"{count / seconds:,.0f}",
        ]
        found.append([*cells, f"{peak:,.0f}", f"{kept:,}", f"{changed:,}"])
        dropped = ", ".join(f"{reason} {number:,}" for reason, number in counts["dropped"].items())
        lines.append(f"{count:,}: {counts['train']:,} train, {counts['eval']:,} held out, dropped: {dropped}.")
    heads = [
        "records",
        "privacy",
        "MiB",
        "seconds",
        "CPU seconds",
        "records/s",
        "peak MiB",
        "kept",
        "digits or units changed",
    ]
    yield table(heads, found)
    yield from lines
    yield f"Throughput at {found[0][0]} over that at {found[1][0]}: {speeds[0] / speeds[1]:.2f}."


def real() -> Iterator[str]:
    """Each real file, built; every record accounted for, every oddity counted."""
    if not (real_data := os.environ.get("REAL_DATA")):
        yield "Real files: not measured, REAL_DATA names no folder."
        return
    found = []
    for path in sorted(Path(real_data).glob("*.json*")):
        place, first = next(read_rows(str(path)))
        read, counted = 0, Counter[str]()
        for _, item in read_records(str(path)):
            read += 1
            counted.update(item.meta.get("oddities", ()))
        odd = ", ".join(f"{name} {number:,}" for name, number in sorted(counted.items())) or "none"
        found.append([path.name, recognise(first, place), f"{read:,}", odd, built(path)])
    yield table(["file", "kind", "records", "oddities", "built"], found)


def built(path: Path) -> str:
    """What `make data` makes of a file, in a line; all of it held out or none where it has too few records."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "data.yaml"
        recipe.write_text(f"input: {path}\ndataset: r\noutput: {folder}/out\ndataset_dir: {folder}\n", encoding="utf-8")
        command = [sys.executable, "-m", "preprocess.build", str(recipe)]
        for overrides in ([], ["eval_share=0"]):
            done = subprocess.run([*command, *overrides], capture_output=True, text=True)
            if not done.returncode:
                counts = json.loads((Path(folder) / "out/counts.json").read_text(encoding="utf-8"))
                dropped = ", ".join(f"{reason} {number:,}" for reason, number in counts["dropped"].items()) or "none"
                return f"{counts['train']:,} train, {counts['eval']:,} held out, dropped: {dropped}"
        return done.stderr.strip().splitlines()[-1].replace(f"{path}: ", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("data", "real", "near", "identifiers", "all"), default="all")
    parser.add_argument("--quick", action="store_true", help="a tenth of the records or fewer: to try the command")
    arguments = parser.parse_args()
    for name, part in {"data": lambda: data(arguments.quick), "real": real}.items():
        if arguments.what in (name, "all"):
            print(f"## {name}\n\n{surroundings()}\n", flush=True)
            print("\n\n".join(part()) + "\n", flush=True)
    if arguments.what in ("near", "all"):
        # In a process of its own: what this one holds would count as its children's peak memory.
        subprocess.run([sys.executable, "-m", "bench.near", *["--quick"] * arguments.quick], check=True)
    if arguments.what in ("identifiers", "all"):
        print(f"## identifiers\n\n{surroundings()}")
        identifiers.main()


if __name__ == "__main__":
    main()
