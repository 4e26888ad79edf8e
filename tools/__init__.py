"""Commands for finished runs, one file for each: `python -m tools.NAME`.

`init`, `predict`, `evaluate`, `compare`, `sweep`, `export` and `verify` are the commands. The other modules are used by
them.
"""

import sys

from stages.runtime import distributed, startup

if sys.argv[0] == "-m":  # Python is locating the module of `python -m tools.NAME`
    startup.pause_garbage_collector()  # `errors.run` resumes it

if distributed.world_size() > 1:  # each process would do all of the work, and write the same files
    message = (
        f"error: a command in tools/ is one process, and the environment says that {distributed.world_size()} were "
        "started (RANK, LOCAL_RANK, WORLD_SIZE); run it without a launcher. docs/several-gpus.md shows how to label a "
        "file on several GPUs"
    )
    if distributed.is_main():
        sys.exit(message)
    distributed.fail(message, immediately=False)
