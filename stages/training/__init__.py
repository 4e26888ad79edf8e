"""Training: the Trainer, its checkpoints and its step as a CUDA graph."""

from stages.runtime import startup

startup.import_bitsandbytes()  # before peft imports it
