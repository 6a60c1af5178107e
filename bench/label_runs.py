"""What the rows of bench/label.py are made of: records, the teacher, processes, and figures of several runs."""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.label_worker import KEY
from bench.near import ZH, record
from preprocess.records import to_json
from tests.teacher import Teacher, teacher

ROOT = Path(__file__).parent.parent
CORES = sorted(os.sched_getaffinity(0))
RECIPE = "recipes/healthai/label.yaml"
SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)  # in the name of a variable that no other tool gets
RIVALS = {  # what pip installs
    "openai": [f"openai=={version('openai')}"],
    "distilabel": ["distilabel[openai]==1.5.3", "requests"],  # it imports requests and doesn't ask for it
    "curator": ["bespokelabs-curator==0.1.31"],
}
Run = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """How much is measured, and the folder for it."""

    work: Path
    repeat: int
    quick: bool

    def size(self, whole: int, quick: int) -> int:
        return quick if self.quick else whole

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for one part, gone after it."""
        with tempfile.TemporaryDirectory(dir=self.work) as name:
            yield Path(name)


# --- what is asked, and of whom ---------------------------------------------------------------------------------------


def patient(rng: random.Random) -> str:
    """A patient record as HealthAI's are, about 480 characters."""
    lengths = {"主诉": 15, "现病史": 200, "既往史": 60, "体格检查": 70, "辅助检查": 90}
    parts = [f"{name}: {record(rng, ZH, length, 0.05)}" for name, length in lengths.items()]
    return "\n".join([f"性别: {rng.choice('男女')}", f"年龄: {rng.randrange(1, 95)}", *parts])


def write_records(path: Path, count: int) -> Path:
    rng = random.Random(count)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(to_json({"id": number, "feature_content": patient(rng)}) + "\n" for number in range(count))
    return path


@contextmanager
def server(**options: Any) -> Iterator[Teacher]:
    """The teacher, on the first core."""
    with teacher(**options) as process:
        os.sched_setaffinity(process.pid, CORES[:1])
        yield process


# --- who asks ---------------------------------------------------------------------------------------------------------


def on_last_core() -> None:
    os.sched_setaffinity(0, CORES[-1:])


def ask(at: Teacher, engine: str, python: str, job: Run, home: Path, **environment: str) -> Run:
    """One run of bench/label_worker.py: what it says and the server has seen; {"error": …} where it fails."""
    job |= {"engine": engine, "url": at.base_url, "journal": str(home / "journal.jsonl")}
    variables = {name: value for name, value in os.environ.items() if not SECRET.search(name)}
    variables |= {"HOME": str(home), "TELEMETRY_ENABLED": "false", "PYTHONPATH": str(ROOT) * (engine == "ours")}
    command = [python, "-P", str(ROOT / "bench/label_worker.py"), json.dumps(job)]
    given = {"cwd": home, "env": variables | environment, "stdin": subprocess.DEVNULL, "preexec_fn": on_last_core}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, **given)
    except subprocess.TimeoutExpired:
        return {"error": "no end after 600 s"}
    if done.returncode:
        return {"error": last_line(done.stderr or done.stdout)}
    seen = at.stats()
    counted = {name: seen[name] for name in ("span", "requests", "answers", "refused", "faults", "max_in_flight")}
    return {**{f"server_{name}": value for name, value in counted.items()}, **json.loads(done.stdout.splitlines()[-1])}


def ask_ours(bench: Bench, count: int, concurrency: int, **options: Any) -> list[Run]:
    """Our client over a server with these options, in fresh processes."""
    runs = []
    for _ in range(bench.repeat):
        with bench.folder() as folder, server(**options) as at:
            job = {"records": str(write_records(folder / "records.jsonl", count)), "concurrency": concurrency}
            runs.append(ask(at, "ours", sys.executable, job, folder))
    if errors := [run["error"] for run in runs if "error" in run]:
        sys.exit(f"error: bench.label_worker: {errors[0]}")
    return runs


def installed(bench: Bench, name: str) -> tuple[str, str]:
    """The Python of an environment with a rival in it, and why it has none, or an empty string."""
    folder, pins = bench.work / "venvs" / name, " ".join(RIVALS[name])
    python, marker = str(folder / "bin/python"), folder / "installed"
    if marker.exists() and marker.read_text() == pins:
        return python, ""
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *RIVALS[name]]
    for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], pip):
        print(f"{name}: {' '.join(command[1:])}", file=sys.stderr)
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return "", f"could not be installed: {last_line(done.stderr or done.stdout)}"
    marker.write_text(pins)
    return python, ""


def label_command(at: Teacher, path: Path, out: Path, *overrides: str) -> list[str]:
    keys = [f"input={path}", f"output={out}", f"base_url={at.base_url}", "model=teacher", "response_format=none"]
    return [sys.executable, "-m", "preprocess.label", RECIPE, *keys, *overrides]


def start(command: list[str]) -> subprocess.Popen[bytes]:
    given = {"cwd": ROOT, "env": os.environ | {"OPENAI_API_KEY": KEY}, "preexec_fn": on_last_core}
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    return subprocess.Popen(command, **given, **quiet)


def label(command: list[str], code: int = 0) -> None:
    """Run it to its end; any other exit code ends the benchmark."""
    if (found := start(command).wait()) != code:
        sys.exit(f"error: exit code {found}, expected {code}: {' '.join(command)}")


def peak_of(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Seconds that a process ran, and the most memory that it held, in MiB, as Linux counts it for itself alone."""
    begin, peak = time.perf_counter(), 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
        time.sleep(0.05)
    return time.perf_counter() - begin, peak / 1024


# --- figures of several runs ------------------------------------------------------------------------------------------


def last_line(text: str) -> str:
    """Of an error, for a cell of the table."""
    return " ".join((text.strip().splitlines() or ["nothing was said"])[-1].replace("|", " ").split())[:400]


def spread(values: Sequence[float], form: str = "{:+.1%}") -> str:
    """The median, with the lowest and the highest of several.

    >>> spread([0.02, 0.01, 0.05])
    '+2.0% (+1.0% to +5.0%)'
    """
    middle = form.format(statistics.median(values))
    return f"{middle} ({form.format(min(values))} to {form.format(max(values))})" if len(values) > 1 else middle


def over(runs: list[Run], ideal: float) -> str:
    """How much longer than `ideal` seconds, by the server's span and by the client's clock."""
    spans, clocks = ([run[name] / ideal - 1 for run in runs] for name in ("server_span", "seconds"))
    return f"span {spread(spans)}, clock {spread(clocks)}"


def lost(runs: list[Run]) -> str:
    return f"{sum(run['failed'] for run in runs)} lost"
