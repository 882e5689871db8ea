"""File formats, one module each: bytes to tensors and back. Each docstring is a specification."""
