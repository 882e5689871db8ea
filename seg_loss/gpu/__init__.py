"""The GPU backend: Triton kernels. `backend` is called by the operators and by `evaluate`."""
