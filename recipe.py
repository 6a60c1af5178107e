"""What every step of ours shares: flat YAML settings with overrides, one-line errors, atomic writes.

A step is a module with a frozen dataclass of settings and a function that takes one:

    python -m preprocess.build recipes/medcot/data.yaml limit=100

`key=value` after the recipe file overrides a key, as LLaMA-Factory's own command line does.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import glob
import inspect
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TextIO, TypeVar

import yaml

Settings = TypeVar("Settings")


class UserError(Exception):
    """A mistake of the user's, in one line: which file, which place, what was expected, what to do."""


def load(schema: type[Settings], path: str, overrides: Sequence[str] = ()) -> Settings:
    """Read `path` (flat YAML) and `key=value` overrides into the dataclass `schema`.

    Raises UserError for a file that can't be read, an unknown or missing key, and a value of the wrong type.
    """
    values, places = read_yaml(path)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"{item!r}: expected an override of the form key=value")
        # `key=` is an empty text, as LLaMA-Factory's command line reads it; null is written out.
        values[key], places[key] = _parse_yaml(text, f"override {item!r}") if text else "", f"override {item!r}"
    known = {field.name: field for field in fields(schema)}
    for key in values:
        if key not in known:
            raise UserError(f"{places[key]}: unknown key {key!r}{_suggest(key, known)}; known: {', '.join(known)}")
    for name, field in known.items():
        if name not in values and _required(field):
            raise UserError(f"{path}: key {name!r} is missing; add `{name}: …`")
    types_ = typing.get_type_hints(schema)
    return schema(**{key: _typed(value, types_[key], key, places[key]) for key, value in values.items()})


def read_yaml(path: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A YAML file as {key: value}, and for each key its place, `file:line`; anchors and merges are refused."""
    text = read_text(path)
    document = _parse_yaml(text, path, yaml.compose)
    if not isinstance(document, yaml.MappingNode):
        raise UserError(f"{path}: expected `key: value` lines")
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
        raise UserError(f"{path}: aliases (*name) are not read; write the value out")
    places: dict[str, str] = {}
    for key, _ in document.value:
        place = f"{path}:{key.start_mark.line + 1}"
        if key.tag != "tag:yaml.org,2002:str":
            raise UserError(f"{place}: expected a plain word as key")
        if key.value in places:
            raise UserError(f"{place}: key {key.value!r} is there twice (first at {places[key.value]}); keep one")
        places[key.value] = place
    return _parse_yaml(text, path), places


def read_text(path: str | Path) -> str:
    """The UTF-8 text of a file (a byte order mark is skipped), or a UserError that says why not."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise UserError(f"{path}: is a folder or no regular file; name a file")
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read it") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {error.start} is not UTF-8; convert it first, e.g. iconv -f GB18030 -t UTF-8"
        ) from None
    except ValueError as error:
        raise UserError(f"{path!r}: no file name ({error})") from None


def check_model(recipe: str, model: str) -> None:
    """UserError where `model` is written as a folder and there is none; a hub id (`Qwen/Qwen3-0.6B`) is let through."""
    if model.startswith((".", "/", "~", "models/", "saves/")) and not Path(model).expanduser().is_dir():
        raise UserError(f"{recipe}: model_name_or_path: no folder {model}; put the model there, or train it first")


def _parse_yaml(text: str, place: str, parse: Callable[[str], Any] = yaml.safe_load) -> Any:
    try:
        return parse(text)
    except (yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{place}:{mark.line + 1}" if mark and place.endswith((".yaml", ".yml")) else place
        raise UserError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or error})") from None


def _suggest(key: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _typed(value: Any, wanted: Any, key: str, place: str) -> Any:
    """`value` as the type that the dataclass names; YAML reads 1e-4 as a string, so numbers are tried."""
    options = typing.get_args(wanted) if isinstance(wanted, types.UnionType) else (wanted,)
    for option in options:
        base = typing.get_origin(option) or option
        if isinstance(value, bool) and base is not bool:
            continue
        if isinstance(value, str) and not _is_text(value):
            raise UserError(f"{place}: {key} holds a NUL or a lone surrogate; remove it")
        if option == list[float] and isinstance(value, list):
            value = [float(item) if type(item) is int else item for item in value]
        if isinstance(value, base) and all(isinstance(item, typing.get_args(option)) for item in _items(value)):
            return value
        if base is float and isinstance(value, int | str):
            with suppress(ValueError, OverflowError):
                return float(value)
    names = " or ".join(getattr(o, "__name__", str(o)) if typing.get_origin(o) is None else str(o) for o in options)
    hint = "; YAML reads on, off, yes and no as true and false, write them in quotes" * isinstance(value, bool)
    raise UserError(f"{place}: {key} must be {names}, got {reprlib.repr(value)}{hint}")


def _is_text(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= char <= "\udfff" for char in value)


def _items(value: Any) -> list:
    return value if isinstance(value, list) else []


def main(
    schema: type[Settings],
    step: Callable[[Settings], None],
    doc: str,
    read: Callable[[str, Sequence[str]], Settings] | None = None,
) -> None:
    """The command line of a step: `RECIPE.yaml [key=value …]`; a mistake is one line on stderr and exit code 1.

    `read` makes the settings of the file and the overrides, where that is not `load`.
    """
    keys = "\n".join(f"  {field.name}: {field.type}{_default(field)}" for field in fields(schema))
    parser = argparse.ArgumentParser(
        description=f"{doc.strip()}\n\n{inspect.getdoc(schema)}\n\nkeys of the recipe file:\n{keys}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="the step's YAML file, e.g. recipes/demo/data.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of its keys")
    arguments = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")
    with one_line_errors():
        given = arguments.recipe, arguments.overrides
        step(read(*given) if read else load(schema, *given))


def _required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _default(field: Any) -> str:
    if _required(field):
        return " (required)"
    return f" = {field.default_factory() if field.default is MISSING else field.default!r}"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a UserError, a failing disk or Ctrl-C into one line and a non-zero exit code."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        todo = "; make room, then run the same command again; existing files are as they were" if full else ""
        sys.exit(f"error: {error.filename or 'writing'}: {error.strerror or error}{todo}")
    except KeyboardInterrupt:
        print("interrupted; existing files are as they were", file=sys.stderr)
        sys.exit(130)


@contextmanager
def atomic(path: str | Path) -> Iterator[TextIO]:
    """A text file that replaces `path` whole when the block ends, and leaves it as it was when the block fails."""
    with staged([path]) as files:
        yield files[0]


def write_all(texts: dict[Path, str]) -> None:
    """Write several files, all or none: the first is replaced only when the last is complete on the disk."""
    with staged(list(texts)) as files:
        for file, text in zip(files, texts.values(), strict=True):
            file.write(text)


@contextmanager
def staged(paths: Sequence[str | Path]) -> Iterator[list[TextIO]]:
    """Text files that replace `paths` all together when the block ends, and leave them as they were when it fails."""
    targets = [Path(os.path.realpath(path)) for path in paths]
    temporaries = [target.with_name(f".{target.name}.{os.getpid()}.tmp") for target in targets]
    path: str | Path = paths[0]
    for target in targets:
        _remove_stale(target)
    try:
        with ExitStack() as stack:
            files = []
            for path, target, temporary in zip(paths, targets, temporaries, strict=True):
                if target.exists() and not (target.is_file() and os.access(target, os.W_OK)):
                    raise UserError(f"{path}: is no file, or may not be written; nothing was changed")
                target.parent.mkdir(parents=True, exist_ok=True)
                files.append(stack.enter_context(open(temporary, "w", encoding="utf-8", newline="\n")))
            yield files
            for path, file in zip(paths, files, strict=True):  # noqa: B007  (named in the error below)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary, target in zip(paths, temporaries, targets, strict=True):  # noqa: B007
            os.replace(temporary, target)
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: could not be written ({reason}); nothing was changed") from error
    finally:
        for temporary in temporaries:
            with suppress(OSError):
                temporary.unlink()


def _remove_stale(target: Path) -> None:
    """Take away what a killed process has left of its own writing of `target`."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        process = left.suffixes[-2][1:]
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            with suppress(OSError):
                left.unlink()
