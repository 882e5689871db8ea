"""The GPU backend: Triton kernels. `_backends` and `evaluate` call `backend`."""
