"""The pipeline: one file for each stage of dvc.yaml, and the packages that the stages call.

Python runs this file before a stage imports its libraries. It calls everything that must happen before those imports.
"""

import os

from stages.runtime import distributed, startup, watchdog

startup.quiet_libraries()
startup.remove_accelerate_settings()

if "DVC_STAGE" in os.environ or distributed.is_launched():  # a stage that DVC or a launcher has started
    startup.check_imported_code()
    startup.end_on_ctrl_c()
    watchdog.start()  # the imports take seconds, in which `dvc` may be killed
    startup.pause_garbage_collector()

    from stages.runtime import gpu_selection  # after the pause: pydantic makes many objects

    gpu_selection.select_gpu_for_stage()
