"""Images of any size through an autoencoder: bounded memory, and the result that the whole image would give.

A tile that is encoded by itself has group-norm statistics and attention of its own, so blended tiles differ from the
whole image, in tone and in detail. Here the network runs layer by layer over strips of rows instead: each convolution
reads the rows around its strip, group norms use the statistics of the whole map, attention looks at all positions.
"""

from __future__ import annotations

from ldm_vae.models.exact.enable import (
    disable_exact_tiling,
    enable_exact_tiling,
    plan_of,
    tell_plan,
    within_memory,
)
from ldm_vae.models.exact.plan import Plan

__all__ = ["Plan", "disable_exact_tiling", "enable_exact_tiling", "plan_of", "tell_plan", "within_memory"]
