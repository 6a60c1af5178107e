"""What labelling must show: speed, kills, limits, budget, memory, packed log-probabilities, in one table.

    python -m bench.label [--what speed|rivals|kills|cap|refusals|budget|journal|logprobs|all] [--repeat 3] [--quick]

The teacher is `tests/teacher.py`, a process of its own on one core; the client is a fresh process on another for every
repeat. Times are given twice: the server's span (its first request to its last answer) and the client's own clock. The
records are patient records of about 1.4 KB by a seeded generator. The other tools are installed by pip, each in an
environment under `--work`, and are used as their documentation shows; one that can't be installed or started is
reported with the last line of its error. Everything that was counted is in a JSON file there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bench.label_runs import (
    CORES,
    RECIPE,
    RIVALS,
    ROOT,
    Bench,
    Run,
    ask,
    ask_ours,
    installed,
    label,
    label_command,
    lost,
    over,
    patient,
    peak_of,
    server,
    spread,
    start,
    write_records,
)
from bench.near import table
from bench.train import commit
from chat.journal import key_of
from chat.logprobs import Positions, Reader, Writer, read_vocabulary
from preprocess.ask import Asker, Label
from preprocess.given import given
from preprocess.records import to_json
from recipe import load
from tests.teacher import Teacher, encode, logprobs

SPEED = [(64, 1.0, 1_280, "≤ 2 %"), (64, 0.2, 3_200, "≤ 8 %"), (512, 2.0, 4_096, "≤ 12 %")]
HASTY = ["connect_timeout=1", "first_token_timeout=2", "timeout=4"]  # a hang shall not outlast a kill


@dataclass
class Figure:
    """A row of the table, and the runs that it comes of."""

    what: str
    bar: str
    measured: str
    runs: list[Run] = field(default_factory=list)


# --- rows that ask by the client --------------------------------------------------------------------------------------


def speed(bench: Bench) -> Iterator[Figure]:
    for concurrency, latency, count, bar in SPEED:
        count = bench.size(count, 3 * concurrency)
        runs = ask_ours(bench, count, concurrency, latency=latency)
        what = f"time over the ideal, {count:,} questions, {concurrency} in flight at {latency:g} s, journal on"
        yield Figure(what, bar, f"{over(runs, count / concurrency * latency)}; {lost(runs)}", runs)


def cap(bench: Bench) -> Iterator[Figure]:
    count, rate = bench.size(1_280, 150), 30.0
    runs = ask_ours(bench, count, 64, rate=rate, latency=1.0)
    shares = [run["answers"] / run["server_span"] / rate for run in runs]
    refused = [run["server_refused"].get("rate", 0) / run["server_requests"] for run in runs]
    what = f"server capped at {rate:g} answers a second, 64 in flight, {count:,} questions"
    measured = f"{spread(shares, '{:.1%}')} of the cap, 429s {spread(refused, '{:.1%}')} of requests, {lost(runs)}"
    yield Figure(what, "≥ 92 % of the cap, 429s ≤ 5 %, 0 lost", measured, runs)


def refusals(bench: Bench) -> Iterator[Figure]:
    count = bench.size(1_280, 192)
    for kind, after in (("429", "without Retry-After"), ("429_seconds", "with Retry-After 1")):
        runs = ask_ours(bench, count, 64, latency=1.0, faults=0.2, kinds=kind, max_faults=99)
        times = [[run[name] * 64 / count for run in runs] for name in ("server_span", "seconds")]
        measured = f"span {spread(times[0], '{:.2f}')} ×, clock {spread(times[1], '{:.2f}')} × the ideal, {lost(runs)}"
        what = f"20 % of requests refused whatever the load, {after}, 64 in flight at 1 s, {count:,} questions"
        yield Figure(what, "≤ 1.6 × the ideal, 0 lost", measured, runs)


def rivals(bench: Bench) -> Iterator[Figure]:
    """Each as it comes; Curator also with the tiktoken file that litellm, which it depends on, brings along."""
    count = bench.size(1_280, 192)
    pythons = {"ours": (sys.executable, "")} | {name: installed(bench, name) for name in RIVALS}
    variables: dict[str, dict[str, str]] = {name: {} for name in pythons}
    for files in (bench.work / "venvs/curator").glob("lib/*/site-packages/litellm/litellm_core_utils/tokenizers"):
        variables["curator with litellm's tiktoken file"] = {"TIKTOKEN_CACHE_DIR": str(files)}
    found: dict[str, list[Run]] = {name: [] for name in variables}
    for name in [*variables] * bench.repeat:  # by turns, so that a noisy minute is no one's alone
        engine = name.split()[0]
        python, fault = pythons[engine]
        with bench.folder() as home, server(latency=1.0) as at:
            job = {"records": str(write_records(home / "records.jsonl", count)), "concurrency": 64}
            run = {"error": fault} if fault else ask(at, engine, python, job, home, **variables[name])
        found[name].append(run)
    for name, runs in found.items():
        whole = [run for run in runs if "error" not in run]
        errors = [run["error"] for run in runs if "error" in run]
        measured = [f"{len(errors)} of {len(runs)} runs failed: {errors[0]}"] if errors else []
        if whole:
            answers = ", ".join(f"{run['answers']:,}" for run in whole)
            seconds = spread([run["seconds"] for run in whole], "{:.1f}")
            measured.insert(0, f"{over(whole, count / 64)}; {seconds} s; answers {answers}")
        what = " ".join([f"{name}:", *RIVALS.get(name.split()[0], ["chat.client, journal on"])])
        bar = "ahead of distilabel and Curator" if name == "ours" else "–"
        yield Figure(f"{what}; {count:,} records, 64 in flight at 1 s", bar, "; ".join(measured), runs)


# --- rows that label --------------------------------------------------------------------------------------------------


def kills(bench: Bench) -> Iterator[Figure]:
    """SIGKILL at any moment of a process's life, its start included, over a server that fails 30 % of the time."""
    count, wanted, concurrency = bench.size(2_000, 100), bench.size(100, 4), 16
    rng, lives = random.Random(count), []
    with bench.folder() as folder:
        path, calm, out = write_records(folder / "records.jsonl", count), folder / "calm", folder / "out"
        with server() as at:
            label(label_command(at, path, calm))
        with server(latency=1.0, faults=0.3, retry_after=0.2, drip=1.0) as at:
            command = label_command(at, path, out, f"concurrency={concurrency}", *HASTY)
            while len(lives) < wanted:
                process = start(command)
                time.sleep(rng.uniform(1.0, 3.0))
                seen = at.stats()
                if process.poll() is not None:  # nothing is left to be asked
                    break
                process.kill()
                process.wait()
                lives.append({"in_flight": seen["in_flight"], "again": seen["answers"] - len(seen["by_request"])})
            label(command)
            seen = at.stats()
        lives.append({"in_flight": 0, "again": seen["answers"] - len(seen["by_request"])})
        runs = [{**examined(path, out, calm), "lives": lives, "faults": seen["faults"]}]
    # What a life asks again may come of any kill before it, as many a life ends while it starts.
    again = [after["again"] - before["again"] for before, after in pairwise(lives)]
    flying, one = [life["in_flight"] for life in lives[:-1]], runs[0]
    measured = (
        f"{len(flying)} kills: {one['lost']} lost, {one['twice']} twice, {one['unreadable']} unreadable lines "
        f"({one['torn']} torn ones set aside); in flight at a kill, and so asked again, {statistics.mean(flying):.1f}, "
        f"{max(flying)} at most; answers that had left the server and were asked for again {sum(again)} in all, "
        f"{max(again)} at most; output {'the same bytes' if one['same'] else 'DIFFERENT'}; "
        f"verify exit code {one['verify']}"
    )
    bar = "≥ 100 kills, 0 lost, 0 twice, 0 unreadable; asked again ≤ in flight; the same bytes"
    what = f"{count:,} records, {concurrency} in flight, SIGKILL at random moments, 30 % of tries fail in 14 ways"
    yield Figure(what, bar, measured, runs)


def examined(path: Path, out: Path, calm: Path) -> Run:
    """What is in the outputs of a killed run, against its input and an undisturbed run's outputs."""
    unreadable = 0

    def rows(name: Path) -> list[Any]:
        nonlocal unreadable
        found = []
        for line in name.read_bytes().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                unreadable += 1
        return found

    outputs = [out / name for name in ("labelled.jsonl", "failed.jsonl")]
    ids = Counter(str(row["id"]) for output in outputs for row in rows(output))
    keys = Counter(entry["key"] for entry in rows(out / "journal.jsonl") if entry["ok"])
    torn = out / "journal.jsonl.torn"
    verify = [sys.executable, "-m", "chat.journal", "verify", str(out / "journal.jsonl"), *map(str, outputs)]
    verify += ["--summary", str(out / "summary.json")]
    return {
        "lost": len({str(row["id"]) for row in rows(path)} - ids.keys()),
        "twice": sum(number > 1 for counter in (ids, keys) for number in counter.values()),
        "unreadable": unreadable,
        "torn": len(torn.read_bytes().splitlines()) if torn.exists() else 0,
        "same": all(output.read_bytes() == (calm / output.name).read_bytes() for output in outputs),
        "verify": subprocess.run(verify, cwd=ROOT, capture_output=True).returncode,
    }


def budget(bench: Bench) -> Iterator[Figure]:
    count = bench.size(10_000, 400)
    cap_ = count * 510  # tokens; a question and its answer have twice that
    with bench.folder() as folder, server(latency=0.2) as at:
        path, out = write_records(folder / "records.jsonl", count), folder / "out"
        keys = (f"max_total_tokens={cap_}", "max_tokens=1024", "concurrency=64")
        label(label_command(at, path, out, *keys), code=1)
        seen, summary = at.stats(), json.loads((out / "summary.json").read_text(encoding="utf-8"))
    spent = seen["usage"]["prompt_tokens"] + seen["usage"]["completion_tokens"]
    passed = max(0, spent - cap_)
    measured = (
        f"{spent:,} of {cap_:,} tokens by the server's count: {passed:,} ({passed / cap_:.2%}) over the cap, "
        f"{max(0, cap_ - spent) / cap_:.2%} unused; {summary['answered']:,} answered, {summary['left']:,} left; "
        f"in flight {seen['max_in_flight']} at most, {seen['in_flight']} at the end"
    )
    run = {"cap": cap_, "spent": spent, "in_flight": seen["in_flight"], "summary": summary}
    yield Figure(f"budget cap on {count:,} records", "over it ≤ what was in flight, ≤ 1 %", measured, [run])


OPEN = """
import sys, time
from chat.journal import Journal
begin = time.perf_counter()
with Journal(sys.argv[1]) as journal:
    seconds, answered = time.perf_counter() - begin, len(journal)
status = open("/proc/self/status").read()
print(seconds, answered, int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def journal(bench: Bench) -> Iterator[Figure]:
    """A million realistic lines are opened; for the memory the records are short, as only their number matters."""
    count = bench.size(1_000_000, 20_000)
    with bench.folder() as folder, server() as at:
        path, line, runs = folder / "journal.jsonl", answered_line(at, folder, patient(random.Random(1))), []
        with open(path, "w", encoding="utf-8") as file:
            for number in range(count):
                file.write(to_json(line | {"key": f"{random.getrandbits(256):064x}", "id": str(number)}) + "\n")
        for _ in range(bench.repeat):
            command = [sys.executable, "-c", OPEN, str(path)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            runs.append(dict(zip(("seconds", "answered", "mib"), map(float, done.stdout.split()), strict=True)))
        size = path.stat().st_size / 2**30
    seconds, mib = spread([run["seconds"] for run in runs], "{:.1f}"), spread([run["mib"] for run in runs], "{:.0f}")
    measured = f"open after {seconds} s, peak {mib} MiB, {size:.1f} GiB of lines"
    yield Figure(f"journal of {count:,} lines, ready to go on", "≤ 15 s, ≤ 1 GB", measured, runs)
    runs, missing = [], bench.size(5_000, 500)  # so many that the index is merged
    for count in (1_000, 5_000) if bench.quick else (10_000, 100_000, 1_000_000):
        runs.append(memory(bench, count, missing))
        print(f"{runs[-1]}", file=sys.stderr, flush=True)
    told = "; ".join(f"{run['records']:,}: {run['mib']:.0f} MiB ({run['seconds']:.0f} s)" for run in runs)
    grown = 1.048576 * (max(run["mib"] for run in runs) - runs[0]["mib"])
    what = f"peak memory of labelling, all but {missing:,} of the records answered before"
    yield Figure(what, "flat within 50 MB", f"+{grown:.0f} MB; {told}", runs)


def answered_line(at: Teacher, folder: Path, text: str) -> Run:
    """The journal's line of one record that was labelled for real."""
    path = folder / "one.jsonl"
    path.write_text(to_json({"id": 0, "feature_content": text}) + "\n", encoding="utf-8")
    label(label_command(at, path, folder / "one"))
    return json.loads((folder / "one/journal.jsonl").read_text(encoding="utf-8"))


def memory(bench: Bench, count: int, missing: int) -> Run:
    """Label `count` short records, of which the journal answers all but the last `missing`."""
    text = "性别: 女\n年龄: 34\n主诉: 夜间咳嗽三周，平卧加重\n现病史: 受凉后起病，少量白痰，无发热"
    with bench.folder() as folder, server() as at:
        line, path, out = answered_line(at, folder, text), folder / "records.jsonl", folder / "out"
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(to_json({"id": number, "feature_content": text}) + "\n" for number in range(count))
        command = label_command(at, path, out, "concurrency=64")
        settings = load(Label, RECIPE, command[4:])
        asker = Asker(settings, "teacher", "none")
        out.mkdir()
        with open(out / "journal.jsonl", "w", encoding="utf-8") as file:
            for _, _, shown, _ in islice(given(settings, frozenset()), count - missing):
                (question,) = asker.questions(shown)
                key = key_of(question.asked, question.id, question.sample)
                file.write(to_json(line | {"key": key, "id": question.id}) + "\n")
        at.reset()
        process = start(command)
        seconds, mib = peak_of(process)
        answers = at.stats()["answers"]
    if process.returncode or answers != missing:
        sys.exit(f"error: preprocess.label: exit code {process.returncode}, {answers} answers, expected {missing}")
    return {"records": count, "mib": mib, "seconds": seconds}


# --- log-probabilities ------------------------------------------------------------------------------------------------


def packed(bench: Bench) -> Iterator[Figure]:
    """Both ways of knowing the ids: the server tells them, or a tokenizer maps the tokens' bytes."""
    from recipes.demo.build_model import build_tokenizer  # it takes seconds

    rng, k = random.Random(20), 20
    texts = [patient(rng) for _ in range(bench.size(200, 10))]
    replies = [logprobs(text, k, True)["content"] for text in texts]
    with bench.folder() as folder:
        tokenizer = str(folder / "tokenizer")
        build_tokenizer(texts, 4_000).save_pretrained(tokenizer)
        ids = read_vocabulary(tokenizer).ids
        spelled = [[respelled(rng.sample(list(ids), k + 1), token) for token in reply] for reply in replies]
        for source, named, contents in (("the server", "", replies), ("a local tokenizer", tokenizer, spelled)):
            path, keys = folder / f"{len(named)}.logprobs", [f"{number:064x}" for number in range(len(texts))]
            with Writer(path, named, "teacher", k) as writer:
                for key, content in zip(keys, contents, strict=True):
                    writer.append(key, content)
            reader, tokens = Reader(path), sum(map(len, contents))
            same = all(is_same(reader[key], content, ids) for key, content in zip(keys, contents, strict=True))
            run = {"bytes": path.stat().st_size / tokens, "json_bytes": len(encode(contents)) / tokens, "same": same}
            measured = f"{run['bytes']:.1f} bytes a token, {run['json_bytes']:,.0f} as JSON; "
            measured += f"read back {'exactly' if same else 'WRONG'}"
            what = f"top_logprobs packed, k = {k}, ids of {source}, {tokens:,} tokens"
            yield Figure(what, "≤ 130 bytes a token, read back exactly", measured, [run])


def respelled(names: list[bytes], token: Run) -> Run:
    """The same log-probabilities for other tokens, as a server writes them that tells each token's bytes."""
    spelled = [{"token": name.decode(errors="replace"), "bytes": list(name)} for name in names]
    others = [other | new for other, new in zip(token["top_logprobs"], spelled[1:], strict=True)]
    return token | spelled[0] | {"top_logprobs": others}


def is_same(found: Positions, content: list[Run], ids: Mapping[bytes, int]) -> bool:
    """Whether packed positions hold every token's id, and its log-probability as fp16."""

    def pairs(tokens: list[Run]) -> list[tuple[int, float]]:
        told = [token["token"].partition("token_id:")[2] for token in tokens]
        numbers = [int(id_) if id_ else ids[bytes(token["bytes"])] for id_, token in zip(told, tokens, strict=True)]
        return [(id_, float(np.float16(token["logprob"]))) for id_, token in zip(numbers, tokens, strict=True)]

    rows = [list(zip(*row, strict=True)) for row in zip(found.ids.tolist(), found.logprobs.tolist(), strict=True)]
    chosen = list(zip(found.chosen.tolist(), found.chosen_logprob.tolist(), strict=True))
    return rows == [pairs(token["top_logprobs"]) for token in content] and chosen == pairs(content)


# --- the table --------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "speed": speed,
    "rivals": rivals,
    "kills": kills,
    "cap": cap,
    "refusals": refusals,
    "budget": budget,
    "journal": journal,
    "logprobs": packed,
}


def surroundings() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("openai", "aiohttp"))
    busy, alone = ", ".join(f"{value:.1f}" for value in os.getloadavg()), CORES[0] == CORES[-1]
    pinned = "server and client share the one core" if alone else f"server on core {CORES[0]}, client on {CORES[-1]}"
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit()}, Python {platform.python_version()}, {packages}, "
        f"{len(CORES)} cores, {pinned}, load {busy}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--repeat", type=int, default=3, help="runs of what is timed; median, lowest and highest")
    parser.add_argument("--work", default="build/bench-label", help="environments of the other tools, and results")
    parser.add_argument("--quick", action="store_true", help="a few records, once: to try the command")
    arguments = parser.parse_args()
    work = Path(arguments.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(work, 1 if arguments.quick else arguments.repeat, arguments.quick)
    figures, begun = [], surroundings()
    for name, part in PARTS.items():
        if arguments.what in (name, "all"):
            for figure in part(bench):
                print(f"{figure.what}: {figure.measured}", file=sys.stderr, flush=True)
                figures.append(figure)
    told = to_json({"begun": begun, "figures": list(map(asdict, figures))}, indent=1)
    (work / f"{arguments.what}.json").write_text(told, encoding="utf-8")
    print(f"{begun}\n")
    print(table(["what", "bar", "measured"], [[one.what, one.bar, one.measured] for one in figures]))


if __name__ == "__main__":
    main()
