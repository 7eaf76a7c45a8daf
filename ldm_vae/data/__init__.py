"""Images and latents: files, the hub, pixels."""
