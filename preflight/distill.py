"""A distill.yaml: the LLaMA-Factory recipe that it names, and what is wrong with the pack and the loss beside it."""

from __future__ import annotations

from collections.abc import Iterator

from preflight import REFUSED, WARNED, Finding, Recipe, read_recipe
from recipe import UserError, read_yaml


def read(path: str, overrides: list[str]) -> Recipe:
    """A recipe with its overrides; of a distill.yaml the one it names, `distill` holding the rest."""
    if not {"train", "pack"} <= read_yaml(path)[0].keys():
        return read_recipe(path, overrides)
    from distill.train import read as read_distill

    settings, recipe = read_distill(path, overrides)
    recipe.distill = settings
    return recipe


def check_distill(recipe: Recipe) -> Iterator[Finding]:
    """What `distill.train` would refuse; nothing for a recipe that is trained without a teacher."""
    if recipe.distill is None:
        return
    from distill.train import open_pack

    settings = recipe.distill
    try:
        asked = open_pack(settings, recipe).meta.temperature
    except UserError as error:
        what, _, remedy = str(error).rpartition("; ")
        yield Finding(REFUSED, "distill.yaml", what or remedy, remedy if what else "write another value")
        return
    if settings.temperature > asked and settings.tail != "renormalise":
        what = (
            f"temperature {settings.temperature:g} with tail: {settings.tail}: of the tokens outside the {settings.k} "
        )
        what += "only the sum is stored, and spread evenly they outweigh the others"
        yield Finding(WARNED, "distill.yaml", what, f"write tail: renormalise, or temperature: {asked:g}")
