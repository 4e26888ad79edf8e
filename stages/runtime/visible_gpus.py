"""Print the UUIDs of the GPUs that CUDA shows here, in its order, one a line; nothing where there is no CUDA.

A script, since CUDA reads CUDA_VISIBLE_DEVICES once in a process: whoever still has to choose asks in another one. It
asks the driver, which alone knows: NVML and nvidia-smi number by PCI bus, CUDA puts the fastest GPU first.
"""

import contextlib
import ctypes
import uuid


def list_visible_gpus() -> list[str]:
    """UUIDs, the form of nvidia-smi, of the GPUs that this process may use.

    Raises:
        OSError: there is no driver.
        AttributeError: it is older than CUDA 11.4.
    """
    cuda, count, device = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_int()
    name_of = cuda.cuDeviceGetUuid_v2  # of a MIG slice its own
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    names = []
    for ordinal in range(count.value):
        name = ctypes.create_string_buffer(16)
        if cuda.cuDeviceGet(ctypes.byref(device), ordinal) or name_of(name, device):
            return []
        names.append(f"GPU-{uuid.UUID(bytes=name.raw)}")
    return names


if __name__ == "__main__":
    with contextlib.suppress(OSError, AttributeError):
        print(*list_visible_gpus(), sep="\n")
