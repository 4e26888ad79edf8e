"""Training: the Trainer, its checkpoints and its step as a CUDA graph."""

from stages.runtime import late_compile  # noqa: F401 - before peft imports bitsandbytes
