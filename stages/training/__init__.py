"""Training: the Trainer, its checkpoints, and the step captured as a CUDA graph."""

from stages.runtime import startup

startup.import_bitsandbytes()  # before peft imports it
