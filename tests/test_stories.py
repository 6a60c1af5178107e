"""Two whole stories as a newcomer lives them: the READMEs' lines in order, through make, on a tiny model on a CPU.

The lines are read from "Commands, in order" of the recipes' READMEs. In a copy of the project stands the tiny model
under the real model's name, and a teacher of this machine at the addresses; what a CPU can't do (Unsloth, bf16) and
what would take hours is overridden behind the line's own overrides, and nothing else is changed. With REAL_DATA=dir
the records are the real ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT
from tests.teacher import Teacher, teacher

pytestmark = pytest.mark.slow

CPU = "use_unsloth=false bf16=false use_cpu=true preprocessing_num_workers=1 do_eval=true eval_strategy=\\\"'no'\\\""
SHORT = (
    "max_steps=2 save_steps=1 eval_steps=2 logging_steps=1 per_device_train_batch_size=2 gradient_accumulation_steps=1"
)
EXTRA = {
    "check": f"{CPU} {SHORT}",
    "train": f"{CPU} {SHORT}",
    "predict": "limit=2 max_tokens=16",
    "submission": "max_tokens=16 tries=1",
    "eval": "limit=4",
    "chat": "-m 16",
}


def lines_of(recipe: str) -> list[str]:
    """The commands of a README's "Commands, in order", in order."""
    text = (ROOT / f"recipes/{recipe}/README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Commands, in order\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]
    if talk := re.search(r"^## Talk to it\n(.*?)^## ", text, re.MULTILINE | re.DOTALL):
        section += talk[1]
    found = re.findall(r"```bash\n(.*?)```|`((?:make|python -m) [^`]+)`", section, re.DOTALL)
    lines = [line for block, one in found for line in (block.splitlines() if block else [" ".join(one.split())])]
    lines = [line.partition("  #")[0] for line in lines if not line.startswith("make ") or "RECIPE=" in line]
    return [line for line in lines if not any(word in line for word in ("swanlab", "…", "saves/demo"))]


class Story:
    """A copy of the project in a folder, and the commands run in it."""

    def __init__(self, folder: Path, tiny: SimpleNamespace, server: Teacher) -> None:
        self.folder, self.server, self.ran = folder, server, []
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
        )
        for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        (folder / ".venv").mkdir()
        (folder / ".venv/installed").touch()  # the packages are those that run this test
        for name in ("Qwen2.5-7B-Instruct", "Qwen3-0.6B"):
            shutil.copytree(tiny.root / "model", folder / "models" / name)
        self.environment = os.environ | {"OPENAI_API_KEY": "sk-none-0123456789", "CUDA_VISIBLE_DEVICES": ""}
        self.environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "2",
            "PYTHONUNBUFFERED": "1",
        }

    def adapted(self, line: str) -> str:
        """A README's line with the teacher's address, and what makes it small behind its own overrides."""
        line = re.sub(r"https?://[^ #]+?/v1", self.server.base_url, line)
        if not line.startswith("make "):
            return line + " -m 16" * ("chat.assistant" in line)
        line = re.sub(r"(?<=model=)[^ \"]+|(?<=/v1#)\w+", "teacher", line)
        step, quoted = line.split()[1], re.search(r'ARGS="([^"]*)"', line)
        extra = "" if step == "submission" and "http" in line else EXTRA.get(step, "")
        return f'{line[: quoted.start()] if quoted else line} ARGS="{quoted[1] if quoted else ""} {extra}"'

    def run(self, line: str, said: str | None = None, fails: bool = False) -> str:
        """Run one line, with `said` for its input; AssertionError with what it printed where it fails, or does not."""
        self.server.set(style="judge" if line.startswith("make judge") else "diagnosis")
        command, begun = self.adapted(line), time.monotonic()
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            input=said,
        )
        printed = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        print(f"\n{time.monotonic() - begun:5.1f} s  {line}", end="")
        assert (done.returncode != 0) == fails, f"{command}\n{printed}"
        assert "Traceback" not in printed, f"{command}\n{printed}"
        self.ran.append(line)
        return printed

    def serves(self, line: str, ready: str) -> None:
        """Run a line that serves a page until it is stopped; what it prints names the page."""
        process = subprocess.Popen(
            self.adapted(line), shell=True, cwd=self.folder, env=self.environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            printed = ""
            while not (found := re.search(ready, printed)):
                read = process.stdout.readline()
                assert read, printed
                printed += read
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor())
            assert b"<html" in opener.open(found[0], timeout=30).read().lower()
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)
        print(f"\n{'served':>7}  {line}", end="")
        self.ran.append(line)

    def all_of(self, recipe: str) -> None:
        """Every line of a recipe's README."""
        for line in lines_of(recipe):
            if line.startswith("make download"):
                continue  # tests/test_download.py
            if line.startswith("make review"):
                self.serves(line, r"http://127\.0\.0\.1:\d+/\S*")
            elif line.startswith("make web"):
                self.serves(line, r"(?<=local URL:  )http://127\.0\.0\.1:\d+")
            elif line not in self.ran:
                if "_merged" in line:
                    self.run(f"make export RECIPE={recipe}")
                # The tiny model writes no JSON: its submission is said to be without diagnoses, and fails.
                fails = "submission" in line and "http" not in line
                self.run(line, "医生，孩子发热两天，要紧吗？\n" if " chat" in line else None, fails)


@pytest.fixture
def server() -> Teacher:
    with teacher(style="diagnosis") as one:
        yield one


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_competitions_two_stages(tmp_path: Path, tiny: SimpleNamespace, server: Teacher) -> None:
    story = Story(tmp_path / "project", tiny, server)
    raw = story.folder / "data/healthai/raw"
    raw.mkdir(parents=True)
    name, real = "camp_data_step_1_without_answer.jsonl", os.environ.get("REAL_DATA")
    source = next(Path(real).glob(f"*{name}")) if real else ROOT / "data/samples" / name
    kept = source.read_text(encoding="utf-8").splitlines(keepends=True)[:200]
    (raw / f"20250208181531_{name}").write_text("".join(kept[:-3]), encoding="utf-8")
    second = raw / f"20250312115015_{name.replace('step_1', 'step_2')}"
    second.write_text("".join(kept[-3:]), encoding="utf-8")
    story.all_of("healthai")
    story.run(next(line for line in story.ran if "submission check" in line))  # the last line asked the teacher
    story.all_of("healthai_distill")
    for recipe in ("healthai", "healthai_distill"):
        reports = story.folder / "reports" / recipe
        metrics = json.loads((reports / "metrics.json").read_text(encoding="utf-8"))
        assert metrics["diagnosis"]["prompts"] >= 1 and (reports / "index.html").stat().st_size > 10_000
        rows = rows_of(reports / "predict_output.jsonl")
        assert [list(row) for row in rows] == [["id", "reason", "diseases", "feature_content"]] * 3
        assert [row["id"] for row in rows] == [json.loads(line)["id"] for line in kept[-3:]]
        labelled = {str(row["id"]) for row in rows_of(story.folder / "data" / recipe / "labelled.jsonl")}
        assert labelled and not labelled & {str(row["id"]) for row in rows}  # step 2's records are not learnt from
    made = json.loads((story.folder / "data/healthai/train.json").read_text(encoding="utf-8"))
    assert all(json.loads(row["output"].rpartition("</think>")[2]).keys() == {"reason", "diseases"} for row in made)


def test_the_assistant_of_ten_scenarios(tmp_path: Path, tiny: SimpleNamespace, server: Teacher) -> None:
    story = Story(tmp_path / "project", tiny, server)
    raw, real = story.folder / "data/assistant/raw", os.environ.get("REAL_DATA")
    raw.mkdir(parents=True)
    if real:
        shutil.copy(Path(real) / "delicate_medical_r1_val.jsonl", raw)
    else:
        records = json.loads((ROOT / "data/samples/medical_o1_sft.json").read_text(encoding="utf-8"))
        names = {"Question": "question", "Complex_CoT": "think", "Response": "answer"}
        rows = [{"instruction": "简述。"} | {new: row[old] for old, new in names.items()} for row in records]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (raw / "train.jsonl").write_text(text, encoding="utf-8")
    story.all_of("assistant")
    made = json.loads((story.folder / "data/assistant/train.json").read_text(encoding="utf-8"))
    assert len({row["system"] for row in made}) >= 3 and all(row["system"] for row in made)
