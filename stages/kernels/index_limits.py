"""The largest tensor that the kernels can index."""

from stages.runtime.errors import UserError


def check_index_range(*sizes: int) -> None:
    """Check that 32-bit indices reach all elements of a kernel's tensors.

    Args:
        sizes: elements of each tensor.

    Raises:
        UserError: where a tensor has 2^31 elements or more. Evaluation limits the tokens of a batch, so there only a
            single row can have so many.
    """
    if max(sizes) >= 2**31:
        raise UserError(
            f"a batch needs a tensor of {max(sizes):,} elements; allowed: under 2^31 = {2**31:,}. "
            "train.micro_batch or train.batch_size must be smaller, or tokenize.max_length if a single row is so long"
        )
