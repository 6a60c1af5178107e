"""The five curves of a training run, from LLaMA-Factory's trainer_state.json.

    python -m eval.charts saves/demo [reports/demo/charts]

Writes loss.png (with the evaluation loss where there is one), learning_rate.png, grad_norm.png, epoch.png and step.png,
also of a run that is not finished. (`trainer_log.jsonl` lacks the gradient norm.)
"""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from recipe import UserError, one_line_errors, read_text

CURVES = {
    "loss": "训练损失 Training loss",
    "learning_rate": "学习率 Learning rate",
    "grad_norm": "梯度范数 Gradient norm",
    "epoch": "轮次 Epoch",
    "step": "全局步数 Global step",
}


def read_log(run: str | Path) -> list[dict[str, float]]:
    """All rows that the trainer logged: training steps, evaluations, a summary."""
    path = Path(run) / "trainer_state.json"
    try:
        rows = [dict(row) for row in json.loads(read_text(path))["log_history"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: expected the state that LLaMA-Factory saves after training") from None
    if not all({"step", "epoch"} <= row.keys() for row in rows if "loss" in row):
        raise UserError(f"{path}: expected `step` and `epoch` in every logged row")
    if not all(isinstance(row[key], int | float) for row in rows for key in {*CURVES, "eval_loss"} & row.keys()):
        raise UserError(f"{path}: expected numbers in every logged row")
    return rows


def read_history(run: str | Path) -> list[dict[str, float]]:
    """The logged training steps of a run, oldest first."""
    steps = [row for row in read_log(run) if "loss" in row]
    if not steps:
        raise UserError(f"{Path(run) / 'trainer_state.json'}: no step was logged; lower logging_steps in the recipe")
    return steps


def last_state(run: Path) -> Path:
    """The folder that holds the newest state: `run` itself where it is finished, else its last checkpoint."""
    if (run / "trainer_state.json").exists():
        return run
    names = [file.parent.name.removeprefix("checkpoint-") for file in run.glob("checkpoint-*/trainer_state.json")]
    numbers = [int(name) for name in names if name.isdecimal()]
    if not numbers:
        raise UserError(f"{run}: no trainer_state.json and no checkpoint; name the output_dir of a run")
    return run / f"checkpoint-{max(numbers)}"


def points(name: str, history: list[dict[str, float]]) -> tuple[list[float], list[float], str]:
    """x, y and the label of x: a curve over the global step, the step itself over the count of log lines."""
    values = [row.get(name, float("nan")) for row in history]
    if name == "step":
        return [float(number) for number in range(1, len(history) + 1)], values, "log line"
    return [row.get("step", float("nan")) for row in history], values, "step"


def curves(history: list[dict[str, float]]) -> dict[str, str]:
    """One SVG a curve; the same bytes each time."""
    return {title: draw(*points(name, history)) for name, title in CURVES.items()}


def draw(x: list[float], y: list[float], label: str) -> str:
    """A line chart as an `<svg>` element, without a title: the page has the fonts for Chinese, matplotlib need not."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "medcot", "font.family": "sans-serif"}):
        file = io.StringIO()
        plot(x, y, label).savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :].rstrip()


def plot(x: list[float], y: list[float], label: str) -> Figure:
    figure = Figure(figsize=(4.2, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(x, y, color="#0b6e6e", linewidth=1.6, marker="o" if len(x) < 3 else None)
    axes.tick_params(labelsize=8)
    axes.set_xlabel(label, fontsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def to_png(name: str, log: list[dict[str, float]]) -> bytes:
    """The curve `name` as a PNG with its English title; the loss has the evaluations beside it."""
    figure = plot(*points(name, [row for row in log if "loss" in row]))
    (axes,) = figure.axes
    axes.set_title(CURVES[name].partition(" ")[2], fontsize=10)
    evaluations = [row for row in log if "eval_loss" in row]
    if name == "loss" and evaluations:
        axes.plot(*points("eval_loss", evaluations)[:2], color="#c4572e", linewidth=1.6, marker="o", markersize=3)
        axes.legend(["training", "evaluation"], fontsize=8, frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
    return file.getvalue()


def write_charts(run: Path, output: Path) -> None:
    """The charts of `run` in `output`; each file is replaced whole, and none before all are drawn."""
    source = last_state(run)
    steps, log = read_history(source), read_log(source)
    charts = {output / f"{name}.png": to_png(name, log) for name in CURVES}
    output.mkdir(parents=True, exist_ok=True)
    for path, content in charts.items():
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    if source != run:
        print(f"{run} is not finished: drawn from {source.name}")
    print(f"charts of {steps[-1]['step']} steps: {output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's output_dir, e.g. saves/demo")
    parser.add_argument("output", type=Path, nargs="?", help="folder for the charts (reports/<name of the run>/charts)")
    arguments = parser.parse_args()
    with one_line_errors():
        write_charts(arguments.run, arguments.output or Path("reports", arguments.run.resolve().name, "charts"))


if __name__ == "__main__":
    main()
