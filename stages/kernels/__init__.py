"""Layers with fewer kernels, for a GPU."""
