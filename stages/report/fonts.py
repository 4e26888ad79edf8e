"""Find fonts for the names in the data: Matplotlib's own, and the system's for characters that Matplotlib's lacks."""

import dataclasses
from collections.abc import Iterable
from functools import cache

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

DEFAULT_FAMILY = "DejaVu Sans"  # comes with Matplotlib
WEIGHTS = ("normal", "bold")  # those that the pictures use
PLACEHOLDER = "□"  # for a character that no font has


@cache
def find_families(text: str) -> tuple[str, ...]:
    """The font families that a text needs: `DEFAULT_FAMILY`, then as few of the system's as possible.

    They are the same in every run.
    """
    families: tuple[str, ...] = (DEFAULT_FAMILY,)
    paths: list[str] | None = None
    while missing := _missing_characters(text, families):
        paths = sorted(font_manager.findSystemFonts()) if paths is None else paths
        ranked = [(sort_key, path) for path in paths if (sort_key := _font_sort_key(path, missing))]
        if not ranked:
            break
        _, path = min(ranked)
        paths.remove(path)
        families += (_register_font(path),)
    return families


def _font_sort_key(path: str, characters: set[str]) -> tuple[int, bool, int] | None:
    """A key that is smaller for fonts with more of the characters, then for upright and for regular ones.

    None: the font has none of them, no outlines, or only boxes.
    """
    try:
        font = FT2Font(path)
        count = sum(bool(font.get_char_index(ord(character))) for character in characters)
        if not count or not font.scalable or font.family_name.startswith("Last"):  # LastResort draws boxes
            return None
        entry = font_manager.ttfFontProperty(font)
    except (OSError, RuntimeError, KeyError, ValueError):
        return None
    return -count, entry.style != "normal", abs(int(entry.weight) - 400)


def _register_font(path: str) -> str:
    """Register a font file for each of both weights that Matplotlib lacks in its family; return the family."""
    entry, fonts = font_manager.ttfFontProperty(FT2Font(path)), font_manager.fontManager.ttflist
    for weight in (400, 700):  # if one is missing, Matplotlib logs that it uses the other
        if not any((other.name, other.weight, other.style) == (entry.name, weight, "normal") for other in fonts):
            fonts.append(dataclasses.replace(entry, weight=weight, style="normal"))
    font_manager.fontManager._findfont_cached.cache_clear()  # type: ignore[attr-defined]  # private
    return entry.name


def can_draw(names: Iterable[str]) -> bool:
    """Whether there is a font for every character of the names."""
    text = "".join(names)
    return not _missing_characters(text, find_families(text))


def replace_undrawable(text: str) -> str:
    """Replace each character that no font has by `PLACEHOLDER`."""
    missing = _missing_characters(text, find_families(text))
    return "".join(PLACEHOLDER if character in missing else character for character in text)


def _missing_characters(text: str, families: Iterable[str]) -> set[str]:
    """Characters that the families lack in at least one of the weights."""
    return {
        character
        for character in set(text)
        if not character.isspace()
        and not all(any(ord(character) in _characters(family, weight) for family in families) for weight in WEIGHTS)
    }


@cache
def _characters(family: str, weight: str) -> frozenset[int]:
    properties = font_manager.FontProperties(family=family, weight=weight)
    return frozenset(font_manager.get_font(font_manager.findfont(properties)).get_charmap())
