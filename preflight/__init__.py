"""Proves a recipe before a GPU hour is spent; `python -m preflight` is its command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from recipe import UserError, read_yaml

if TYPE_CHECKING:
    from distill.settings import Distill

REFUSED, WARNED, UNCHECKED = "refused", "warned", "not checked"
# Names with commas between them, which LLaMA-Factory takes as a YAML list, too.
LISTS = {"dataset", "eval_dataset", "freeze_trainable_modules", "freeze_extra_modules", "additional_target"}
LISTS |= {"lora_target", "oft_target", "galore_target", "apollo_target"}


@dataclass(frozen=True)
class Finding:
    """One result. `refused`: the run would fail, or train on the wrong thing; only that stops `make train`."""

    grade: str
    place: str
    what: str
    remedy: str


@dataclass
class Recipe:
    """A LLaMA-Factory YAML with its overrides: what is given, where, and the default of what is not.

    `distill` is the distill.yaml that named it, where one did.
    """

    path: str
    values: dict[str, Any]
    places: dict[str, str]
    defaults: dict[str, Any] = field(default_factory=dict)
    distill: Distill | None = None

    def __getattr__(self, key: str) -> Any:
        value = self.values.get(key)
        return self.defaults.get(key) if value is None else value

    def place(self, *keys: str) -> str:
        """`file:line`, or the override, of the first of the keys that is given."""
        return next((self.places[key] for key in keys if key in self.places), self.path)

    def find(self, grade: str, keys: str, what: str, remedy: str) -> Finding:
        return Finding(grade, self.place(*keys.split()), what, remedy)

    def names(self, key: str) -> list[str]:
        """A comma-separated value, as LLaMA-Factory splits it; what is named twice is taken once."""
        names = [name.strip() for name in str(getattr(self, key) or "").split(",")]
        return list(dict.fromkeys(filter(None, names)))


def read_recipe(path: str, overrides: list[str]) -> Recipe:
    """A recipe's values as LLaMA-Factory reads them (by OmegaConf: 1e-4 is a number), with the place of each key."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _, places = read_yaml(path)
    for item in overrides:
        if "=" not in item:
            raise UserError(f"{item!r}: expected an override of the form key=value")
        places[item.partition("=")[0]] = f"override {item!r}"
    try:
        merged = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_cli(overrides))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(
            f"{path}, or one of {overrides}: not read by OmegaConf, as LLaMA-Factory does: {said}"
        ) from None
    values = OmegaConf.to_container(merged)
    for key in LISTS & values.keys():
        if isinstance(values[key], list) and all(isinstance(name, str) for name in values[key]):
            values[key] = ",".join(values[key])
    return Recipe(path, values, places)
