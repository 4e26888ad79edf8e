"""Training: the Trainer, its checkpoints and its step as a CUDA graph."""
