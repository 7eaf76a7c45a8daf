"""The objective, in tensors only."""
