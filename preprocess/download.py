"""Fetch a recipe's public data set and its base model into local folders, each file pinned by its SHA-256.

    python -m preprocess.download recipes/medcot/download.yaml
    python -m preprocess.download recipes/medcot/download.yaml hub=modelscope only=dataset

The first download resolves the revision to a commit and writes it down with every file's bytes and SHA-256, in the lock
beside the YAML, which is to be committed to git. Every later one takes that commit, and files that match. One entry:

    "huggingface/datasets/owner/name": {"commit": "1f2e…", "files": {"a.json": {"bytes": 9, "sha256": "6b1f…"}},
                                        "revision": "main"}

Files that are there and match are not fetched again; where all are, no network is asked. A file that is there and does
not match is never overwritten, but by `update=true`, which takes the hub's newest state and replaces files and entry.
An interrupted download goes on where it stopped: what there is of it waits in the folder's .download.

Without a network (or with HF_HUB_OFFLINE=1) the line says which files to put where; the same command then checks them
against the lock. Where the lock has no entry yet, it takes them as they are and writes "commit": null.

Mirrors, proxies and tokens are taken from the environment by the hubs' own libraries: `preprocess.hubs`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from preprocess.hubs import HUBS, NOUNS, File, Hub, Listing, Unreachable
from preprocess.records import sha256_file
from preprocess.register import locked
from recipe import UserError, atomic, main, read_text

STAGE = ".download"
# Of a model: other frameworks' copies of the weights, other precisions of them, training leftovers.
IGNORED = (
    "*.gguf", "*.onnx", "*.onnx_data", "onnx/*", "original/*", "*.h5", "*.msgpack", "*.ot", "*.tflite", "openvino*",
    "*.mlmodel", "*.mlpackage/*", "coreml/*", "consolidated*", "*.pth", "*.ckpt*", "optimizer*", "training_args.bin",
)  # fmt: skip
PICKLED = ("*.bin", "*.bin.index.json", "*.pt")  # where there are safetensors
NEEDED = ("config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Download:
    """The keys of download.yaml; a data set, a model, or both.

    `dataset_modelscope` is the data set's id there, where it differs; a model's that differs is an override. `files`
    are the data set's, all where none is named. A revision is a branch, a tag or a commit, the hub's main branch where
    none is named. `only` is dataset or model, `update: true` moves the lock to the newest state.
    """

    lock: str
    hub: str = "huggingface"
    dataset: str = ""
    dataset_modelscope: str = ""
    dataset_revision: str = ""
    files: list[str] = field(default_factory=list)
    data_dir: str = ""
    model: str = ""
    model_revision: str = ""
    model_dir: str = ""
    only: str = ""
    update: bool = False


@dataclass(frozen=True)
class Part:
    """A data set or a model that is wanted: which files (all that are worth it, if none is named), and where to."""

    kind: str
    hub: Hub
    repo: str
    other: str  # the page on the other hub, or ""
    revision: str
    names: tuple[str, ...]
    folder: Path
    update: bool

    @property
    def key(self) -> str:
        return f"{self.hub.name}/{self.kind}s/{self.repo}"


@dataclass(frozen=True)
class Entry:
    """What the lock holds of a repository; `commit` is None where the files were put there by hand."""

    revision: str
    commit: str | None
    files: dict[str, File]


@dataclass(frozen=True)
class Plan:
    """What is to be done for a part: `entry` is the lock's when it is done, `fetch` the files that are not there."""

    part: Part
    entry: Entry
    fetch: tuple[str, ...] = ()
    at: str = ""  # the revision to fetch them at
    missing: str = ""  # what a person has to put there, as there is no network, and why there is none
    reason: str = ""


def download(settings: Download) -> None:
    """Fetch what is missing and write the lock; UserError, with every good file as it was, for whatever goes wrong."""
    parts = _parts(settings)
    if not Path(settings.lock).parent.is_dir():
        raise UserError(f"lock: no folder {Path(settings.lock).parent}")
    with locked(Path(settings.lock).parent):
        lock = read_lock(settings.lock)
        plans = [_plan(part, lock.get(part.key), settings.lock) for part in parts]
        _check_room(plans)
        for plan in plans:
            if plan.missing:
                continue
            entry = _carry_out(plan)
            if lock.get(plan.part.key) != entry:
                lock[plan.part.key] = entry
                write_lock(settings.lock, lock)
                print(f"{settings.lock}: written; commit it to git")
            _report(plan, entry)
        if absent := [plan for plan in plans if plan.missing]:
            what = "; ".join(plan.missing for plan in absent)
            raise UserError(f"no network ({absent[0].reason}): {what}; then the same command checks what is there")
    if not any(plan.fetch for plan in plans):
        print("nothing fetched: every file is there")


def read_lock(path: str) -> dict[str, Entry]:
    """The lock, {} where there is none yet; UserError where it is no lock, or names a file outside its folder."""
    if not Path(path).exists():
        return {}
    try:
        return {key: _entry(value) for key, value in json.loads(read_text(path)).items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: no lock of ours ({type(error).__name__}: {error}); take it from git again, or delete it"
        ) from None


def _entry(value: dict[str, Any]) -> Entry:
    files = {_safe(name): File(int(file["bytes"]), file["sha256"]) for name, file in value["files"].items()}
    if not all(re.fullmatch("[0-9a-f]{64}", file.sha256) for file in files.values()):
        raise ValueError("sha256: expected 64 hex digits")
    if not isinstance(value["revision"], str) or not files:
        raise TypeError("expected a revision and files")
    return Entry(value["revision"], _commit(value["commit"]), files)


def _commit(value: Any) -> str | None:
    """A commit as it may name a folder: 40 hex digits, or None; ValueError for anything else."""
    if value is not None and not re.fullmatch("[0-9a-f]{40}", str(value)):
        raise ValueError(f"commit: expected 40 hex digits, got {value!r}")
    return value


def write_lock(path: str, lock: dict[str, Entry]) -> None:
    """Write the lock, sorted by key and file, one value a line, so that git shows what changed."""
    value = {
        key: {
            "revision": entry.revision,
            "commit": entry.commit,
            "files": {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in entry.files.items()},
        }
        for key, entry in lock.items()
    }
    with atomic(path) as out:
        out.write(json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n")


def select(kind: str, names: Iterable[str]) -> list[str]:
    """Which files of a whole repository are worth having, sorted; of a model the weights once, as safetensors."""
    plain = sorted(name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts))
    if kind == "dataset":
        return plain
    safe = any(name.endswith(".safetensors") for name in plain)
    ignored = IGNORED + (PICKLED if safe else ())
    return [name for name in plain if not any(fnmatch(name, pattern) for pattern in ignored)]


def _plan(part: Part, entry: Entry | None, lock: str) -> Plan:
    """What is to be done, after a look at the folder and, only where a file is missing or unknown, at the hub."""
    entry = None if part.update else entry
    good: set[str] = set()
    if entry:
        if part.revision not in (entry.revision, entry.commit, ""):
            raise UserError(
                f"{lock}: {part.key} is locked at revision {entry.revision}, asked for is {part.revision}; "
                "add update=true to move there"
            )
        wanted = part.names or tuple(entry.files)
        known = {name: entry.files[name] for name in wanted if name in entry.files}
        good = known.keys() - _absent(part, known)
        if len(good) == len(wanted):
            return Plan(part, entry)
    try:
        return _plan_online(part, entry, lock, good)
    except Unreachable as error:
        return _plan_by_hand(part, entry, lock, str(error))


def _plan_online(part: Part, entry: Entry | None, lock: str, good: set[str]) -> Plan:
    listing = _listing(part, entry)
    listed = {_safe(name): file for name, file in listing.files.items()}
    old = {name: file for name, file in (entry.files if entry else {}).items() if entry.commit or name in listed}
    names = part.names or tuple(old) or tuple(select(part.kind, listed))
    for name in names:
        if name not in listed:
            close = ", ".join(difflib.get_close_matches(name, listed, n=3, cutoff=0.4) or sorted(listed)[:5])
            raise UserError(f"{part.key}: no file {name} at commit {listing.commit}; there are: {close or 'none'}")
        if name in old and (wrong := _mismatch(old[name], listed[name])):
            raise UserError(_changed(part, name, f"{wrong} ({lock})", listing.commit))
    files = {name: old.get(name, listed[name]) for name in names}
    unknown = {name: file for name, file in files.items() if name not in good}
    fetch = _stale(part, unknown) if part.update else _absent(part, unknown)
    revision = entry.revision if entry else part.revision or part.hub.branch
    return Plan(part, Entry(revision, listing.commit, old | files), tuple(fetch), listing.at)


def _listing(part: Part, entry: Entry | None) -> Listing:
    """The hub's list at the lock's commit, else at the revision; a commit that ModelScope does not take is let go."""
    listing = _asked_listing(part, entry)
    try:
        return replace(listing, commit=_commit(listing.commit))
    except ValueError as error:
        raise UserError(f"{part.key}: the hub's answer is no commit ({error}); is the mirror to be trusted?") from None


def _asked_listing(part: Part, entry: Entry | None) -> Listing:
    _say_offline()
    if not entry or not entry.commit:
        revision = entry.revision if entry else part.revision or part.hub.branch
        return part.hub.listing(part.kind, part.repo, revision)
    try:
        return replace(part.hub.listing(part.kind, part.repo, entry.commit), commit=entry.commit)
    except UserError:
        if part.hub.name != "modelscope":
            raise
        return part.hub.listing(part.kind, part.repo, entry.revision)


def _say_offline() -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise Unreachable(f"{name} is set")


def _plan_by_hand(part: Part, entry: Entry | None, lock: str, reason: str) -> Plan:
    """Without a network: what is there is taken, if it is complete, else the plan says what is to be put there."""
    if part.update:
        raise UserError(f"update=true needs {part.hub.name}, which does not answer: {reason}")
    here = _found(part) if part.folder.is_dir() else []
    names = part.names or (tuple(entry.files) if entry else tuple(here))
    lacking = [name for name in names if not (part.folder / name).is_file()]
    if not entry:
        lacking = lacking or _incomplete(part, here)
    elif unknown := [name for name in names if name not in entry.files and name not in lacking]:
        raise UserError(
            f"{lock}: no entry for {unknown[0]}, so it can't be checked without a network ({reason}); "
            f"run this once with one, or delete the entry {part.key} to take the files as they are"
        )
    if not names or lacking:
        commit = (entry and entry.commit) or part.revision or part.hub.branch
        page = part.hub.page(part.kind, part.repo, commit) + (f" (or {part.other})" if part.other else "")
        what = ", ".join(lacking) if names else "every file"
        return Plan(part, Entry("", None, {}), missing=f"put {what} of {page} into {part.folder}", reason=reason)
    return Plan(part, Entry(part.revision or part.hub.branch, None, {name: File(-1) for name in names}))


def _found(part: Part) -> list[str]:
    paths = (path for path in part.folder.rglob("*") if path.is_file())
    return select(part.kind, (path.relative_to(part.folder).as_posix() for path in paths))


def _incomplete(part: Part, here: list[str]) -> list[str]:
    """What a model's folder lacks, as far as its own files tell: the basics, and the weights that its index names."""
    if part.kind != "model":
        return []
    missing = [name for name in NEEDED if name not in here]
    index = part.folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(read_text(index))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            raise UserError(f"{index}: no index of weights; put it there again") from None
        return missing + sorted(shards - set(here))
    if not any(name.endswith((".safetensors", ".bin")) for name in here):
        missing.append("*.safetensors (and their index)")
    return missing


def _absent(part: Part, files: dict[str, File]) -> list[str]:
    """Which of the files are not there; UserError for the first that is there and not what it must be."""
    there = {name: file for name, file in files.items() if (part.folder / name).exists()}
    if there:
        print(f"{part.folder}: checking {_amount(there.values())}", flush=True)
    for name, file in there.items():
        if wrong := _fault(part.folder / name, file):
            raise UserError(
                f"{part.folder / name}: {wrong}; it was left as it is: move it away, then the same command fetches it "
                "again (or update=true replaces it by the hub's newest)"
            )
    return [name for name in files if name not in there]


def _stale(part: Part, files: dict[str, File]) -> list[str]:
    return [name for name, file in files.items() if _fault(part.folder / name, file)]


def _fault(path: Path, file: File) -> str:
    """What is wrong with a file, with what was expected and what was found; "" if nothing is."""
    if not path.is_file():
        return "is no regular file"
    size = path.stat().st_size
    if size != file.bytes:
        return f"expected {file.bytes:,} bytes, got {size:,}"
    if file.sha256:
        return _mismatch(file, File(size, sha256_file(path)))
    if file.blob and (blob := _git_blob(path, size)) != file.blob:
        return f"expected git blob {file.blob}, got {blob}"
    return ""


def _mismatch(expected: File, got: File) -> str:
    if expected.sha256 and got.sha256 and expected.sha256 != got.sha256:
        return f"expected sha256 {expected.sha256}, got {got.sha256}"
    return f"expected {expected.bytes:,} bytes, got {got.bytes:,}" if expected.bytes != got.bytes else ""


def _git_blob(path: Path, size: int) -> str:
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _changed(part: Part, name: str, wrong: str, commit: str | None) -> str:
    return (
        f"{part.key} at commit {commit}: {name}: {wrong}; nothing was replaced: try again or another mirror, "
        "or take the hub's newest state on purpose by update=true"
    )


def _stage(plan: Plan) -> Path:
    return plan.part.folder / STAGE / (plan.entry.commit or "unknown")


def _check_room(plans: list[Plan]) -> None:
    """UserError where a disk has less room than what is still to be fetched onto it."""
    needed: dict[int, tuple[Path, int]] = {}
    for plan in plans:
        folder = next(path for path in (plan.part.folder, *plan.part.folder.absolute().parents) if path.exists())
        device = folder.stat().st_dev
        size = sum(plan.entry.files[name].bytes - _half(_stage(plan) / name) for name in plan.fetch)
        needed[device] = folder, needed.get(device, (folder, 0))[1] + size
    for folder, size in needed.values():
        if size > (free := shutil.disk_usage(folder).free):
            raise UserError(f"{folder}: {_size(size)} to fetch, {_size(free)} free; make room, or name another folder")


def _half(path: Path) -> int:
    paths = (path, path.with_name(f"{path.name}.incomplete"))
    return max((each.stat().st_size for each in paths if each.is_file()), default=0)


def _carry_out(plan: Plan) -> Entry:
    """Fetch and check all that is missing, then put it in place together; the entry, with every SHA-256."""
    part, stage = plan.part, _stage(plan)
    for name in plan.fetch:
        file, staged = plan.entry.files[name], stage / name
        try:
            if not staged.is_file():
                part.hub.fetch(part.kind, part.repo, plan.at, name, file.bytes, stage)
        except Unreachable as error:
            raise UserError(
                f"{part.hub.name}: {name}: broke off ({error}); the same command goes on where it stopped"
            ) from None
        if wrong := _fault(staged, file):
            staged.unlink(missing_ok=True)
            raise UserError(_changed(part, name, wrong, plan.entry.commit))
    for name in plan.fetch:
        (part.folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage / name, part.folder / name)
    shutil.rmtree(part.folder / STAGE, ignore_errors=True)
    return replace(plan.entry, files={name: _hashed(part, name, file) for name, file in plan.entry.files.items()})


def _hashed(part: Part, name: str, file: File) -> File:
    path = part.folder / name
    return File(file.bytes, file.sha256) if file.sha256 else File(path.stat().st_size, sha256_file(path))


def _report(plan: Plan, entry: Entry) -> None:
    part = plan.part
    names = part.names or tuple(entry.files)
    print(f"{NOUNS[part.kind]} {part.repo} ({part.hub.name}), commit {entry.commit or 'unknown: put there by hand'}")
    print(f"  {_amount(entry.files[name] for name in names)}, {len(plan.fetch)} fetched -> {part.folder}")


def _amount(files: Iterable[File]) -> str:
    sizes = [file.bytes for file in files]
    return f"{len(sizes)} file{'' if len(sizes) == 1 else 's'}, {_size(sum(sizes))}"


def _size(number: int) -> str:
    return f"{number:,} bytes" if number < 10**6 else f"{number / 1e6:,.1f} MB"


def _safe(name: str) -> str:
    """A path inside a repository, or UserError where it leads out of the folder."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise UserError(f"{name!r}: no path inside a folder; nothing was fetched")
    return name


def _parts(settings: Download) -> list[Part]:
    if settings.hub not in HUBS:
        raise UserError(f"hub: expected one of {', '.join(HUBS)}, got {settings.hub!r}")
    if settings.only not in ("", *NOUNS):
        raise UserError(f"only: expected one of {', '.join(NOUNS)}, got {settings.only!r}")
    ids = {
        "dataset": {"huggingface": settings.dataset, "modelscope": settings.dataset_modelscope or settings.dataset},
        "model": {"huggingface": settings.model, "modelscope": settings.model},
    }
    wanted = [kind for kind in ids if any(ids[kind].values()) and settings.only in ("", kind)]
    if not wanted:
        raise UserError(f"nothing to fetch: no {settings.only or 'dataset and no model'} is named")
    return [_part(settings, kind, ids[kind]) for kind in wanted]


def _part(settings: Download, kind: str, ids: dict[str, str]) -> Part:
    key, folder = {"dataset": ("data_dir", settings.data_dir), "model": ("model_dir", settings.model_dir)}[kind]
    other = next(name for name in HUBS if name != settings.hub)
    if not ids[settings.hub]:
        raise UserError(f"{kind}: {ids[other]} is named for {other} only; add hub={other}, or only=model")
    if not folder:
        raise UserError(f"{key} is missing: the folder for the {NOUNS[kind]}")
    page = HUBS[other].page(kind, ids[other], HUBS[other].branch) if ids[other] else ""
    revision = settings.dataset_revision if kind == "dataset" else settings.model_revision
    names = tuple(map(_safe, settings.files)) if kind == "dataset" else ()
    return Part(kind, HUBS[settings.hub], ids[settings.hub], page, revision, names, Path(folder), settings.update)


if __name__ == "__main__":
    main(Download, download, __doc__)
