"""Apart from the kernels, so that it can be imported where Triton is not installed."""


class StepUnavailable(Exception):
    """Why a model or a machine can't have the captured training step."""
