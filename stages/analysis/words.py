"""Words of a text, in any script: where a script puts no space between words, its characters."""

import itertools
import re

import pandas as pd

# Thai and Lao, Myanmar, Khmer, Kana and Bopomofo, Han. Korean has spaces.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f\u1780-\u17ff"
    "\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
)
_LETTER = rf"[^\W{_UNSPACED}]"  # of a script with spaces
_WORD = re.compile(rf"[{_UNSPACED}]|{_LETTER}+(?:['’]{_LETTER}+)*")
_TERM = re.compile(rf"[{_UNSPACED}]+|{_LETTER}+|[^\w\s]")
_UNSPACED_START = re.compile(f"[{_UNSPACED}]")
LONGEST_RUN = 3  # characters


def words(text: str) -> list[str]:
    """Lower-case words of a text, in order; of a script without spaces each character."""
    return _WORD.findall(text.lower())


def terms(text: str) -> list[str]:
    """What a bag of words counts: words and marks, pairs of neighbours, and of a script without spaces all runs of one
    to three characters.

    Words cut by a dictionary would need one for each language. Of 3,000 training rows, runs of up to 2, 3 and 4
    characters had an accuracy of 81.0, 81.3 and 80.6% on Chinese reviews, of 67.1, 69.3 and 69.1% on Thai posts; words
    between spaces had 57.3 and 63.4%.
    """
    pieces = [(piece, bool(_UNSPACED_START.match(piece))) for piece in _TERM.findall(text.lower())]
    found = [piece for piece, unspaced in pieces if not unspaced]
    found += [
        f"{first} {second}"
        for (first, unspaced), (second, also) in itertools.pairwise(pieces)
        if not (unspaced or also)
    ]
    for piece, unspaced in pieces:
        if unspaced:
            found += [
                piece[start : start + length]
                for length in range(1, LONGEST_RUN + 1)
                for start in range(len(piece) - length + 1)
            ]
    return found


def lengths(texts: pd.DataFrame) -> pd.DataFrame:
    """Length of each text, int [rows, columns], as `length_column` names it: in words, or in characters where most
    words of a column are single characters of a script without spaces.
    """
    found = {}
    for column in texts:
        counted = [words(text) for text in texts[column]]
        unspaced = sum(bool(_UNSPACED_START.match(word)) for text in counted for word in text)
        if 2 * unspaced > sum(map(len, counted)):
            found[length_column("characters", column)] = [len("".join(text.split())) for text in texts[column]]
        else:
            found[length_column("words", column)] = list(map(len, counted))
    return pd.DataFrame(found, index=texts.index)


def length_column(unit: str, column: str) -> str:
    """The column of the case table that holds the length of one text column in a unit, "words" or "characters"."""
    return f"{unit}_{column}"
