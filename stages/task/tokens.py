"""From rows to tokens: the base's tokenizer, the template, the cut of what is too long."""

import bisect
import re
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stages.runtime.errors import UserError
from stages.runtime.params import COLUMN
from stages.sources.fetch import model_folder
from stages.task.task import text_names

AT_ONCE = 1000  # rows
TOKENS = pa.list_(pa.int32())


def load_tokenizer(manifest: dict, **settings: object) -> PreTrainedTokenizerBase:
    """The base's tokenizer, padding on the right, with eos where it has no pad token (phi-2 has none).

    Args:
        manifest: what `download` wrote.
        settings: further arguments of `from_pretrained`; they are saved with it, as a later change is not.
    """
    folder = model_folder(manifest)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right", **settings)
    except Exception as error:  # the loaders raise a dozen kinds
        raise UserError(f"model.name: {manifest['name']}: no usable tokenizer ({str(error).strip()})") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"model.name: {manifest['name']}: its tokenizer has neither a pad token nor an eos token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenize(
    rows: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_length: int,
    progress: Callable[[int], object] = lambda rows: None,
) -> pd.DataFrame:
    """Add the columns `input_ids` (list of int, at most `max_length`) and `truncated` (bool): `read`, as a table.

    The tokens stay in arrow, 4 bytes each: as Python's numbers those of all of SNLI would fill 0.7 GB.

    Args:
        progress: told how many rows are done since it was told last.
    """
    encoded, truncated = [], []
    for start in range(0, len(rows), AT_ONCE):
        _, ids, cut = read(rows[start : start + AT_ONCE], tokenizer, template, max_length)
        encoded.append(pa.array(ids, TOKENS))
        truncated += cut
        progress(len(ids))
    ids = pd.arrays.ArrowExtensionArray(pa.chunked_array(encoded, TOKENS))
    return rows.assign(input_ids=ids, truncated=np.array(truncated, dtype=bool))


def read(
    rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, template: str, max_length: int
) -> tuple[list[str], list[list[int]], list[bool]]:
    """Put each row into the template, and make tokens of it.

    Of over-long texts the longest loses its end first, never the template's end: the model reads its class from the
    last token.

    Args:
        rows: has the columns that the template reads, under this project's names for them (`text_names`).

    Returns:
        (texts that the model reads, their tokens, at most `max_length`, whether a text was cut)
    """
    names = columns_of(template)

    def encode(texts):  # a special token's name in a text is text
        return tokenizer(texts, split_special_tokens=True)["input_ids"] if texts else []

    columns = [rows[name].tolist() for name in text_names(names)]
    parts = [dict(zip(names, texts, strict=True)) for texts in zip(*columns, strict=True)]
    texts = [fill(template, part) for part in parts]
    encoded = []
    for start in range(0, len(texts), AT_ONCE):
        encoded += encode(texts[start : start + AT_ONCE])
    truncated = [len(ids) > max_length for ids in encoded]
    for i in np.flatnonzero(truncated):

        def cut(characters, part=parts[i]):
            return fill(template, {name: text[:characters] for name, text in part.items()})

        longest = min(max(map(len, parts[i].values())), 64 * max_length)
        fits = bisect.bisect_right(range(longest + 1), max_length, key=lambda n: len(encode([cut(n)])[0])) - 1
        if fits < 0:
            raise UserError(f"params.yaml: tokenize.max_length: {max_length} is less than the template alone")
        texts[i] = cut(fits)
        encoded[i] = encode([texts[i]])[0]
    return texts, encoded, truncated


def columns_of(template: str) -> tuple[str, ...]:
    """The columns that a template reads, each once, in its order."""
    return tuple(dict.fromkeys(re.findall(COLUMN, template)))


def fill(template: str, texts: dict[str, str]) -> str:
    """The text that the model reads. Not str.format: braces in a text are text."""
    return re.sub(COLUMN, lambda column: texts[column[1]], template)
