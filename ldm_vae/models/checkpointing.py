"""Activation checkpointing: activations recomputed in the backward instead of being stored."""

from __future__ import annotations

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint

from ldm_vae.config.names import CheckpointingLevel
from ldm_vae.models.families.family import Family


def checkpoint_activations(family: Family, level: CheckpointingLevel) -> None:
    """Recompute activations in the backward instead of storing them; calling it again changes the level.

    `blocks` stores the input of each block, and recomputes a block up to its last convolution. `full` stores the
    input of each resolution level, recomputes the inputs of its blocks, and from them the blocks.
    """
    chosen: dict[CheckpointingLevel, tuple[type[nn.Module], ...]] = {
        "none": (),
        "blocks": family.blocks,
        "full": (*family.levels, *family.blocks),
    }
    for module in family.model.modules():
        forward = module.forward
        if isinstance(forward, functools.partial) and forward.func is checkpoint:
            forward = module.forward = forward.args[0]
        if isinstance(module, chosen[level]):
            module.forward = functools.partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
