"""The panel: measures of latents without training a diffusion model on them."""
