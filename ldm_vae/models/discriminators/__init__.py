"""Networks that tell images from reconstructions."""
