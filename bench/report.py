"""The report of 300 pairs: seconds to build, bytes, and when Chromium has painted it.

    python -m bench.report [--pairs 300] [--rounds 5]

The pairs are those of tests/test_report.py: invented Chinese answers with thoughts of about 520 and answers of about
280 characters, an AI judge, two raters, the training curves of one run. Timed is `eval.report.to_page`, in one process,
the import aside; the first paint is Chromium's own first-contentful-paint of the file, in a fresh tab each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from eval.report import to_page
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
