from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.charts import CURVES, to_png, write_charts
from recipe import UserError
from tests.conftest import ROOT

STEPS = [{"step": s, "epoch": s / 10, "loss": 5 - s / 9, "learning_rate": 1e-3, "grad_norm": 1.0} for s in (2, 4, 6)]
EVALUATIONS = [{"step": 6, "epoch": 0.6, "eval_loss": 4.5}]
STATE = {"log_history": [*STEPS, *EVALUATIONS, {"step": 6, "epoch": 0.6, "train_loss": 4.6}]}


def charts(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "eval.charts", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_five_charts_of_a_run(write: Callable[..., str], tmp_path: Path) -> None:
    write("saves/run/trainer_state.json", STATE)
    done = charts(tmp_path / "saves/run", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "") and "charts of 6 steps" in done.stdout
    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"loss.png", "learning_rate.png", "grad_norm.png", "epoch.png", "step.png"}
    assert all(content.startswith(b"\x89PNG") for content in files.values()) and len(set(files.values())) == 5
    write_charts(tmp_path / "saves/run", tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == files


def test_evaluations_are_drawn_with_the_loss_alone() -> None:
    differ = [name for name in CURVES if to_png(name, STEPS) != to_png(name, STEPS + EVALUATIONS)]
    assert differ == ["loss"]


def test_an_unfinished_run_is_drawn_from_its_newest_checkpoint(
    write: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("saves/run/checkpoint-4/trainer_state.json", {"log_history": STEPS[:2]})
    write("saves/run/checkpoint-10/trainer_state.json", STATE)
    write("saves/run/checkpoint-12/optimizer.pt", "half written")
    monkeypatch.chdir(tmp_path)
    write_charts(Path("saves/run"), Path("reports/run/charts"))
    assert "saves/run is not finished: drawn from checkpoint-10" in capsys.readouterr().out
    assert len(list(tmp_path.glob("reports/run/charts/*.png"))) == 5


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "no trainer_state.json and no checkpoint"),
        ("{", "expected the state"),
        ({"log_history": EVALUATIONS}, "no step was logged"),
        ({"log_history": [STEPS[0] | {"loss": "high"}]}, "expected numbers"),
        ({"log_history": [{"loss": 1.0}]}, "expected `step` and `epoch`"),
    ],
)
def test_what_is_no_run_is_one_line(write: Callable[..., str], tmp_path: Path, state: object, message: str) -> None:
    if state is not None:
        write("saves/run/trainer_state.json", state)
    with pytest.raises(UserError, match=message):
        write_charts(tmp_path / "saves/run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_can_not_be_written_is_one_line(write: Callable[..., str], tmp_path: Path) -> None:
    write("saves/run/trainer_state.json", STATE)
    done = charts(tmp_path / "saves/run", write("out", "a file"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
