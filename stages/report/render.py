"""How pictures are made: each drawn twice by the same code, PNG on white, and SVG in the colours of the page.

The SVG names its colours as CSS variables (`var(--tuned)`), so that one picture serves a light and a dark page.
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
STAND_INS = {name: f"#0a0b{number:02x}" for number, name in enumerate(ON_WHITE, start=0xC0)}  # found again in the SVG
WIDTH = 4.2  # inches; narrow, so that a phone does not shrink the words
SHOWN = 500  # pixels of a page that a PNG takes
DENSITY = 2  # pixels of a PNG for each of these, for a dense screen
COLOURS = 64  # of a PNG: a few, and their shades at edges
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
    """Draw a picture both ways.

    Args:
        draw: function of the colours {name: colour} that returns a `Figure`, `WIDTH` wide.
        names: what comes from the data and may be drawn, in any script.

    Returns:
        (PNG bytes, SVG text): the same bytes for the same picture, on any day.
    """
    families = find_families("".join(names))
    style = STYLE if families == (DEFAULT_FAMILY,) else STYLE | {"font.family": families}
    with matplotlib.rc_context(style | themed(ON_WHITE)):
        drawn = io.BytesIO()
        draw(ON_WHITE).savefig(drawn, format="png", dpi=SHOWN * DENSITY / WIDTH, facecolor=ON_WHITE["paper"])
    with matplotlib.rc_context(style | themed(STAND_INS)):
        svg = io.StringIO()
        draw(STAND_INS).savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return with_few_colours(drawn), inline(svg.getvalue())


def with_few_colours(png: io.BytesIO) -> bytes:
    """A PNG with a palette, a third as large: each run commits its pictures."""
    image, small = Image.open(png).convert("RGB"), io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def themed(colours: dict[str, str]) -> dict[str, str]:
    """Matplotlib's settings for a set of colours."""
    ink, muted, line = colours["ink"], colours["muted"], colours["line"]
    return {
        "text.color": ink, "axes.labelcolor": muted, "axes.edgecolor": line, "axes.titlecolor": ink,
        "xtick.color": line, "xtick.labelcolor": muted, "ytick.color": line, "ytick.labelcolor": ink,
        "grid.color": line,
    }  # fmt: skip


def inline(svg: str) -> str:
    """Matplotlib's SVG as an element of a page: no prolog, no metadata, no ids but those referred to, CSS colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1))
    for name, colour in STAND_INS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.strip()


def tallness(svg: str) -> float:
    """Height of a picture over its width."""
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups()
    return float(height) / float(width)


def shorten(name: str, length: int) -> str:
    """A name in one line; the middle of one that is too long is left out, since such names differ at either end."""
    name = " ".join(name.split())
    if width(name) <= length:
        return name
    end = length // 2
    return f"{_start(name, length - end - 1).rstrip()}…{_start(name[::-1], end)[::-1].lstrip()}"


def _start(name, length):
    """The start of a name, no wider than `length` letters."""
    widths = itertools.accumulate(map(width, name))
    return name[: sum(taken <= length for taken in widths)]


def width(name: str) -> int:
    """Width of a name in letters; a Chinese, Japanese or Korean character is as wide as two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in name)
