"""Datasets in LLaMA-Factory's registry, `dataset_info.json`.

The columns are spelled out: once `columns` is there, LLaMA-Factory gives an unlisted column no default.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipe import UserError, read_text

COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}


def entry(file: str | Path, dataset_dir: str | Path) -> dict[str, Any]:
    """The registry entry of an alpaca file; its path is written relative to the registry's folder."""
    return {"file_name": Path(os.path.relpath(file, dataset_dir)).as_posix(), "columns": COLUMNS}


def read_registry(dataset_dir: str | Path) -> dict[str, Any]:
    """The registry as it stands, {} where there is none yet; UserError where it isn't a JSON object."""
    path = Path(dataset_dir) / "dataset_info.json"
    if not path.exists():
        return {}
    try:
        registry = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise UserError(f"{path}:{line}: not valid JSON ({error}); mend it, nothing was changed") from None
    if not isinstance(registry, dict):
        raise UserError(f"{path}: expected a JSON object of datasets; mend it, nothing was changed")
    return registry


def dataset_file(name: str, dataset_dir: str | Path) -> Path:
    """The local file of a registered data set; UserError where the name is unknown or stands for no local file."""
    registry = read_registry(dataset_dir)
    place = Path(dataset_dir) / "dataset_info.json"
    if name not in registry:
        known = ", ".join(registry) or "none"
        raise UserError(f"{name}: not registered in {place}; run `make data` first (registered: {known})")
    if not isinstance(registry[name], dict) or not isinstance(registry[name].get("file_name"), str):
        raise UserError(f"{place}: {name}: expected an entry with `file_name`, a local file")
    return Path(dataset_dir) / registry[name]["file_name"]


def registry_text(entries: dict[str, dict[str, Any]], dataset_dir: str | Path, gone: tuple[str, ...] = ()) -> str:
    """The registry with `entries` added or replaced and `gone` removed, sorted by name; the rest keeps its values."""
    registry = {name: value for name, value in read_registry(dataset_dir).items() if name not in gone}
    # LLaMA-Factory opens the file in the machine's own encoding, so it is kept ASCII.
    return json.dumps(dict(sorted((registry | entries).items())), indent=2) + "\n"


@contextmanager
def locked(dataset_dir: str | Path) -> Iterator[None]:
    """Hold the registry's folder, so that of two builds at once neither loses the other's entry."""
    if not Path(dataset_dir).is_dir():
        raise UserError(f"dataset_dir: no folder {dataset_dir}")
    folder = os.open(dataset_dir, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
