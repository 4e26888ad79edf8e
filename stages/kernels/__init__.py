"""Decoder layers that compute the same in fewer GPU kernels."""

from stages.runtime import startup

startup.import_bitsandbytes()  # before peft imports it
