"""What happens before a stage's heavy imports, and four tricks that save processor seconds at its start and end.

Seconds that each trick saves in the demo's `eval_base`, which takes 3.2 s with all four:

    trick                                    without it
    import_bitsandbytes                        + 0.5
    pause_garbage_collector                    + 1.0
    freeze_imports                             + 0.7
    exit_now                                   + 1.5

Each is the median of 7 runs with the trick removed, which alternate with runs that have it (user + sys, CPU, 2 cores):

    cd demo && time DVC_STAGE=eval_base DVC_PID=$$ python -m stages.eval_base
"""

import atexit
import gc
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# --- before the imports ---


def quiet_libraries() -> None:
    """Leave the terminal to progress bars and to messages that a user can act on.

    Libraries read these settings while they are imported.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # else it reports the head, which we draw, as missing
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # a data folder needs no card
    warnings.filterwarnings("ignore", category=FutureWarning)  # from one library to another


def remove_accelerate_settings() -> None:
    """Delete what `accelerate launch` has put into the environment, such as a precision.

    The Trainer would obey these settings. Only params.yaml says how a model is trained.
    """
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]


def check_imported_code() -> None:
    """Exit if Python has imported `stages` from another folder than this one, as with PYTHONSAFEPATH."""
    imported, expected = Path(__file__).parents[1], Path("stages")
    if (expected / "__init__.py").is_file() and not expected.samefile(imported):
        sys.exit(f"error: Python imports {imported}, not the code of this folder; unset PYTHONSAFEPATH")


def end_on_ctrl_c() -> None:
    """Let Ctrl-C end the process, and a stage that DVC has started say where its last outs are.

    Some libraries catch every exception while they are imported, Python's KeyboardInterrupt too, and the stage would go
    on. DVC waits for the stage.
    """
    if "RANK" in os.environ:  # a rank may wait for another one, in a call in which Python calls no handler
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        return

    def end(*_: object) -> NoReturn:
        os.write(2, b"interrupted; `dvc checkout` restores the last outs\n")  # DVC has removed them
        os._exit(130)

    signal.signal(signal.SIGINT, end)


# --- tricks that save seconds ---


def import_bitsandbytes() -> None:
    """Import bitsandbytes without PyTorch's compiler.

    While bitsandbytes is imported, it wraps a few functions in `torch.compile`, which loads all of TorchInductor. The
    functions are for devices without bitsandbytes kernels and for its optimizers. On CUDA and on CPUs no stage calls
    one of them. They stay uncompiled.
    """
    import torch

    def leave_uncompiled(function: Callable | None = None, **options: object) -> Any:
        return function or leave_uncompiled  # used as `@torch.compile` and as `@torch.compile(...)`

    torch_compile = torch.compile
    torch.compile = leave_uncompiled  # type: ignore[assignment]  # PyTorch declares two overloads
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = torch_compile


def pause_garbage_collector() -> None:
    """Collect no garbage during the imports: they make half a million objects, and nearly all of them stay."""
    gc.disable()


def freeze_imports() -> None:
    """Resume the garbage collector, and exclude from it the objects that exist now."""
    gc.freeze()
    gc.enable()


def unfreeze_imports() -> None:
    """Undo `freeze_imports`, for a program that goes on after `errors.run`."""
    gc.unfreeze()


def exit_now() -> NoReturn:
    """End the process with exit code 0 without freeing its objects one by one, for which Python takes over a second.

    Functions that libraries have registered with `atexit` run: `datasets` removes its temporary folders in one.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
