"""The report of 300 pairs: seconds to build, bytes, when Chromium has painted it; and the seconds of a big bootstrap.

    python -m bench.report [--pairs 300] [--rounds 5]

The pairs are those of tests/test_report.py: invented Chinese answers with thoughts of about 520 and answers of about
280 characters, an AI judge, two raters, the training curves of one run. Timed is `eval.report.to_page`, in one process,
the import aside; the first paint is Chromium's own first-contentful-paint of the file, in a fresh tab each. The
bootstrap is the paired one of a perplexity ratio: 10,000 rounds of 10,000 rows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from eval.report import to_page
from eval.statistics import paired_ratio
from tests.test_report import ARMS, HISTORY, scored, write_example
from tests.test_review import CHROMIUM, Browser

PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
READY = "document.querySelector('#pair h3') && performance.timing.loadEventEnd"


def build(folder: Path, pairs: int, rounds: int) -> tuple[str, list[float]]:
    """The page, and the seconds that each building of it took."""
    write_example(folder, pairs)
    metrics, samples = scored(folder, ARMS)
    seconds, pages = [], set()
    for _ in range(rounds):
        begin = time.perf_counter()
        pages.add(to_page(metrics, samples, {"tuned": HISTORY}))
        seconds.append(time.perf_counter() - begin)
    (page,) = pages  # the same bytes each time
    return page, seconds


def bootstraps(rounds: int, rows: int = 10_000) -> list[float]:
    """The seconds that each `paired_ratio` of so many rows took."""
    random = np.random.default_rng(0)
    tokens = random.integers(50, 1000, rows).astype(float)
    base = random.normal(1.6, 0.35, rows)
    tuned = 0.7 * base + random.normal(0, 0.06, rows)
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        paired_ratio(base * tokens, tuned * tokens, tokens)
        seconds.append(time.perf_counter() - begin)
    return seconds


def paints(file: Path, rounds: int, folder: Path) -> list[tuple[float, float]]:
    """Milliseconds from opening the file to the first paint, and until the viewer stands, of each opening."""
    browser = Browser(folder)
    try:
        found = []
        for _ in range(rounds):
            tab = browser.tab(file.as_uri())
            tab.wait(f"({READY}) && ({PAINT})")
            found.append(
                (tab.js(PAINT), tab.js("performance.timing.loadEventEnd - performance.timing.navigationStart"))
            )
        return found
    finally:
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    seconds = bootstraps(arguments.rounds)
    print(f"paired bootstrap, 10,000 rounds of 10,000 rows: {median(seconds):.2f} s (longest {max(seconds):.2f})")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        page, seconds = build(folder, arguments.pairs, arguments.rounds)
        built = f"{median(seconds):.2f} s (longest {max(seconds):.2f})"
        print(f"{arguments.pairs} pairs: built in {built}, {len(page.encode()):,} bytes")
        if not CHROMIUM:
            print("no Chromium on PATH: no paint measured")
            return
        file = folder / "index.html"
        file.write_text(page, encoding="utf-8")
        first, whole = zip(*paints(file, arguments.rounds, folder / "chromium"), strict=True)
        print(f"first paint {median(first):.0f} ms (longest {max(first):.0f}), all loaded {median(whole):.0f} ms")


if __name__ == "__main__":
    main()
