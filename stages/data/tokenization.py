"""From rows to tokens: load the base model's tokenizer, fill the template, truncate texts that are too long."""

import copy
import re
import secrets
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from tokenizers import AddedToken, Encoding
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stages.data.chat import ends_as_chat
from stages.data.task import fill_template, name_text_columns, parse_columns
from stages.runtime.errors import UserError
from stages.runtime.params import PLACEHOLDER
from stages.sources.fetch import find_model_folder

CHUNK = 1000  # rows that are encoded in one call
SEARCH_WINDOW = 64  # characters: `truncate_row` tries each end up to this far behind its first cut
TOKENS = pa.list_(pa.int32())


def load_tokenizer(manifest: dict, **settings: Any) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer, with padding on the right. If it has no pad token (like phi-2), eos pads.

    Args:
        manifest: what `download` wrote.
        settings: further arguments of `from_pretrained`. They are saved with the tokenizer, unlike later changes to it.
    """
    folder = find_model_folder(manifest)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right", **settings)
    except Exception as error:  # the loaders raise a dozen kinds
        raise UserError(f"model: {manifest['name']}: no usable tokenizer ({str(error).strip()})") from error
    if not tokenizer.is_fast:  # truncating a text needs the offsets of its tokens
        raise UserError(
            f"model: {manifest['name']}: no tokenizer.json, and transformers can't convert its tokenizer; "
            "choose a model that has one"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"model: {manifest['name']}: its tokenizer has neither a pad token nor an eos token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_configured_tokenizer(manifest: dict, template: str, **settings: Any) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer, configured so that `tokenizer(text)` makes the tokens of `encode_rows`.

    The configuration is saved with the tokenizer. If the template has special tokens, the tokens are only equal for
    texts that are `is_unambiguous`.

    Args:
        manifest, settings: as for `load_tokenizer`.
    """
    tokenizer = load_tokenizer(manifest, split_special_tokens=True, **settings)
    encoder = get_encoder(tokenizer, template)
    added = {} if encoder.adds_special_tokens else {"add_bos_token": False, "add_eos_token": False}
    if not encoder.special_tokens and not added:
        return tokenizer
    return load_tokenizer(manifest, split_special_tokens=not encoder.special_tokens, **added, **settings)


def is_unambiguous(text: str, tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether all names of special tokens in a filled template come from the template.

    If the template has no special token, the tokenizer reads every name as text, and all texts are unambiguous.
    """
    if not get_encoder(tokenizer, template).special_tokens:
        return True
    return all(text.count(name) == template.count(name) for name in special_tokens(tokenizer))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, AddedToken]:
    """{name: token} of all tokens that become text with `split_special_tokens`."""
    return {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}


def describe_special_tokens(tokenizer: PreTrainedTokenizerBase, template: str, model: str) -> list[str]:
    """Lines for the user: the template's special tokens, and the text in it that only looks like a special token."""
    names = dict.fromkeys(get_encoder(tokenizer, template).special_tokens)
    lines = [f"tokenize.template: read as special tokens: {', '.join(names)}"] if names else []
    candidates = dict.fromkeys(re.findall(r"<\|[^|<>{}\s]+\|>", template))
    if unknown := [name for name in candidates if name not in tokenizer.added_tokens_encoder]:
        lines.append(f"tokenize.template: read as text, since {model} has no such token: {', '.join(unknown)}")
    return lines


def tokenize_rows(
    rows: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_length: int,
    report_progress: Callable[[int], object] = lambda rows: None,
) -> pd.DataFrame:
    """Add to a table: `input_ids` (list of int, at most `max_length`), `truncated` (bool) and `full_length` (int).

    `full_length` is the number of tokens before truncation.
    The tokens are stored in Arrow, 4 bytes each. As Python integers, the tokens of all of SNLI would take 0.7 GB.

    Args:
        report_progress: called with the number of rows that were tokenized since the last call.
    """
    chunks: list[pa.Array] = []
    full_lengths: list[int] = []
    for start in range(0, len(rows), CHUNK):
        _, ids, lengths = encode_rows(rows[start : start + CHUNK], tokenizer, template, max_length)
        chunks.append(pa.array(ids, TOKENS))
        full_lengths += lengths
        report_progress(len(ids))
    input_ids = pd.arrays.ArrowExtensionArray(pa.chunked_array(chunks, TOKENS))
    full_length = np.array(full_lengths, dtype=int)
    return rows.assign(input_ids=input_ids, truncated=full_length > max_length, full_length=full_length)


def encode_rows(
    rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, template: str, max_length: int
) -> tuple[list[str], list[list[int]], list[int]]:
    """Fill the template with each row, and tokenize it.

    If a row is too long, the end of its longest text is truncated first. The template's end is never truncated: the
    model reads the class from the last token.

    Args:
        rows: has the template's columns, under the names of `name_text_columns`.

    Returns:
        (filled templates, their tokens, at most `max_length`, numbers of tokens before truncation)
    """
    names, encoder = parse_columns(template), get_encoder(tokenizer, template)
    columns = [rows[name].tolist() for name in name_text_columns(names)]
    texts = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    encoded: list[list[int]] = []
    full_lengths: list[int] = []
    for start in range(0, len(texts), CHUNK):
        chunk, encodings = encoder.encode_with_offsets(texts[start : start + CHUNK])
        for i, (ids, encoding) in enumerate(zip(chunk, encodings, strict=True), start):
            full_lengths.append(len(ids))
            if len(ids) > max_length:
                needed = encoder.count_needed_characters(texts[i], encoding.offsets)
                texts[i], ids = truncate_row(texts[i], needed, encoder, max_length)
            encoded.append(ids)
    encoder.check_ends(encoded)
    return [fill_template(template, row) for row in texts], encoded, full_lengths


class TemplateEncoder:
    """Fills a template and tokenizes it.

    The name of a special token is read as the token in the template, but as text in the texts of a row. To distinguish
    the two, the template and a copy of the tokenizer use new names, which no text has. The copy treats them like the
    original names: for example, it removes the space next to a token if the original does.

    Attributes:
        special_tokens: names of the template's special tokens, in its order.
        adds_special_tokens: whether the tokenizer adds its own special tokens, such as BOS. It does not if the template
            already begins with the first of them, or, if all are at the end, ends with the last of them. It adds none
            to the model's chat template either: `apply_chat_template` does not.
        added_at_end: how many special tokens the tokenizer adds at the end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self.tokenizer, self.template = tokenizer, template
        special = special_tokens(tokenizer)
        names = sorted(special, key=len, reverse=True)
        pattern = re.compile("|".join([PLACEHOLDER, *map(re.escape, names)]))
        self.special_tokens = [match[0] for match in pattern.finditer(template) if match[0] in special]

        sample = tokenizer("a", return_special_tokens_mask=True)
        is_special, tokens = sample["special_tokens_mask"], tokenizer.convert_ids_to_tokens(sample["input_ids"])
        if is_special[0]:
            in_template = template.startswith(tokens[0])
        else:
            in_template = bool(is_special[-1]) and template.endswith(tokens[-1])
        in_template = bool(self.special_tokens) and in_template
        self.adds_special_tokens = not (in_template or (any(is_special) and ends_as_chat(tokenizer, template)))
        self.added_at_end = len([*takewhile(bool, is_special[::-1])]) if self.adds_special_tokens else 0

        self.original_ids: dict[int, int] = {}  # {id of a renamed token in the copy: its id in the tokenizer}
        if self.special_tokens:
            random = secrets.token_hex(16)
            # Begins and ends with the original name, so the characters next to a neighbouring text are as before.
            renamed = {name: f"{name}{random}{name}" for name in self.special_tokens}
            self.template = pattern.sub(lambda match: renamed.get(match[0], match[0]), template)
            self.tokenizer = copy.deepcopy(tokenizer)
            for name, new_name in renamed.items():
                flags = {key: getattr(special[name], key) for key in ("single_word", "lstrip", "rstrip", "normalized")}
                self.tokenizer.add_tokens([AddedToken(new_name, special=False, **flags)])
                new_id = self.tokenizer.added_tokens_encoder[new_name]
                self.original_ids[new_id] = tokenizer.added_tokens_encoder[name]

    def encode(self, rows: Sequence[dict[str, str]]) -> list[list[int]]:
        """The tokens of rows, each {column: text}."""
        return self.encode_with_offsets(rows)[0]

    def encode_with_offsets(self, rows: Sequence[dict[str, str]]) -> tuple[list[list[int]], list[Encoding]]:
        """The tokens of rows, and their encodings, whose offsets refer to `self.template` when it is filled."""
        texts = [fill_template(self.template, row) for row in rows]
        batch = self.tokenizer(texts, split_special_tokens=True, add_special_tokens=self.adds_special_tokens)
        ids = batch["input_ids"]
        if self.special_tokens:
            ids = [self._restore_ids(row) for row in ids]
        return ids, batch.encodings

    def _restore_ids(self, ids: list[int]) -> list[int]:
        """Replace renamed tokens by the original ones. All of them must be in the row."""
        if sum(map(ids.count, self.original_ids)) != len(self.special_tokens):
            raise UserError(
                "params.yaml: tokenize.template: the tokenizer does not read each of "
                f"{', '.join(dict.fromkeys(self.special_tokens))} as a token there; "
                "allowed: a space or a line break around it"
            )
        return [self.original_ids.get(token, token) for token in ids]

    def check_ends(self, rows: Sequence[list[int]]) -> None:
        """Reject rows in which the template ends with the pad token: the classifier would read the token before it."""
        pad = self.tokenizer.pad_token
        last = -1 - self.added_at_end
        if pad in self.special_tokens and any(row[last] == self.tokenizer.pad_token_id for row in rows):
            raise UserError(
                f"params.yaml: tokenize.template: a row ends with {pad}, which also pads rows, and the class is read "
                "from the last token that is not padding; allowed at the end: text, or another special token"
            )

    def count_needed_characters(self, row: dict[str, str], offsets: list[tuple[int, int]]) -> np.ndarray:
        """For each token, the shortest length to which texts can be cut and still need the token.

        A text needs a token if the cut text includes the token's first character. The template always needs its own
        tokens.

        Args:
            offsets: of the row's tokens.

        Returns:
            int [tokens], ascending, 0 for the template's tokens.
        """
        spans, shift = [], 0  # spans of the texts in the filled template
        for placeholder in re.finditer(PLACEHOLDER, self.template):
            start, length = placeholder.start() + shift, len(row[placeholder[1]])
            spans.append((start, start + length))
            shift += length - len(placeholder[0])
        starts, ends = np.array(offsets).T
        needed = np.zeros(len(offsets), dtype=int)
        for start, end in spans:
            inside = (starts < end) & (ends > start)
            needed[inside] = np.maximum(starts[inside] - start, 0) + 1
        return np.sort(needed)


get_encoder = lru_cache(maxsize=2)(TemplateEncoder)  # copying a tokenizer takes 0.3 s and more


def truncate_row(
    row: dict[str, str], needed: np.ndarray, encoder: TemplateEncoder, max_length: int
) -> tuple[dict[str, str], list[int]]:
    """Truncate all texts of a row to the same number of characters, as many as fit -> (texts, tokens).

    The offsets of the whole row predict this number. A truncated text may end with other tokens, more or fewer, so the
    prediction is corrected in two steps. First, shorter ends are tried until the row fits. Then longer ends are tried,
    up to the prediction for three tokens more. Their tokens are counted only near the cut, and the longest end that
    should fit is encoded whole.

    Args:
        needed: from `TemplateEncoder.count_needed_characters`.
    """

    def cut(end: int, start: int = 0) -> dict[str, str]:
        return {name: text[start:end] for name, text in row.items()}

    def predict_end(tokens: int) -> int:
        return max(needed[tokens].item() - 1, 0) if tokens < len(needed) else max(map(len, row.values()))

    tokens, end = max_length, predict_end(max_length)
    while len(ids := encoder.encode([cut(end)])[0]) > max_length:
        if end == 0:
            raise UserError(
                f"params.yaml: tokenize.max_length: {max_length} is less than the template without texts; "
                "set a larger one, or shorten tokenize.template"
            )
        tokens = max(tokens - (len(ids) - max_length), 0)
        end = min(predict_end(tokens), end - 1)
    longer_ends = range(end, min(predict_end(max_length + 3), end + SEARCH_WINDOW) + 1)
    window_start = max(end - SEARCH_WINDOW, 0)
    counts = [len(window) for window in encoder.encode([cut(other, window_start) for other in longer_ends])]
    for other, count in sorted(zip(longer_ends, counts, strict=True), reverse=True):
        if other > end and len(ids) + count - counts[0] <= max_length:
            longer = encoder.encode([cut(other)])[0]
            if len(longer) <= max_length:
                return cut(other), longer
    return cut(end), ids
