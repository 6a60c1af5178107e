"""What `make demo` must have shown, read from reports/demo and data/demo/label: python tests/check_demo.py"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def failures(metrics: dict, labels: dict, folder: Path) -> list[str]:
    """Each claim that does not hold, in words."""
    perplexity, thoughts, data = metrics["perplexity"], metrics["thought_well_formed"], metrics["data"]
    answer = perplexity["segments"]["answer"]["ratio"]
    tokens = sum(part["tokens"] for part in perplexity["segments"].values())
    claims = {
        "perplexity, whole response: the interval lies below 0.9": perplexity["ratio"]["high"] < 0.9,
        "perplexity, answer alone: the interval lies below 1": answer["high"] < 1,
        "well-formed thoughts before: at most 10 %": thoughts["base"] <= 0.1,
        "well-formed thoughts after: at least 80 %": thoughts["tuned"] >= 0.8,
        "at least 16 prompts were answered": thoughts["prompts"] >= 16,
        "read = train + eval + dropped": data["read"] == data["train"] + data["eval"] + sum(data["dropped"].values()),
        "every held-out row is scored or listed": data["eval"] == perplexity["samples"] + len(perplexity["skipped"]),
        "the segments' tokens add up": tokens == perplexity["tokens"],
        "report.md, index.html and samples.jsonl are there": all(
            (folder / name).stat().st_size for name in ("report.md", "index.html", "samples.jsonl")
        ),
        "every record that was to be labelled is labelled or listed, none is left": (
            labels["records"] == labels["labelled"] + sum(labels["failed_records"].values()) and labels["left"] == 0
        ),
        "wandb left an offline run": any(Path("wandb").glob("offline-run-*/*.wandb")),
    }
    return [claim for claim, holds in claims.items() if not holds]


if __name__ == "__main__":
    folder = Path("reports/demo")
    told = [
        Path(path).read_text(encoding="utf-8") for path in (folder / "metrics.json", "data/demo/label/summary.json")
    ]
    missed = failures(*map(json.loads, told), folder)
    for claim in missed:
        print(f"not so: {claim}")
    print((folder / "report.md").read_text(encoding="utf-8"))
    sys.exit(bool(missed))
