"""Options of `ldm-vae recipes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ldm_vae.config.recipes import find_recipe, first_sentence, recipe_names
from ldm_vae.config.rules import Options


@dataclass(kw_only=True)
class RecipesOptions(Options):
    """List the recipes that `ldm-vae train --config NAME` takes, or show one."""

    name: Optional[str] = None
    """The recipe to show. Without a name all are listed."""


def recipes(options: RecipesOptions) -> str:
    """Return a line for each recipe, or all of one.

    Raises:
        ValueError: There is no recipe of that name.
    """
    if options.name is not None:
        return find_recipe(options.name, field="name").read_text(encoding="utf-8").rstrip()
    width = max(map(len, recipe_names()))
    lines = [f"{name:<{width}}  {first_sentence(find_recipe(name))}" for name in recipe_names()]
    return "\n".join([*lines, "", "ldm-vae recipes NAME shows one; ldm-vae train --config NAME trains by it."])
