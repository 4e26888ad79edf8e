"""The statistics: pure functions of the predictions of base and tuned model. Nothing here reads a file."""
