"""Training: the Trainer, its checkpoints, and the step captured as a CUDA graph."""

from stages.runtime import late_compile  # noqa: F401 - before peft imports bitsandbytes
