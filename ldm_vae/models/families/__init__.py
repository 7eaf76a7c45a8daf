"""Model classes: one file a class of diffusers, behind the interface `Family`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm_vae.models.families.dc import DC
from ldm_vae.models.families.family import DiffusersModel, Family
from ldm_vae.models.families.flux2 import Flux2
from ldm_vae.models.families.kl import KL
from ldm_vae.models.families.tiny import Tiny
from ldm_vae.models.families.vq import VQ

FAMILIES: dict[str, type[Family]] = {family.class_name(): family for family in (KL, Flux2, VQ, Tiny, DC)}
"""Every family, by the name of its diffusers class."""


def family_named(name: str) -> type[Family]:
    """Return the family that `model.family` calls by this name."""
    return next(family for family in FAMILIES.values() if family.name == name)


def family_class(class_name: object) -> type[Family]:
    """Return the family of a diffusers class.

    Raises:
        ValueError: No family is of that class.
    """
    if class_name not in FAMILIES:
        raise ValueError(f"{_one_of([str(class_name)])}, not {_one_of(list(FAMILIES))}")
    return FAMILIES[str(class_name)]


def family_of(model: DiffusersModel) -> Family:
    """Put a diffusers model behind the interface of its family.

    Raises:
        ValueError: No family is of the model's class.
    """
    return family_class(type(model).__name__).of(model)


def family_from_config(fields: Mapping[str, Any], *, device: str = "cpu") -> Family:
    """Build the model of a config.json that names its class.

    Raises:
        ValueError: No family is of the class that the config names.
    """
    return family_class(fields.get("_class_name")).from_config(fields, device=device)


def _one_of(names: list[str]) -> str:
    article = "an" if names[0][0] in "AEIO" else "a"
    return f"{article} {names[0]}" if len(names) == 1 else f"one of {', '.join(names)}"
