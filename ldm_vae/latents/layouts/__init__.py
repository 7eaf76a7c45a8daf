"""Latents as other trainers read them."""
