"""Images to latents and back: the job of `encode`, `decode` and their check."""
