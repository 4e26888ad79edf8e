"""Errors of this package, in a file that imports no Triton: the Trainer needs them where Triton is not installed."""


class StepUnavailable(Exception):
    """The model or the machine cannot run the captured training step; the message says why."""
