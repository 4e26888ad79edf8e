"""Fonts for what the data's names are written in: Matplotlib's own, and those of the system for what it lacks."""

import dataclasses
from collections.abc import Iterable
from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

DEFAULT_FAMILY = "DejaVu Sans"  # Matplotlib brings it
WEIGHTS = ("normal", "bold")  # of a picture's words
NO_FONT = (0,)
PLACEHOLDER = "□"  # for a character that no font has


@cache
def find_families(text: str) -> tuple[str, ...]:
    """Families of fonts that a text needs: `DEFAULT_FAMILY`, then the fewest of the system, the same on each run."""
    families, paths = (DEFAULT_FAMILY,), None
    while left := _missing(text, families):
        paths = sorted(font_manager.findSystemFonts()) if paths is None else paths
        best = min((_fitness(path, left) for path in paths), default=NO_FONT)
        if best == NO_FONT:
            break
        *_, path = best
        paths.remove(path)
        families += (_register(path),)
    return families


def _fitness(path, characters):
    """What a font file is chosen by, the least first: the more characters it has, the more upright and regular it is;
    its path. `NO_FONT` for one that has none of them, no outlines, or only boxes.
    """
    try:
        font = FT2Font(path)
        found = sum(bool(font.get_char_index(ord(character))) for character in characters)
        if not found or not font.scalable or font.family_name.startswith("Last"):  # LastResort has a box for each
            return NO_FONT
        entry = font_manager.ttfFontProperty(font)
    except (OSError, RuntimeError, KeyError, ValueError):
        return NO_FONT
    return (-found, entry.style != "normal", abs(entry.weight - 400), path)


def _register(path):
    """Let Matplotlib use a font file for both weights, where it has no other of the family -> the family."""
    entry, known = font_manager.ttfFontProperty(FT2Font(path)), font_manager.fontManager.ttflist
    for weight in (400, 700):  # else it logs that it takes the other weight
        if not any((other.name, other.weight, other.style) == (entry.name, weight, "normal") for other in known):
            known.append(dataclasses.replace(entry, weight=weight, style="normal"))
    font_manager.fontManager._findfont_cached.cache_clear()
    return entry.name


def can_draw(names: Iterable[str]) -> bool:
    """Whether there is a font for each character of the names."""
    text = "".join(names)
    return not _missing(text, find_families(text))


def replace_undrawable(text: str) -> str:
    """A text with `PLACEHOLDER` for each character that no font has."""
    missing = _missing(text, find_families(text))
    return "".join(PLACEHOLDER if character in missing else character for character in text)


def _missing(text, families):
    """Characters that the families lack in one of the weights."""
    return {
        character
        for character in set(text)
        if not character.isspace()
        and not all(any(ord(character) in _characters(family, weight) for family in families) for weight in WEIGHTS)
    }


@cache
def _characters(family, weight):
    wanted = font_manager.FontProperties(family=family, weight=weight)
    return frozenset(font_manager.get_font(font_manager.findfont(wanted)).get_charmap())
