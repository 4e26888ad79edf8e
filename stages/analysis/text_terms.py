"""The words of a text, in any script. Without spaces between words, each character counts as a word."""

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
    """Lower-case words of a text, in order; in a script without spaces, its characters."""
    return _WORD.findall(text.lower())


def terms(text: str) -> list[str]:
    """The terms of a bag of words: words, punctuation marks, and pairs of neighbours.

    In a script without spaces the terms are all runs of one to three characters. Real words would need a dictionary
    for each language. With 3,000 training rows, runs of up to 2, 3 and 4 characters had an accuracy of 81.0, 81.3 and
    80.6% on Chinese reviews, and of 67.1, 69.3 and 69.1% on Thai posts. Words between spaces had 57.3 and 63.4%.
    """
    pieces = [(piece, bool(_UNSPACED_START.match(piece))) for piece in _TERM.findall(text.lower())]
    spaced = [piece for piece, unspaced in pieces if not unspaced]
    pairs = [
        f"{first} {second}"
        for (first, unspaced), (second, second_unspaced) in itertools.pairwise(pieces)
        if not (unspaced or second_unspaced)
    ]
    runs = [
        piece[start : start + length]
        for piece, unspaced in pieces
        if unspaced
        for length in range(1, LONGEST_RUN + 1)
        for start in range(len(piece) - length + 1)
    ]
    return spaced + pairs + runs


def lengths(texts: pd.DataFrame) -> pd.DataFrame:
    """Length of each text, int [rows, columns]; `length_column` names the columns.

    The unit is words. It is characters if most words of a column are single characters of a script without spaces.
    """
    table = {}
    for column in texts:
        split_texts = [words(text) for text in texts[column]]
        unspaced = sum(bool(_UNSPACED_START.match(word)) for text in split_texts for word in text)
        if 2 * unspaced > sum(map(len, split_texts)):
            table[length_column("characters", column)] = [len("".join(text.split())) for text in texts[column]]
        else:
            table[length_column("words", column)] = list(map(len, split_texts))
    return pd.DataFrame(table, index=texts.index)


def length_column(unit: str, column: str) -> str:
    """The case table's column for the length of a text column; unit: "words" or "characters"."""
    return f"{unit}_{column}"
