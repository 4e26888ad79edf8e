"""Commands for finished runs, one file for each: `python -m tools.NAME`.

`init`, `predict`, `evaluate`, `compare`, `sweep`, `export` and `verify` are the commands. The other modules are used by
them.
"""

from stages.runtime import distributed

if distributed.world_size() > 1:  # each process would do all of the work, and write the same files
    distributed.fail(
        f"error: the commands in tools/ are one process each, and the launcher has started {distributed.world_size()}; "
        "to use several GPUs, label a part of the rows on each: CUDA_VISIBLE_DEVICES=1 python -m tools.predict …",
        immediately=distributed.is_main(),
    )
