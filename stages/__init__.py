"""One file a stage of dvc.yaml; what they share is in `core`."""

import logging
import os
import signal
import warnings

from stages.runtime import watchdog

# Leave the terminal to progress bars and to what a user can act on. Before the libraries are imported: they ask then.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its load report calls the head, which we draw, missing
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", category=FutureWarning)  # of one library to another

# Ctrl-C ends a stage at once: Python's KeyboardInterrupt is lost where a library catches everything, as some do while
# they are imported, and DVC waits for the stage.
if "DVC_STAGE" in os.environ:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    watchdog.end_with_dvc()  # now, not after the imports, which take seconds
