"""Measures of reconstructions and of sets of images: tensors only, summed by name."""
