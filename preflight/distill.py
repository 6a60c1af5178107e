"""A distill.yaml: the LLaMA-Factory recipe that it names, and what is wrong with the pack and the loss beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from preflight import REFUSED, WARNED, Finding, Recipe, read_recipe
from recipe import UserError, read_yaml

if TYPE_CHECKING:
    from distill.score import Row
    from distill.settings import Distill

SAMPLE = 64  # rows that are held against the pack; the training itself counts all


def read(path: str, overrides: list[str]) -> Recipe:
    """A recipe with its overrides; of a distill.yaml the one it names, `distill` holding the rest."""
    if not {"train", "pack"} <= read_yaml(path)[0].keys():
        return read_recipe(path, overrides)
    from distill.settings import load_distill, read_train

    settings = load_distill(path, overrides)
    recipe = read_train(settings.train, settings.overrides)
    recipe.distill = settings
    return recipe


def check_distill(recipe: Recipe) -> Iterator[Finding]:
    """What `distill.train` would refuse; nothing for a recipe that is trained without a teacher."""
    if recipe.distill is None:
        return
    from distill.train import open_pack

    settings = recipe.distill
    try:
        pack = open_pack(settings, recipe)
    except UserError as error:
        what, _, remedy = str(error).rpartition("; ")
        yield Finding(REFUSED, "distill.yaml", what or remedy, remedy if what else "write another value")
        return
    if (asked := pack.meta.temperature) < settings.temperature and settings.tail != "renormalise":
        what = (
            f"temperature {settings.temperature:g} with tail: {settings.tail}: of the tokens outside the {settings.k} "
        )
        what += "only the sum is stored, and spread evenly they outweigh the others"
        yield Finding(WARNED, "distill.yaml", what, f"write tail: renormalise, or temperature: {asked:g}")
    try:
        rows = _first_rows(settings, recipe)
        told = [pack.get(row.key) for row in rows]
    except UserError as error:
        yield Finding(REFUSED, "distill.yaml", str(error), "delete the file, and run `make teach` again")
        return
    if rows:
        if not (found := sum(one is not None and bool(one.known.any()) for one in told)):
            what = f"{settings.pack}: its {len(pack):,} rows know nothing of the first {len(rows)} to train on"
            yield Finding(WARNED, "distill.yaml", what, "has the data changed since `make teach`? run it again")
        elif found < len(rows):
            what = f"{settings.pack}: a teacher for {found} of the first {len(rows)} rows, labels alone for the others"
            yield Finding(WARNED, "distill.yaml", what, "`make teach` goes on where it stopped")


def _first_rows(settings: Distill, recipe: Recipe) -> list[Row]:
    """A sample of what LLaMA-Factory would train on; none where other checks say why it can't be read."""
    from distill.score import load_rows, read_recipe

    few = min(SAMPLE, recipe.max_samples or SAMPLE)
    try:
        return load_rows(read_recipe(settings.train, [*settings.overrides, f"max_samples={few}"]))[0]
    except UserError:
        return []
