"""One page that shows a result: index.html, with everything inside it, and report.md, a table to paste."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from eval.charts import curves
from preprocess.think import split, well_formed

SEGMENT_NAMES = {"think": "思考 thought", "markup": "标签 markup", "answer": "回答 answer", "end": "结束符 end token"}


def interval(values: dict[str, float], form: str = ".3f") -> str:
    """`[low, high]` of a 95 % interval."""
    return f"[{values['low']:{form}}, {values['high']:{form}}]"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def summary_rows(metrics: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """The result as (figure, before, after, change with interval, n), for the page, the table and the terminal."""
    ppl = metrics["perplexity"]
    parts = [("困惑度，全部 perplexity, whole response", ppl)]
    parts += [(f"困惑度，{SEGMENT_NAMES[name]}", part) for name, part in ppl["segments"].items()]
    rows = [
        (
            name,
            f"{part['base']:.2f}",
            f"{part['tuned']:.2f}",
            f"× {part['ratio']['value']:.3f} {interval(part['ratio'])}",
            f"{part['tokens']:,} tokens",
        )
        for name, part in parts
    ]
    thoughts = metrics.get("thought_well_formed")
    if thoughts:
        before, after = (_share(thoughts, arm) for arm in ("base", "tuned"))
        change = f"{100 * (thoughts['tuned'] - thoughts['base']):+.0f} pp"
        rows.append(("思考格式正确 well-formed thoughts", before, after, change, f"{thoughts['prompts']} prompts"))
    return rows


def _share(thoughts: dict[str, Any], arm: str) -> str:
    low, high = (100 * thoughts["intervals"][arm][end] for end in ("low", "high"))
    return f"{percent(thoughts[arm])} [{low:.0f}, {high:.0f}]"


def summary_lines(metrics: dict[str, Any]) -> list[str]:
    """The result for a terminal."""
    return [f"{name}: {before} -> {after}  {change}  ({n})" for name, before, after, change, n in summary_rows(metrics)]


def answer_pairs(answers: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Both completions of each prompt, taken apart for the page."""
    pairs = zip(answers.get("base", []), answers.get("tuned", []), strict=True)
    return [
        {"id": base["id"], "prompt": base["prompt"], "sides": [_side("前 before", base), _side("后 after", tuned)]}
        for base, tuned in pairs
    ]


def _side(title: str, row: dict[str, Any]) -> dict[str, Any]:
    parts = split(row["answer"])
    return {
        "title": title,
        "think": parts.think,
        "answer": parts.answer,
        "ok": well_formed(row["answer"]),
        "cut": row["finish_reason"] == "length",
    }


def to_page(metrics: dict[str, Any], answers: dict[str, Any], history: list[dict]) -> str:
    """index.html: figures, curves and answers in one file that asks nothing of the network."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        metrics=metrics,
        rows=summary_rows(metrics),
        pairs=answer_pairs(answers),
        charts={title: Markup(svg) for title, svg in curves(history).items()},
        interval=interval,
        percent=percent,
    )


def to_markdown(metrics: dict[str, Any]) -> str:
    """The table, and what it was computed from."""
    lines = ["| figure | before | after | change, 95 % interval | n |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in summary_rows(metrics)]
    made = metrics["made_from"]
    lines += [
        "",
        f"{metrics['perplexity']['improved']} of {metrics['perplexity']['samples']} held-out rows improved; "
        f"{len(metrics['perplexity']['skipped'])} left out.",
        f"Dataset `{made['dataset']}`, adapter `{made['adapter']}` ({made['adapter_sha256'][:12]}), "
        f"token ids {metrics['perplexity']['ids_sha256'][:12]}, "
        + ", ".join(f"{name} {number}" for name, number in made["versions"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"
