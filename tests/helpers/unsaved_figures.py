"""Saves no matplotlib figure. Unlike blank_figures.py it imports no `stages`, which `tools.sweep` imports from a copy.

Run a program so: python -P tests/helpers/unsaved_figures.py tools.sweep ARGUMENTS
"""

import os
import runpy
import sys
from typing import IO

from matplotlib.figure import Figure
from PIL import Image


def savefig(self: Figure, file: IO, format: str, **_: object) -> None:
    """Replaces `Figure.savefig`, which takes two thirds of a figure's time."""
    if format == "svg":
        file.write("<svg></svg>")
    else:
        Image.new("RGB", (1, 1), "white").save(file, format)


def leave_figures_unsaved() -> None:
    Figure.savefig = savefig


if __name__ == "__main__":
    leave_figures_unsaved()
    del sys.argv[0]
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 -- as `python -m` does
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
