"""The CPU backend: Numba kernels. `_backends` and `evaluate` call `backend`."""
