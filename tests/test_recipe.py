from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from recipe import UserError, atomic, load

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Example:
    name: str
    rate: float = 0.1
    limit: int = 0
    strict: bool = True
    files: str | list[str] = ""


def test_values_defaults_and_overrides(write: Callable) -> None:
    path = write("a.yaml", "name: 甲\nrate: 1e-4\n")
    assert load(Example, path) == Example("甲", rate=1e-4)
    assert load(Example, path, ["limit=3", "name=乙=丙", "files=[a, b]"]) == Example("乙=丙", 1e-4, 3, files=["a", "b"])


@pytest.mark.parametrize(
    "text, overrides, message",
    [
        ("name: a\nlimt: 3\n", [], "a.yaml:2: unknown key 'limt' (did you mean 'limit'?)"),
        ("name: a\n", ["foo=1"], "override 'foo=1': unknown key 'foo'; known: name, rate"),
        ("rate: 1\n", [], "a.yaml: key 'name' is missing"),
        ("name: a\nlimit: ten\n", [], "a.yaml:2: limit must be int, got 'ten'"),
        ("name: a\nlimit: true\n", [], "a.yaml:2: limit must be int, got True"),
        ("name: a\nlimit: 1.5\n", [], "limit must be int, got 1.5"),
        ("name: 3\n", [], "name must be str, got 3"),
        ("name: a\nfiles: [1]\n", [], "files must be str or list[str], got [1]"),
        ("name: a\nname: b\n", [], "a.yaml:2: key 'name' is there twice"),
        ("- a\n", [], "expected `key: value` lines"),
        ("", [], "expected `key: value` lines"),
        ("name: [a\n", [], "not valid YAML"),
        ("1: a\n", [], "a.yaml:1: expected a plain word as key"),
        ("<<: {name: a}\n", [], "expected a plain word as key"),
        ("name: &a [x]\nfiles: *a\n", [], "aliases (*name) are not read"),
        ("name: 2024-13-45\n", [], "not valid YAML"),
        ("name: !!python/object/apply:os.getcwd []\n", [], "not valid YAML"),
        ("name: [" + "[" * 3000 + "\n", [], "not valid YAML"),
        ('name: "a\\0b"\n', [], "a.yaml:1: name holds a NUL or a lone surrogate"),
        ("name: a\nrate: " + "9" * 400 + "\n", [], "rate must be float"),
        ("name: a\n", ["limit"], "expected an override of the form key=value"),
    ],
)
def test_a_wrong_recipe_is_named_with_its_line(write: Callable, text: str, overrides: list, message: str) -> None:
    with pytest.raises(UserError) as error:
        load(Example, write("a.yaml", text), overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_atomic_keeps_the_permissions_that_umask_gives(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("x")
    with atomic(tmp_path / "ours") as file:
        file.write("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def command(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [("none.yaml",), ("recipes/demo",), ("recipes/demo/data.yaml", "input=none.json")])
def test_a_users_mistake_is_one_line_without_traceback(words: tuple[str, ...]) -> None:
    done = command("preprocess.build", *words)
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_help_lists_the_keys() -> None:
    done = command("preprocess.build", "--help")
    assert (
        done.returncode == 0
        and "eval_share: float = 0.1" in done.stdout
        and "input: str | list[str] (required)" in done.stdout
    )
