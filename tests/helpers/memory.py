"""Measure the memory that Python and NumPy allocate. Arrow's allocations are not traced."""

import tracemalloc
from collections.abc import Callable


def traced_peak(call: Callable[[], object]) -> int:
    """Peak of the bytes that a call allocates, its result included."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
