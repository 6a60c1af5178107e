"""Datasets in LLaMA-Factory's registry, `dataset_info.json`.

The columns are spelled out: once `columns` is there, LLaMA-Factory gives an unlisted column no default.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from recipe import UserError, atomic, read_text

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
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); mend it, nothing was changed") from None
    if not isinstance(registry, dict):
        raise UserError(f"{path}: expected a JSON object of datasets; mend it, nothing was changed")
    return registry


def register(entries: dict[str, dict[str, Any]], dataset_dir: str | Path) -> None:
    """Add or replace `entries`, sorted by name; entries of others keep their values, and twice is the same as once."""
    registry = read_registry(dataset_dir) | entries
    # LLaMA-Factory opens the file in the machine's own encoding, so it is kept ASCII.
    text = json.dumps(dict(sorted(registry.items())), indent=2) + "\n"
    path = Path(dataset_dir) / "dataset_info.json"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        with atomic(path) as file:
            file.write(text)
