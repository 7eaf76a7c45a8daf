"""Bounds on the density that an autoencoder gives to pictures."""
