"""The networks: diffusers' AutoencoderKL made trainable, and the discriminator."""
