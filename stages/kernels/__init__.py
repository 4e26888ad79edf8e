"""Layers with fewer kernels, for a GPU: the same mathematics."""

from stages.runtime import late_compile  # noqa: F401 - before peft imports bitsandbytes
