"""How pictures are rendered: as PNG on white, and as SVG in the colours of the page.

The same code draws both. The SVG names its colours as CSS variables (`var(--tuned)`), so one picture serves a light and
a dark page.
"""

import io
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from stages.report.fonts import DEFAULT_FAMILY, find_families

ON_WHITE = {
    "ink": "#1f2933",
    "muted": "#66717f",
    "line": "#d5dae1",
    "base": "#b4610a",
    "tuned": "#1f66d0",
    "paper": "#ffffff",
}
# Placeholder colours of the SVG: `inline` replaces them by CSS variables.
PLACEHOLDER_COLOURS = {name: f"#0a0b{number:02x}" for number, name in enumerate(ON_WHITE, start=0xC0)}
WIDTH = 4.2  # inches; narrow, so that text stays readable on a phone
SHOWN = 500  # width of a PNG on the page, in pixels
DENSITY = 2  # pixels of a PNG for each pixel of the page, for dense screens
COLOURS = 64  # in a PNG's palette: a few colours, and their shades at edges
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # a class may be called $5
}


def render(draw: Callable[[dict[str, str]], Figure], names: Iterable[str] = ()) -> tuple[bytes, str]:
    """Draw a picture in both formats.

    Args:
        draw: function of the colours {name: colour} that returns a `Figure`, `WIDTH` wide.
        names: texts of the data that may be drawn, in any script.

    Returns:
        (PNG bytes, SVG text): the same bytes for the same picture, on any day.
    """
    families = find_families("".join(names))
    style = STYLE if families == (DEFAULT_FAMILY,) else STYLE | {"font.family": families}
    with matplotlib.rc_context(style | themed(ON_WHITE)):  # type: ignore[arg-type]  # its hint lists every key
        png = io.BytesIO()
        dpi, uncompressed = SHOWN * DENSITY / WIDTH, {"compress_level": 0}  # `with_few_colours` compresses
        draw(ON_WHITE).savefig(png, format="png", dpi=dpi, facecolor=ON_WHITE["paper"], pil_kwargs=uncompressed)
    with matplotlib.rc_context(style | themed(PLACEHOLDER_COLOURS)):  # type: ignore[arg-type]  # its hint lists every key
        svg = io.StringIO()
        draw(PLACEHOLDER_COLOURS).savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return with_few_colours(png), inline(svg.getvalue())


def with_few_colours(png: io.BytesIO) -> bytes:
    """Convert a PNG to one with a palette. It is a third as large, and Git stores the pictures of every run."""
    image, small = Image.open(png).convert("RGB"), io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def themed(colours: dict[str, str]) -> dict[str, str]:
    """Matplotlib settings for a set of colours."""
    ink, muted, line = colours["ink"], colours["muted"], colours["line"]
    return {
        "text.color": ink, "axes.labelcolor": muted, "axes.edgecolor": line, "axes.titlecolor": ink,
        "xtick.color": line, "xtick.labelcolor": muted, "ytick.color": line, "ytick.labelcolor": ink,
        "grid.color": line,
    }  # fmt: skip


def inline(svg: str) -> str:
    """Matplotlib's SVG as an element of a page, in CSS colours. Prolog, metadata and unused ids are removed."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1))
    for name, colour in PLACEHOLDER_COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.strip()


def shorten(name: str, length: int) -> str:
    """A name in one line. A long name loses its middle, since long names often differ at the start or the end."""
    name = " ".join(name.split())
    if width(name) <= length:
        return name
    end = length // 2
    return f"{_start(name, length - end - 1).rstrip()}…{_start(name[::-1], end)[::-1].lstrip()}"


def _start(name: str, length: int) -> str:
    """The start of a name, no wider than `length` letters."""
    ends = itertools.accumulate(map(width, name))
    return name[: sum(end <= length for end in ends)]


def width(name: str) -> int:
    """Width of a name in letters. A Chinese, Japanese or Korean character is two letters wide."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in name)
