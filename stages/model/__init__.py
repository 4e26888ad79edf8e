"""The classifier: quantised base, head, adapter, prediction."""

from stages.runtime import late_compile  # noqa: F401 - before peft imports bitsandbytes
