"""Train, export and use the autoencoders that latent diffusion runs on."""

__version__ = "0.1.0"
