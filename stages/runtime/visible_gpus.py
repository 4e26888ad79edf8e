"""Print the UUIDs of the GPUs that CUDA shows, in CUDA's order, one per line. Without CUDA, print nothing.

This is a script because a process reads CUDA_VISIBLE_DEVICES only once, when it first uses CUDA. A process that has yet
to set the variable runs this script as a child. It asks CUDA's driver, since NVML and nvidia-smi number GPUs by PCI
bus, and CUDA puts the fastest first.
"""

import contextlib
import ctypes
import uuid


def list_visible_gpus() -> list[str]:
    """UUIDs of the GPUs that this process may use, in the form of nvidia-smi.

    Raises:
        OSError: there is no driver.
        AttributeError: the driver is older than CUDA 11.4.
    """
    cuda, count, device = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_int()
    get_uuid = cuda.cuDeviceGetUuid_v2  # a MIG slice has its own UUID
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    names = []
    for ordinal in range(count.value):
        raw = ctypes.create_string_buffer(16)
        if cuda.cuDeviceGet(ctypes.byref(device), ordinal) or get_uuid(raw, device):
            return []
        names.append(f"GPU-{uuid.UUID(bytes=raw.raw)}")
    return names


if __name__ == "__main__":
    with contextlib.suppress(OSError, AttributeError):
        print(*list_visible_gpus(), sep="\n")
