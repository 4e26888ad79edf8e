"""One file for each stage of dvc.yaml; the rooms below hold what they call."""

import gc
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

from stages.runtime import distributed, watchdog

# Leave the terminal to progress bars and to what a user can act on. Before the libraries are imported: they ask then.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its load report calls the head, which we draw, missing
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # a data folder needs no card
warnings.filterwarnings("ignore", category=FutureWarning)  # of one library to another

# `accelerate launch` leaves its own settings here, such as a precision, and the Trainer would follow them: what is
# trained, and how, stands in params.yaml alone.
for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
    del os.environ[name]

# Ctrl-C ends a stage at once: Python's KeyboardInterrupt is lost where a library catches everything, as some do while
# they are imported, and DVC waits for the stage.
if "DVC_STAGE" in os.environ or distributed.is_launched():
    here = Path("stages/__init__.py")
    if here.is_file() and not here.samefile(__file__):  # PYTHONSAFEPATH, or another program put it first
        sys.exit(f"error: Python imports {Path(__file__).parent}, not the code of this folder; unset PYTHONSAFEPATH")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    watchdog.end_with_dvc()  # now, not after the imports, which take seconds
    gc.disable()  # imports make half a million objects, nearly all to stay; `errors.run` switches it on again
    from stages.runtime import (
        gpu_selection,
        stage_table,
    )  # only now: it reads params.yaml, by a library of many objects

    if distributed.is_launched() or os.environ["DVC_STAGE"].rpartition(":")[2] in stage_table.GPU_STAGES:
        gpu_selection.select_gpu_from_params()
