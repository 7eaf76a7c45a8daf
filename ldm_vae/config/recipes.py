"""The recipes that come with the package, and configs by their path."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from ldm_vae.config.names import did_you_mean
from ldm_vae.config.rules import FieldError


def recipes_folder() -> Path:
    """Return where the shipped recipes are: in the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def find_recipe(name: str, *, field: str = "config") -> Path:
    """Return the path of a config file, or of a shipped recipe by its name.

    Raises:
        FieldError: There is neither; the nearest recipe is named.
    """
    for path in (Path(name).expanduser(), recipes_folder() / name, recipes_folder() / f"{name}.yaml"):
        if path.is_file():
            return path
    hint = did_you_mean(Path(name).stem, recipe_names(), otherwise="recipes")
    raise FieldError(f"<{field}>: there is no file or recipe '{name}'{hint}")


def told_recipe(path: Path) -> str:
    """Return what messages call a config: a shipped recipe's file name, or the path."""
    return path.name if path.parent == recipes_folder() else str(path)


def first_sentence(path: Path, *, width: int = 100) -> str:
    """Return how a recipe's first comment begins: its first sentence, cut to a line of `width` letters."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        words += line.removeprefix("# ").split()
    sentence = re.split(r"(?<!\bvs)\.(?= [A-Z]|$)", " ".join(words), maxsplit=1)[0]
    return textwrap.shorten(f"{sentence}.", width=width, placeholder=" …", break_on_hyphens=False)
