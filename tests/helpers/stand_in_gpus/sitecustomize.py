"""Simulate GPUs on a machine without any. Python imports this file if its folder is in PYTHONPATH.

If DVC runs a stage that uses a GPU, the stage locks one of $STAND_IN_GPUS, as on a machine that has these. It appends a
line to $STAND_IN_LOG when it has the lock, and another when it ends: GPU, process, moment, seconds.
"""

import os
import sys

if "DVC_STAGE" in os.environ and "STAND_IN_GPUS" in os.environ:
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 -- `python -m` puts it there, but later than this runs
    from stages.runtime import gpu_selection, stage_table

    sys.path.pop(0)
    if (
        os.environ["DVC_STAGE"].rpartition(":")[2] in stage_table.GPU_STAGES
        and gpu_selection.SELECTED_BY not in os.environ
    ):
        import atexit
        import time

        def note(moment):
            """Append a line to the log."""
            with open(os.environ["STAND_IN_LOG"], "a") as file:
                file.write(f"{os.environ['CUDA_VISIBLE_DEVICES']} {os.getpid()} {moment} {time.time()}\n")

        gpu_selection.list_visible_gpus = os.environ["STAND_IN_GPUS"].split
        gpu_selection.select_gpu()
        note("took")
        atexit.register(note, "ended")
