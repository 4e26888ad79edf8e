"""Write time stamps of the stages for benchmarks/startup.py, without changing their code.

Python imports this file at its start if its folder is on PYTHONPATH. It appends lines "stage moment seconds" to the
file $STARTUP_STAMPS, with a clock that all processes share. `dvc` writes a line when it launches a stage. A stage
writes a line when its `main` begins and ends, at each mark of its recorder, and around the verification of an adapter.
"""

import functools
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


def stamp(stage: str, moment: str) -> None:
    """Append one line, in a single write, so that the lines of two processes never mix."""
    line = f"{stage.rpartition(':')[2]} {moment} {time.monotonic():.4f}\n"
    with open(os.environ["STARTUP_STAMPS"], "a") as file:
        file.write(line)


def stamp_launch(event: str, arguments: tuple) -> None:
    """An audit hook in `dvc`: stamp the launch of a stage's process."""
    if event == "subprocess.Popen" and isinstance(arguments[3], dict) and "DVC_STAGE" in arguments[3]:
        stamp(arguments[3]["DVC_STAGE"], "launched")


def stamp_around(call: Callable, begin: str, end: str) -> Callable:
    """Wrap a function so that it stamps its beginning and its end, even if it raises."""

    @functools.wraps(call)
    def stamped(*arguments: object, **options: object) -> object:
        stamp(os.environ["DVC_STAGE"], begin)
        try:
            return call(*arguments, **options)
        finally:
            stamp(os.environ["DVC_STAGE"], end)

    return stamped


def stamp_marks(mark: Callable) -> Callable:
    """Wrap `Recorder.mark` so that it also stamps the moment."""

    @functools.wraps(mark)
    def stamped(recorder: object, moment: str) -> None:
        mark(recorder, moment)
        stamp(os.environ["DVC_STAGE"], moment)

    return stamped


def patch_errors(module: ModuleType) -> None:
    run = module.run
    module.run = lambda main: run(stamp_around(main, "begun", "ended"))


def patch_recorder(module: ModuleType) -> None:
    module.Recorder.mark = stamp_marks(module.Recorder.mark)


def patch_verification(module: ModuleType) -> None:
    module.verify_saved_adapter = stamp_around(module.verify_saved_adapter, "before_readback", "after_readback")


PATCHES = {
    "stages.runtime.errors": patch_errors,
    "stages.runtime.usage_recorder": patch_recorder,
    "stages.model.verify_saved": patch_verification,
}


class Finder:
    """Finds the modules of `PATCHES` as Python does, and patches each after it is loaded."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def load_and_patch(module: ModuleType) -> None:
            load(module)
            PATCHES[name](module)

        spec.loader.exec_module = load_and_patch
        return spec


if "STARTUP_STAMPS" in os.environ:
    if "DVC_STAGE" in os.environ:
        sys.meta_path.insert(0, Finder)
    else:
        sys.addaudithook(stamp_launch)
