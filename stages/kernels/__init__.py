"""Layers with fewer kernels, for a GPU: the same mathematics."""
