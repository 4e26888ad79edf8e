"""Operations of Triton kernels on blocks of a head's vectors.

A block has two parts, of BLOCK_1 and BLOCK_2 columns, because sizes in Triton are powers of two: heads of 80 dimensions
have blocks of 64 and 16 columns instead of one of 128. The second part is unused where the first holds all dimensions.
"""

import triton
import triton.language as tl


def padded_size(size: int) -> int:
    """The size of a block for `size` columns or rows of a product: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(size))


def split_head(head_dim: int) -> tuple[int, int]:
    """The columns of the two parts for heads of `head_dim` dimensions. The second may have none."""
    whole = padded_size(head_dim)
    rest = padded_size(head_dim - whole // 2)
    return (whole // 2, rest) if whole > 16 and rest < whole // 2 else (whole, 0)


@triton.jit
def load_vectors(
    ptr, stride, rows, mask, HEAD_DIM: tl.constexpr, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr
) -> tuple:
    """Load the vectors of one head."""
    offs_1, offs_2 = tl.arange(0, BLOCK_1), BLOCK_1 + tl.arange(0, BLOCK_2)
    ptrs = ptr + rows[:, None] * stride
    x1 = tl.load(ptrs + offs_1[None, :], mask[:, None] & (offs_1 < HEAD_DIM)[None, :], 0)
    x2 = x1
    if HEAD_DIM > BLOCK_1:
        x2 = tl.load(ptrs + offs_2[None, :], mask[:, None] & (offs_2 < HEAD_DIM)[None, :], 0)
    return x1, x2


@triton.jit
def store_vectors(
    ptr, stride, rows, mask, x1, x2, HEAD_DIM: tl.constexpr, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr
) -> None:
    """Store the vectors of one head."""
    offs_1, offs_2 = tl.arange(0, BLOCK_1), BLOCK_1 + tl.arange(0, BLOCK_2)
    ptrs = ptr + rows[:, None] * stride
    dtype = ptr.dtype.element_ty
    tl.store(ptrs + offs_1[None, :], x1.to(dtype), mask[:, None] & (offs_1 < HEAD_DIM)[None, :])
    if HEAD_DIM > BLOCK_1:
        tl.store(ptrs + offs_2[None, :], x2.to(dtype), mask[:, None] & (offs_2 < HEAD_DIM)[None, :])


@triton.jit
def zero_vectors(BLOCK_M: tl.constexpr, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr) -> tuple:
    """The beginning of sums of vectors."""
    return tl.zeros((BLOCK_M, BLOCK_1), dtype=tl.float32), tl.zeros((BLOCK_M, BLOCK_2), dtype=tl.float32)


@triton.jit
def dot_vectors(x1, x2, y1, y2, HEAD_DIM: tl.constexpr, BLOCK_1: tl.constexpr) -> tl.tensor:
    """x y', the products of two blocks of vectors with one another."""
    out = tl.dot(x1, tl.trans(y1), input_precision="ieee")
    if HEAD_DIM > BLOCK_1:
        out = tl.dot(x2, tl.trans(y2), out, input_precision="ieee")
    return out


@triton.jit
def multiply_vectors(x1, x2, y1, y2, HEAD_DIM: tl.constexpr, BLOCK_1: tl.constexpr) -> tl.tensor:
    """The product of each vector of x with that of y."""
    out = tl.sum(x1.to(tl.float32) * y1.to(tl.float32), 1)
    if HEAD_DIM > BLOCK_1:
        out += tl.sum(x2.to(tl.float32) * y2.to(tl.float32), 1)
    return out


@triton.jit
def add_weighted(acc1, acc2, weights, x1, x2, HEAD_DIM: tl.constexpr, BLOCK_1: tl.constexpr) -> tuple:
    """acc + weights x, weighted sums of a block of vectors."""
    acc1 = tl.dot(weights, x1, acc1, input_precision="ieee")
    if HEAD_DIM > BLOCK_1:
        acc2 = tl.dot(weights, x2, acc2, input_precision="ieee")
    return acc1, acc2
