"""Blank pictures in a process that imports `stages` later. `tools.sweep` imports it from a copy of the repository."""

import functools
import io
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from PIL import Image

FIGURES = "stages.report.figures"


@functools.cache
def one_pixel() -> bytes:
    """A white PNG."""
    png = io.BytesIO()
    Image.new("RGB", (1, 1), "white").save(png, "png")
    return png.getvalue()


def render_blank(draw: Callable, names: Iterable[str] = ()) -> tuple[bytes, str]:
    """Replaces `stages.report.render.render`."""
    return one_pixel(), "<svg></svg>"


class FigureFinder:
    """Finds the module FIGURES, and replaces two of its names after its import."""

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != FIGURES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            module.render, module.call_in_forks = render_blank, lambda calls: [call() for call in calls]

        spec.loader.exec_module = exec_module
        return spec


def leave_figures_blank_later() -> None:
    sys.meta_path.insert(0, FigureFinder())
