"""Hand-written kernels: each is held against a readable reference by its tests."""
