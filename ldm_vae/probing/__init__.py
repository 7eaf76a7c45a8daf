"""How well a diffusion model learns on latents: a small one is trained on them, and its samples are judged."""
