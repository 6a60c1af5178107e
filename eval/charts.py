"""The five curves of a training run, from LLaMA-Factory's trainer_state.json.

(`trainer_log.jsonl` beside it lacks the gradient norm.)
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from recipe import UserError, read_text

CURVES = {
    "loss": "训练损失 Training loss",
    "learning_rate": "学习率 Learning rate",
    "grad_norm": "梯度范数 Gradient norm",
    "epoch": "轮次 Epoch",
    "step": "全局步数 Global step",
}


def read_history(run: str | Path) -> list[dict[str, float]]:
    """The logged training steps of a finished run, oldest first."""
    path = Path(run) / "trainer_state.json"
    try:
        steps = [row for row in json.loads(read_text(path))["log_history"] if "loss" in row]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: expected the state that LLaMA-Factory saves after training") from None
    if not all({"step", "epoch"} <= row.keys() for row in steps):
        raise UserError(f"{path}: expected `step` and `epoch` in every logged row")
    if not steps:
        raise UserError(f"{path}: no step was logged; lower logging_steps in the recipe")
    return steps


def curves(history: list[dict[str, float]]) -> dict[str, str]:
    """One SVG a curve, over the global step (the step itself over the count of log lines); the same bytes each time."""
    steps = [row["step"] for row in history]
    lines = [float(number) for number in range(1, len(history) + 1)]
    return {
        title: draw(
            lines if name == "step" else steps,
            [row.get(name, float("nan")) for row in history],
            "log line" if name == "step" else "step",
        )
        for name, title in CURVES.items()
    }


def draw(x: list[float], y: list[float], label: str) -> str:
    """A line chart as an `<svg>` element, without a title: the page has the fonts for Chinese, matplotlib need not."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "medcot", "font.family": "sans-serif"}):
        figure = Figure(figsize=(4.2, 2.6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(x, y, color="#0b6e6e", linewidth=1.6, marker="o" if len(x) < 3 else None)
        axes.tick_params(labelsize=8)
        axes.set_xlabel(label, fontsize=8)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :].rstrip()
