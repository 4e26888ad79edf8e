"""Whether another process of this machine is running."""

import psutil


def is_running(process: psutil.Process | int | None) -> bool:
    """Whether a process runs. A zombie does not: in a container without an init process it stays for ever.

    Args:
        process: a process number, or a psutil.Process, which is not confused with a later process of the same number.
    """
    try:
        if isinstance(process, int):
            process = psutil.Process(process)
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
