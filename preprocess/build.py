"""Turn a recipe's records into clean, registered `<think>` training data, and say what was done to them.

    python -m preprocess.build recipes/medcot/data.yaml input=medical_o1_sft_Chinese.json

One alpaca row out, in train.json or eval.json of the output folder:

    {"id": "6b1f…", "system": "", "instruction": "夜里咳嗽三周……", "input": "",
     "output": "<think>\\n躺下加重提示……\\n</think>\\n\\n要先排除……"}

What does not become a row stands in dropped.jsonl with its reason; counts.json adds up; card.md and card.html show all.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from preprocess.data import Data, check, resolved
from preprocess.register import read_registry
from preprocess.sources import read_records
from preprocess.steps import (
    Item,
    Spool,
    contaminated,
    duplicates,
    first_pass,
    is_eval,
    near_duplicates,
    near_eval,
    over_share,
    sides,
    to_row,
)
from preprocess.write import write
from recipe import main

__all__ = ["Data", "build", "is_eval", "to_row"]


def build(data: Data) -> None:
    """Run data.yaml: read, clean, write, register; all files are replaced together, the registry last."""
    data = resolved(data)
    check(data)
    read_registry(data.dataset_dir)
    with _work_folder(Path(data.output)) as folder:
        spool = Spool(folder)
        first_pass(data, tqdm(read_items(data), desc="records", unit=" records", disable=None), spool)
        reasons = duplicates(data, spool)
        found, questions = contaminated(data, spool, reasons)
        reasons |= found
        found, clusters = near_duplicates(data, spool, reasons)
        reasons |= found
        reasons |= near_eval(data, spool, reasons)
        reasons |= over_share(data, spool, reasons)
        items = tqdm(sides(spool, reasons), desc="writing", unit=" records", total=len(spool), disable=None)
        report(data, write(data, items, clusters, questions))


def read_items(data: Data) -> Iterator[Item]:
    """The records of all inputs, one file after the other."""
    kind = "" if data.source == "auto" else data.source
    for number, path in enumerate(data.inputs):
        for place, record in islice(read_records(path, kind), data.limit or None):
            yield Item(place, record, number)


@contextmanager
def _work_folder(output: Path) -> Iterator[str]:
    """A folder for the spool, beside the output, since records belong nowhere else; gone at the end.

    What a killed build has left there goes, too: its folder is no longer locked.
    """
    made = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    for left in output.glob(".build-*"):
        with suppress(OSError), _held(left):
            shutil.rmtree(left)
    try:
        with tempfile.TemporaryDirectory(prefix=".build-", dir=output) as folder, _held(folder):
            yield folder
    finally:
        if made:
            with suppress(OSError):
                output.rmdir()


@contextmanager
def _held(folder: str | Path) -> Iterator[None]:
    """A lock on a folder while its process lives; BlockingIOError where another has it."""
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)


def report(data: Data, counts: dict[str, Any]) -> None:
    """Print what a build did."""

    def listed(numbers: dict[str, int]) -> str:
        return ", ".join(f"{name} {number}" for name, number in numbers.items()) or "none"

    print(f"{', '.join(data.inputs)}: {counts['read']} rows read")
    print(f"  train    {counts['train']:>6}  {data.dataset}_train" + _repeated(counts["repeated"]))
    print(f"  eval     {counts['eval']:>6}  {data.dataset + '_eval' if counts['eval'] else '(none held out)'}")
    print(f"  dropped  {sum(counts['dropped'].values()):>6}  {listed(counts['dropped'])}")
    for name in ("flags", "changed", "identifiers"):
        if counts[name]:
            print(f"  {name:<15}  {listed(counts[name])}")
    if data.cutoff_len and not counts["tokenizer"]:
        where = f"no folder {data.tokenizer}" if data.tokenizer else "no tokenizer is named"
        print(f"  lengths          in characters ({where}); `make check` counts tokens")
    print(f"  -> {data.output}/card.html")


def _repeated(rows: int) -> str:
    return f", {rows} of them again" if rows else ""


if __name__ == "__main__":
    main(Data, build, __doc__)
