"""How large a tensor the kernels may be given."""

from stages.runtime.errors import UserError


def check_index_range(*elements: int) -> None:
    """Refuse what 32-bit indices do not reach.

    Args:
        elements: the largest numbers that a kernel counts to.

    Raises:
        UserError: where one does not fit.
    """
    if max(elements) >= 2**31:
        raise UserError("a batch is too large for 32-bit indices: train.batch_size or eval.batch_size must be smaller")
