"""One kernel that copies many matrices."""

import torch
import triton
import triton.language as tl


class MultiTensorCopy:
    """Copies of many matrices, in another precision and at other places, made anew by one kernel.

    Args:
        pairs: (source, target, factor), both [rows, columns], their elements side by side within a row. All sources
            have one dtype, and all targets.
    """

    BLOCK = 1024

    def __init__(self, pairs: list[tuple[torch.Tensor, torch.Tensor, float]]) -> None:
        self.pairs, (source, target, _) = pairs, pairs[0]  # their memory has to live
        device, self.kinds = source.device, {"SOURCE": KINDS[source.dtype], "TARGET": KINDS[target.dtype]}
        blocks = [triton.cdiv(source.numel(), self.BLOCK) for source, _, _ in pairs]
        table = [[s.data_ptr(), t.data_ptr(), s.numel(), s.shape[1], s.stride(0), t.stride(0)] for s, t, _ in pairs]
        self.table = torch.tensor(table, dtype=torch.int64, device=device)
        self.factors = torch.tensor([factor for _, _, factor in pairs], dtype=torch.float32, device=device)
        numbers = torch.tensor(blocks)
        self.matrix = torch.repeat_interleave(torch.arange(len(pairs), dtype=torch.int32), numbers).to(device)
        first = (numbers.cumsum(0) - numbers).to(torch.int32)
        self.block = torch.arange(sum(blocks), dtype=torch.int32, device=device) - first.to(device)[self.matrix.long()]

    def run(self) -> None:
        """Copy what the sources are now."""
        _copy_kernel[(len(self.matrix),)](
            self.table, self.factors, self.matrix, self.block, BLOCK=self.BLOCK, **self.kinds
        )


KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _copy_kernel(table, factors, matrix, block, SOURCE: tl.constexpr, TARGET: tl.constexpr, BLOCK: tl.constexpr):
    number = tl.load(matrix + tl.program_id(0)).to(tl.int64)
    entry = table + number * 6
    source = tl.load(entry).to(tl.pointer_type(SOURCE))
    target = tl.load(entry + 1).to(tl.pointer_type(TARGET))
    count, columns = tl.load(entry + 2), tl.load(entry + 3).to(tl.int32)
    index = tl.load(block + tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)
    row, column = index // columns, index % columns
    value = tl.load(source + row * tl.load(entry + 4) + column, index < count, 0).to(tl.float32)
    value *= tl.load(factors + number)
    tl.store(target + row * tl.load(entry + 5) + column, value.to(TARGET), index < count)
