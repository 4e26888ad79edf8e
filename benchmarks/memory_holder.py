"""Hold a GPU's memory, as another process would, and leave a given amount free. what_fits.py starts it.

It reads numbers of GB from its standard input, one a line. After each it holds all but so much of the memory that was
free when it started, and prints that it does. It ends with its input.
"""

import sys
from collections.abc import Callable, Iterable, Iterator

import torch

GB = 10**9


def hold(requests: Iterable[str], free_bytes: int, allocate: Callable[[int], object]) -> Iterator[str]:
    """Allocate for each request, after freeing the last allocation -> an answer.

    Args:
        requests: GB to leave free.
        free_bytes: free while nothing is held.
        allocate: holds so many bytes as long as its result lives.
    """
    held: list[object] = []
    for request in requests:
        held.clear()
        size = max(0, free_bytes - round(float(request) * GB))
        try:
            held.append(allocate(size))
            yield f"holds {size}"
        except torch.OutOfMemoryError:  # the training's process has not freed its memory
            yield f"cannot hold {size}"


def allocate(size: int) -> torch.Tensor:
    torch.cuda.empty_cache()  # what was held
    return torch.empty(size, dtype=torch.uint8, device="cuda")


def main() -> None:
    torch.empty(1, device="cuda")  # creates the context, which counts as held
    free_bytes, _ = torch.cuda.mem_get_info()
    print(f"free {free_bytes}", flush=True)
    for answer in hold(sys.stdin, free_bytes, allocate):
        print(answer, flush=True)


if __name__ == "__main__":
    main()
