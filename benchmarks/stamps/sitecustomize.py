"""Python imports this when it starts with this folder on PYTHONPATH, as benchmarks/startup.py starts `dvc`.

It adds lines to the file $WAIT_STAMPS: "stage moment seconds", by the clock that all processes share. `dvc` writes when
it launches a stage, and the stage when its `main` begins and ends, at each mark of its recorder, and around the reading
back of a saved adapter. The stages' code knows nothing of it.
"""

import functools
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable


def stamp(stage, moment) -> None:
    """Write one line; a single write, so that two processes can't mix theirs."""
    line = f"{stage.rpartition(':')[2]} {moment} {time.monotonic():.4f}\n"
    with open(os.environ["WAIT_STAMPS"], "a") as file:
        file.write(line)


def launched(event, arguments) -> None:
    """In `dvc`: the process of a stage is about to start."""
    if event == "subprocess.Popen" and isinstance(arguments[3], dict) and "DVC_STAGE" in arguments[3]:
        stamp(arguments[3]["DVC_STAGE"], "launched")


def around(call: Callable, begin: str, end: str) -> Callable:
    """A function that stamps its beginning and its end, also where it raises."""

    @functools.wraps(call)
    def timed(*arguments, **options):
        stamp(os.environ["DVC_STAGE"], begin)
        try:
            return call(*arguments, **options)
        finally:
            stamp(os.environ["DVC_STAGE"], end)

    return timed


def marking(mark: Callable) -> Callable:
    """`Recorder.mark` that stamps the moment too."""

    @functools.wraps(mark)
    def marked(recorder, moment):
        mark(recorder, moment)
        stamp(os.environ["DVC_STAGE"], moment)

    return marked


def stamp_errors(module) -> None:
    run = module.run
    module.run = lambda main: run(around(main, "begun", "ended"))


def stamp_recorder(module) -> None:
    module.Recorder.mark = marking(module.Recorder.mark)


def stamp_readback(module) -> None:
    module.verify_saved_adapter = around(module.verify_saved_adapter, "before_readback", "after_readback")


STAMPED = {
    "stages.runtime.errors": stamp_errors,
    "stages.runtime.usage_recorder": stamp_recorder,
    "stages.model.verify_saved": stamp_readback,
}


class Finder:
    """Finds the modules of `STAMPED` as Python does, and changes them once they are loaded."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in STAMPED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def loaded(module):
            load(module)
            STAMPED[name](module)

        spec.loader.exec_module = loaded
        return spec


if "WAIT_STAMPS" in os.environ:
    if "DVC_STAGE" in os.environ:
        sys.meta_path.insert(0, Finder)
    else:
        sys.addaudithook(launched)
