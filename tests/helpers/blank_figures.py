"""Simpler pictures instead of the report's. Drawing them all takes seven of the eight seconds of `analyze`."""

import functools
import hashlib
import io
from collections.abc import Callable, Iterable

from PIL import Image

from stages.report import figures
from stages.report.render import ON_WHITE, render


@functools.cache
def one_pixel(colour: str | tuple[int, ...] = "white") -> bytes:
    """A PNG with one pixel."""
    png = io.BytesIO()
    Image.new("RGB", (1, 1), colour).save(png, "png")
    return png.getvalue()


class OnePixel:
    """Takes the place of a `Figure` that would be saved as PNG."""

    def savefig(self, file: io.BytesIO, **_: object) -> None:
        file.write(one_pixel())


def render_blank(draw: Callable, names: Iterable[str] = ()) -> tuple[bytes, str]:
    """Replaces `stages.report.render.render`."""
    return one_pixel(), "<svg></svg>"


def render_svg(draw: Callable, names: Iterable[str] = ()) -> tuple[bytes, str]:
    """As `stages.report.render.render`, but the PNG has one pixel. Its colour is another one for another SVG."""
    _, svg = render(lambda colours: OnePixel() if colours is ON_WHITE else draw(colours), names)
    return one_pixel(tuple(hashlib.sha256(svg.encode()).digest()[:3])), svg


def call_one_by_one(calls: list[Callable]) -> list:
    """Replaces `stages.runtime.forks.call_in_forks`: a fork takes longer than a blank picture."""
    return [call() for call in calls]


def leave_figures_blank(setattr: Callable[[object, str, object], None] = setattr) -> None:
    """Let `analyze` write blank pictures from now on, or as long as `monkeypatch.setattr` does."""
    setattr(figures, "render", render_blank)
    setattr(figures, "call_in_forks", call_one_by_one)


def draw_svg(setattr: Callable[[object, str, object], None], only: Iterable[Callable] = ()) -> None:
    """Let `analyze` draw SVGs and no PNGs, as long as `monkeypatch.setattr` does.

    Args:
        only: functions of `stages.report.figures` whose pictures are drawn, and the others are blank; empty: all.
    """
    chosen = tuple(only)

    def render_some(draw: functools.partial, names: Iterable[str] = ()) -> tuple[bytes, str]:
        return (render_svg if not chosen or draw.func in chosen else render_blank)(draw, names)

    setattr(figures, "render", render_some)
    setattr(figures, "call_in_forks", call_one_by_one)
