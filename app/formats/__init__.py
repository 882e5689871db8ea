"""File formats, one module each: bytes to tensors and back. Each docstring is a specification."""

TENSOR_SUFFIXES = (".npy", ".npz", ".safetensors")
PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_MAP_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
"""The suffixes of the files that commands look for in folders."""
