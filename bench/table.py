"""The measured rows as a Markdown table, the ratios between them, and one labelled extrapolation. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from bench.lengths import MEAN
from preflight.cost import PEAKS, hours
from recipe import UserError, read_text

Row = dict[str, Any]
RECORDS = 25_000
TARGET = "RTX 4090"
NO_GPU = "No GPU has been measured yet: no ratio, no utilisation and no extrapolation are given."
HEADINGS = [
    *("date, commit", "card (cap)", "model", "profile", "engine", "batch × accumulation, cutoff", "grouped", "rank"),
    *("effective tokens/s [95 %]", "padded tokens/s", "padding efficiency", "MFU", "HFU", "peak GiB (reserved)"),
    *("s/step", "steps"),
]


def read_rows(path: str) -> list[Row]:
    """The rows of a JSON Lines file, oldest first."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            raise UserError(f"{path}:{number}: not a JSON line; a row is one object a line") from None
        if row is not None and not (isinstance(row, dict) and {"profile", "settings", "card"} <= row.keys()):
            raise UserError(f"{path}:{number}: not a row of bench.train")
        rows += [row] if row else []
    return rows


def resample(steps: list[list[float]], draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Bootstrap: `draws` rates, tokens over seconds, each of as many steps drawn with replacement."""
    table = np.array(steps, dtype=float)
    picked = np.random.default_rng(seed).integers(len(table), size=(draws, len(table)))
    sums = table[picked].sum(axis=1)
    return sums[:, 1] / sums[:, 0]


def interval(draws: np.ndarray, value: float) -> dict[str, float | None]:
    """`value` with the 95 % percentile interval of `draws`."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return {"value": value, "low": float(low), "high": float(high)}


def rate(steps: list[list[float]], column: int = 1) -> dict[str, float | None]:
    """Tokens per second over `[seconds, tokens, padded tokens]` steps; no interval from a single step."""
    pairs = [[step[0], step[column]] for step in steps]
    value = sum(tokens for _, tokens in pairs) / sum(seconds for seconds, _ in pairs)
    return interval(resample(pairs), value) if len(pairs) > 1 else {"value": value, "low": None, "high": None}


def ratio(upper: Row, lower: Row) -> dict[str, float | None]:
    """Effective tokens per second of one run over another's, the steps of each resampled on their own."""
    value = upper["tokens_per_second"]["value"] / lower["tokens_per_second"]["value"]
    if min(len(upper["per_step"]), len(lower["per_step"])) < 2:
        return {"value": value, "low": None, "high": None}
    pairs = [[step[:2] for step in row["per_step"]] for row in (upper, lower)]
    return interval(resample(pairs[0], seed=1) / resample(pairs[1], seed=2), value)


def newest(rows: Iterable[Row]) -> list[Row]:
    """Of rows with equal settings on the same card, the newest; what it replaces stays in the file."""
    kept: dict[str, Row] = {}
    for row in rows:
        named = [row[key] for key in ("card", "memory_gib", "model", "weights", "profile", "settings")]
        key = json.dumps(named, sort_keys=True)
        kept.pop(key, None)
        kept[key] = row
    return list(kept.values())


def _number(value: float | None, form: str = ",.0f", unknown: str = "not known") -> str:
    return unknown if value is None else format(value, form)


def _bounded(figure: dict[str, float | None], form: str) -> str:
    low, high = figure["low"], figure["high"]
    bounds = "one step, no interval" if low is None or high is None else f"[{low:{form}}, {high:{form}}]"
    return f"{figure['value']:{form}} {bounds}"


def engine_name(row: Row) -> str:
    """What ran the model, as found in the process, e.g. `unsloth` or `liger_kernel, sdpa, packed`."""
    engine = row.get("engine") or {}
    parts = [engine.get("forward"), engine.get("attention"), "packed" if row["settings"].get("packed") else None]
    return ", ".join(part for part in parts if part) or "—"


def line(row: Row) -> str:
    """One row of the table."""
    settings = row["settings"]
    cap = f" ({row['memory_gib']:g} GiB)" if row.get("memory_gib") else ""
    start = [
        f"{row['date'][:10]}, {row.get('commit') or '—'}",
        row["card"] + cap,
        f"{row['model']}, {row['weights']} weights",
        row["profile"],
        engine_name(row),
        f"{settings['batch']} × {settings['accumulation']}, {settings['cutoff_len']}",
        "—" if settings.get("packed") else "yes" if settings["grouped"] else "no",
        str(settings["rank"]) + "".join(f"; {key}={value}" for key, value in settings.get("overrides", {}).items()),
    ]
    if row.get("error"):
        return _markdown([*start, row.get("short") or "failed", *["—"] * 7])
    figures = [
        _bounded(row["tokens_per_second"], ",.0f"),
        _number(row["padded_tokens_per_second"]["value"]),
        _number(row["padding_efficiency"], ".3f"),
        _number(row["mfu"], ".1%"),
        _number(row["hfu"], ".1%"),
        peak_memory(row),
        _number(row["seconds_per_step"], ".2f"),
        str(row["steps"]),
    ]
    return _markdown([*start, *figures])


def peak_memory(row: Row) -> str:
    """Allocated and reserved peaks on a GPU, the resident set on a CPU, in GiB."""
    memory = row["memory"]
    if "resident_gib" in memory:
        return f"{memory['resident_gib']:.1f} resident"
    return f"{memory['allocated_gib']:.1f} ({memory['reserved_gib']:.1f})"


def _markdown(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def is_gpu(row: Row) -> bool:
    return not row["card"].startswith("CPU:")


def _named(row: Row) -> str:
    return f"{row['profile']} {row['settings']['batch']} × {row['settings']['accumulation']}"


def ratios(rows: list[Row]) -> list[str]:
    """Unsloth over plain PEFT at equal settings and each at its fastest, and the best profile over the report's."""
    good = [row for row in rows if is_gpu(row) and not row.get("error")]
    out = []
    for place in dict.fromkeys((row["card"], row["memory_gib"], row["model"], row["weights"]) for row in good):
        here = [r for r in good if (r["card"], r["memory_gib"], r["model"], r["weights"]) == place]
        where = f"{place[2]} on {place[0]}" + (f" capped at {place[1]:g} GiB" if place[1] else "")
        unsloth = [row for row in here if row["engine"]["forward"] == "unsloth"]
        plain = [row for row in here if row["engine"]["forward"] == "transformers" and not row["settings"]["packed"]]
        pairs = [("equal settings", a, b) for a in unsloth for b in plain if a["settings"] == b["settings"]]
        if unsloth and plain:
            pairs.append(("each at its fastest", max(unsloth, key=_speed), max(plain, key=_speed)))
        best, report = (_of(here, profile, _speed) for profile in ("best", "report"))
        if best and report:
            pairs.append(("best profile against the report's settings", best, report))
        for name, upper, lower in pairs:
            figure = _bounded(ratio(upper, lower), ".2f")
            out.append(f"- {where}, {name}: {_named(upper)} over {_named(lower)}: × {figure}")
    return out


def _speed(row: Row) -> float:
    return row["tokens_per_second"]["value"]


def _of(rows: list[Row], profile: str, key: Callable[[Row], float]) -> Row | None:
    return max((row for row in rows if row["profile"] == profile), key=key, default=None)


def extrapolation(row: Row) -> str:
    """25,000 records of the real lengths on an RTX 4090, at this row's utilisation; never a measurement."""
    tokens, flops = RECORDS * MEAN / row["padding_efficiency"], row["flops_per_padded_token"]
    result = hours(tokens, flops, PEAKS[TARGET], row["hfu"])
    return (
        f"- Extrapolated, not measured: {RECORDS:,} records on an {TARGET} by {_named(row)} of {row['card']}: "
        f"**{result:.1f} h** = {RECORDS:,} × {MEAN} tokens / {row['padding_efficiency']:.3f} (padding) "
        f"× {flops / 1e9:.1f} GFLOP per token / ({PEAKS[TARGET] / 1e12:.1f}e12 FLOP/s × HFU {row['hfu']:.3f}) / 3600; "
        "it holds if that card reaches the same utilisation"
    )


def table(rows: list[Row]) -> str:
    """The whole Markdown text: table, ratios, extrapolation, versions."""
    rows = newest(rows)
    head = _markdown(HEADINGS) + "\n" + "|---" * len(HEADINGS) + "|"
    out = ["\n".join([head, *(line(row) for row in rows)])]
    gpu = [row for row in rows if is_gpu(row) and not row.get("error")]
    if not gpu:
        out.append(NO_GPU)
    out += ["\n".join(ratios(rows))] if ratios(rows) else []
    sized = [row for row in gpu if row["model"] == "qwen2.5-7b" and row["hfu"]]
    chosen = [row for row in sized if row["profile"] in ("best", "report")] or sorted(sized, key=_speed)[-1:]
    out += ["\n".join(extrapolation(row) for row in chosen)] if chosen else []
    stacks = dict.fromkeys(", ".join(f"{k} {v}" for k, v in row.get("versions", {}).items() if v) for row in rows)
    out += ["\n".join(f"Versions: {stack}." for stack in stacks if stack)]
    return "\n\n".join(part for part in out if part)
