"""A diffusers model as a torch module, and what its config.json says of its encoder."""

from __future__ import annotations

from typing import Any, Self, TypeAlias

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict
from torch import nn

DiffusersModel: TypeAlias = ModelMixin
"""An autoencoder as diffusers knows it, of any class in `FAMILIES`."""

ENCODER_IS_TRAINED = "encoder_is_trained"
"""Field of config.json, false where the encoder is there for the class's sake alone. No class takes such an argument,
so diffusers warns of it, by its name, whenever it loads the model."""


class WrappedModel:
    """A model that is moved and switched between modes as a whole."""

    model: DiffusersModel

    @property
    def has_encoder(self) -> bool:
        """Whether the encoder is trained. Otherwise the model only decodes, latents of the teacher that it had."""
        return self.model.config.get(ENCODER_IS_TRAINED) is not False

    def mark_encoder(self, *, trained: bool) -> None:
        """Have the model's config say whether its encoder is trained."""
        if trained == self.has_encoder:
            return
        config = {name: value for name, value in self.model.config.items() if name != ENCODER_IS_TRAINED}
        # diffusers' own way, register_to_config, adds fields and takes none away.
        self.model._internal_dict = FrozenDict(config if trained else config | {ENCODER_IS_TRAINED: False})

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' floating-point type."""
        return self.model.dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the model, in place, as torch's `Module.to` does."""
        nn.Module.to(self.model, *args, **kwargs)
        return self

    def eval(self) -> Self:
        """Put the model into eval mode, in place."""
        self.model.eval()
        return self

    def train(self, mode: bool = True) -> Self:
        """Put the model into training mode, in place."""
        self.model.train(mode)
        return self
