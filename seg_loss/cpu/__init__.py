"""The CPU backend: Numba kernels. `backend` is called by the operators and by `evaluate`."""
