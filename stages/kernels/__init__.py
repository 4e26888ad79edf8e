"""Decoder layers that compute the same in fewer GPU kernels."""

from stages.runtime import late_compile  # noqa: F401 - before peft imports bitsandbytes
