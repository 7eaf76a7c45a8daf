"""Kernels for GPUs, in Triton, and when they are used."""
