"""Bytes to tensors and back, one file per format; the docstring of each is its specification."""
