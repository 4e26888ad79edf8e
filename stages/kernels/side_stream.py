"""A second CUDA stream, for work of the backward whose results nothing needs at once."""

from collections import deque
from collections.abc import Callable

import torch

# Of a batch. On an H200 with phi-2 the second stream took 14.23 -> 13.74 ms at 528 tokens and 25.08 -> 24.71 at 1,056.
# At 2,112 tokens it took 49.3 -> 49.8, because one product already fills the GPU.
MAX_TOKENS = 1536
MAX_RUNNING = 2  # pieces of work whose tensors are kept; 4 and 16 were no faster


class SideStream:
    """Runs work next to the main stream: the stream that is current where `run` is called.

    It works in eager runs and in CUDA graphs: in a capture the second stream becomes a branch of the graph. On a CPU,
    and for large batches, the work runs at once.

    A tensor that the main stream allocates may be freed and used again there while the second stream still reads it.
    `record_stream` would prevent this, but in a graph's memory pool it would keep every tensor until the capture ends.
    Here each piece of work keeps its tensors, and the main stream waits for it before they are released.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.running: deque[tuple[torch.cuda.Event, Callable[[], object]]] = deque()

    def run(self, work: Callable[[], object], tokens: int) -> None:
        """Run `work` after all that the main stream has been given so far.

        Args:
            work: launches kernels. The main stream must not write to the tensors that it reads, which it must refer to:
                a `functools.partial`.
            tokens: of the batch.
        """
        if self.stream is None or tokens > MAX_TOKENS:
            work()
            return
        main, event = torch.cuda.current_stream(), torch.cuda.Event()
        self.stream.wait_stream(main)
        self.running.append((event, work))  # before it fails: a capture cannot end until `join`
        with torch.cuda.stream(self.stream):
            work()
        self.stream.record_event(event)
        if len(self.running) > MAX_RUNNING:
            done, _ = self.running.popleft()
            main.wait_event(done)

    def join(self) -> None:
        """Let the main stream wait for all work."""
        if self.stream and self.running:
            torch.cuda.current_stream().wait_stream(self.stream)
        self.running.clear()

    def start(self) -> None:
        """Forget the work of a step that failed: events of a broken capture cannot be waited for."""
        self.running.clear()
