"""Layers with fewer kernels, for a GPU: the same mathematics."""

from stages.runtime import startup

startup.import_bitsandbytes()  # before peft imports it
