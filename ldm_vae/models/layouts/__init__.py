"""Weight files as other software names their tensors."""
