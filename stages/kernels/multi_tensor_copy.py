"""One kernel that copies many matrices."""

import torch
import triton
import triton.language as tl

BLOCK = 1024
TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class MultiTensorCopy:
    """Copies many matrices, each times a factor, in one kernel. LoRA has hundreds of small ones.

    Args:
        copies: (source, target, factor); source and target are [rows, columns] with adjacent columns. All sources have
            one dtype, and all targets have one.
    """

    def __init__(self, copies: list[tuple[torch.Tensor, torch.Tensor, float]]) -> None:
        self.copies = copies  # the table below has only addresses: this reference keeps the tensors alive
        source, target, _ = copies[0]
        device = source.device
        self.dtypes = {"SOURCE": TRITON_DTYPES[source.dtype], "TARGET": TRITON_DTYPES[target.dtype]}
        table = [[s.data_ptr(), t.data_ptr(), s.numel(), s.shape[1], s.stride(0), t.stride(0)] for s, t, _ in copies]
        self.table = torch.tensor(table, dtype=torch.int64, device=device)
        self.factors = torch.tensor([factor for _, _, factor in copies], dtype=torch.float32, device=device)
        # Program i copies block block_index[i] of matrix matrix_index[i].
        blocks = torch.tensor([triton.cdiv(source.numel(), BLOCK) for source, _, _ in copies])
        self.matrix_index = torch.repeat_interleave(torch.arange(len(copies), dtype=torch.int32), blocks).to(device)
        first = (blocks.cumsum(0) - blocks).to(torch.int32).to(device)
        programs = torch.arange(len(self.matrix_index), dtype=torch.int32, device=device)
        self.block_index = programs - first[self.matrix_index.long()]

    def run(self) -> None:
        """Copy the current values of the sources."""
        _copy_kernel[(len(self.matrix_index),)](
            self.table, self.factors, self.matrix_index, self.block_index, BLOCK=BLOCK, **self.dtypes
        )


@triton.jit
def _copy_kernel(
    table_ptr, factors_ptr, matrix_index_ptr, block_index_ptr,
    SOURCE: tl.constexpr, TARGET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    matrix = tl.load(matrix_index_ptr + tl.program_id(0)).to(tl.int64)
    entry_ptr = table_ptr + matrix * 6
    source_ptr = tl.load(entry_ptr).to(tl.pointer_type(SOURCE))
    target_ptr = tl.load(entry_ptr + 1).to(tl.pointer_type(TARGET))
    numel, columns = tl.load(entry_ptr + 2), tl.load(entry_ptr + 3).to(tl.int32)
    offsets = tl.load(block_index_ptr + tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)
    rows, cols = offsets // columns, offsets % columns
    value = tl.load(source_ptr + rows * tl.load(entry_ptr + 4) + cols, offsets < numel, 0).to(tl.float32)
    value *= tl.load(factors_ptr + matrix)
    tl.store(target_ptr + rows * tl.load(entry_ptr + 5) + cols, value.to(TARGET), offsets < numel)
