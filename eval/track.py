"""A result for wandb or SwanLab: the figures once, and for wandb one table of the answers that is never logged again.

Without a key wandb writes a run to ./wandb (`wandb sync wandb/offline-run-*` uploads it later) and SwanLab to
./swanlog (`swanlab watch swanlog` shows it).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from chat.text import visible
from preflight.rules import swanlab_ready, wandb_ready
from recipe import UserError

Row = dict[str, Any]
TRACKERS = ("none", "wandb", "swanlab")
PROJECT = "medcot-evaluation"  # where WANDB_PROJECT or SWANLAB_PROJECT names no other one
LEFT_OUT = ("made_from", "data", "claim", "checks", "judges")  # metrics.json and the report have them in full
ANSWER = ("think", "answer", "finish_reason", "checks passed", "nll per token")


def track(metrics: Mapping[str, Any], samples: Sequence[Row], report_to: str) -> None:
    """Send a result to `report_to`, one of TRACKERS; `none` does nothing.

    Raises UserError for another name, and where the tracker fails: the report's files are not touched by that.
    """
    if report_to not in TRACKERS:
        raise UserError(f"report_to: {report_to!r}; expected one of {', '.join(TRACKERS)}")
    if report_to == "none":
        return
    try:
        {"wandb": _wandb, "swanlab": _swanlab}[report_to](metrics, samples)
    except Exception as error:  # theirs are many, and none may look as if the evaluation had failed
        raise UserError(
            f"{report_to}: {type(error).__name__}: {_first_line(error)}; the report is written; "
            "set report_to: none, or WANDB_MODE=offline / SWANLAB_MODE=local"
        ) from None


def _first_line(error: Exception) -> str:
    return visible(str(error).strip().partition("\n")[0])[:200]


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the result by their path, `perplexity/ratio/value`, but for LEFT_OUT."""
    return dict(_numbers(metrics, ""))


def _numbers(value: Any, path: str) -> list[tuple[str, float]]:
    if isinstance(value, Mapping):
        parts = {f"{path}/{key}".strip("/"): part for key, part in value.items() if key not in LEFT_OUT}
        return [found for name, part in parts.items() for found in _numbers(part, name)]
    return [(path, value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def table(arms: Sequence[str], samples: Sequence[Row]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows, one a prompt: its answers by each arm, and what judge and raters said."""
    columns = ["id", "prompt", "reference", *(f"{arm}: {what}" for arm in arms for what in ANSWER), "judge", "raters"]
    rows = []
    for sample in samples:
        if "arms" not in sample:
            continue
        row: list[Any] = [visible(str(sample.get(name, ""))) for name in ("id", "prompt", "reference")]
        scored = sample.get("scored", {"nll": {}})
        for arm in arms:
            side, nll = sample["arms"][arm], scored["nll"].get(arm)
            checks = [check[1] for check in side.get("checks", ())]
            row += [visible(str(side[name])) for name in ("think", "answer", "finish_reason")]
            row += [sum(checks) / len(checks) if checks else None, None if nll is None else nll / scored["tokens"]]
        judged = [one["result"] for one in sample.get("judge", {}).get("pairwise", ())]
        row += [", ".join(judged), ", ".join(vote["vote"] for vote in sample.get("votes", ()))]
        rows.append(row)
    return columns, rows


def _name(metrics: Mapping[str, Any]) -> str:
    return f"{metrics.get('made_from', {}).get('dataset', 'evaluation')}: {', '.join(metrics['arms'])}"


def _wandb(metrics: Mapping[str, Any], samples: Sequence[Row]) -> None:
    import wandb

    columns, rows = table(metrics["arms"], samples)
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=_name(metrics),
        job_type="evaluation",
        mode=None if wandb_ready() else "offline",
        config=dict(metrics.get("made_from", {})),
        settings=wandb.Settings(console="off", silent=True, save_code=False),
    )
    failed = 1
    try:
        answers = {"answers": wandb.Table(columns=columns, data=rows, log_mode="IMMUTABLE")} if rows else {}
        run.log(scalars(metrics) | answers)
        failed = 0
    finally:
        run.finish(exit_code=failed)


def _swanlab(metrics: Mapping[str, Any], samples: Sequence[Row]) -> None:
    import swanlab

    swanlab.init(
        project=os.environ.get("SWANLAB_PROJECT", PROJECT),
        experiment_name=_name(metrics),
        mode=None if os.environ.get("SWANLAB_MODE") else "cloud" if swanlab_ready() else "local",
        config=dict(metrics.get("made_from", {})),
    )
    try:
        swanlab.log(scalars(metrics))
    finally:
        swanlab.finish()
