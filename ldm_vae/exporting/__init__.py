"""An autoencoder as others load it."""
