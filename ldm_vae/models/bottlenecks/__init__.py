"""Bottlenecks: how the encoder's output becomes a latent, and how a stored latent becomes the decoder's input."""
