"""What stands between encoder and decoder: from the encoder's output to the latent, and from what is stored back."""
