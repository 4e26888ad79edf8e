"""From rows to tokens: the base's tokenizer, the template, the cut of what is too long."""

import copy
import re
import secrets
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import takewhile

import numpy as np
import pandas as pd
import pyarrow as pa
from tokenizers import AddedToken, Encoding
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stages.data.task import name_text_columns
from stages.runtime.errors import UserError
from stages.runtime.params import PLACEHOLDER
from stages.sources.fetch import find_model_folder

AT_ONCE = 1000  # rows
NEAR = 64  # characters around a cut that are tried one by one
TOKENS = pa.list_(pa.int32())


def load_tokenizer(manifest: dict, **settings: object) -> PreTrainedTokenizerBase:
    """The base's tokenizer, padding on the right, with eos where it has no pad token (phi-2 has none).

    Args:
        manifest: what `download` wrote.
        settings: further arguments of `from_pretrained`; they are saved with it, as a later change is not.
    """
    folder = find_model_folder(manifest)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right", **settings)
    except Exception as error:  # the loaders raise a dozen kinds
        raise UserError(f"model.name: {manifest['name']}: no usable tokenizer ({str(error).strip()})") from error
    if not tokenizer.is_fast:  # cutting a text needs its tokens' places in it
        raise UserError(
            f"model.name: {manifest['name']}: no tokenizer.json, and transformers can't convert its tokenizer; "
            "choose a model that has one"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"model.name: {manifest['name']}: its tokenizer has neither a pad token nor an eos token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_configured_tokenizer(manifest: dict, template: str, **settings: object) -> PreTrainedTokenizerBase:
    """The base's tokenizer, configured to make the tokens of `encode_rows` and saved with these settings.

    If the template has special tokens, this is true of texts that are `is_unambiguous`.

    Args:
        manifest, settings: as `load_tokenizer` takes them.
    """
    tokenizer = load_tokenizer(manifest, split_special_tokens=True, **settings)
    encoder = get_encoder(tokenizer, template)
    if not encoder.special:
        return tokenizer
    adds = {} if encoder.adds else {"add_bos_token": False, "add_eos_token": False}
    return load_tokenizer(manifest, split_special_tokens=False, **adds, **settings)


def is_unambiguous(text: str, tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether all special tokens that a text in the template names are the template's own.

    If the template has none, no name is read as a token.
    """
    if not get_encoder(tokenizer, template).special:
        return True
    return all(text.count(name) == template.count(name) for name in special_tokens(tokenizer))


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, AddedToken]:
    """{name: token}, of all that are not spelled out unless `split_special_tokens` is set."""
    return {token.content: token for token in tokenizer.added_tokens_decoder.values() if token.special}


def describe_special_tokens(tokenizer: PreTrainedTokenizerBase, template: str, model: str) -> list[str]:
    """Lines for the user: the template's special tokens, and what looks like one and is none."""
    special = dict.fromkeys(get_encoder(tokenizer, template).special)
    lines = [f"tokenize.template: read as special tokens: {', '.join(special)}"] if special else []
    alike = dict.fromkeys(re.findall(r"<\|[^|<>{}\s]+\|>", template))
    if spelled := [name for name in alike if name not in tokenizer.added_tokens_encoder]:
        lines.append(f"tokenize.template: read as text, since {model} has no such token: {', '.join(spelled)}")
    return lines


def tokenize_rows(
    rows: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    max_length: int,
    progress: Callable[[int], object] = lambda rows: None,
) -> pd.DataFrame:
    """Add the columns `input_ids` (list of int, at most `max_length`) and `truncated` (bool) to a table.

    The tokens stay in arrow, 4 bytes each: as Python's numbers those of all of SNLI would fill 0.7 GB.

    Args:
        progress: told how many rows are done since it was told last.
    """
    encoded, truncated = [], []
    for start in range(0, len(rows), AT_ONCE):
        _, ids, cut = encode_rows(rows[start : start + AT_ONCE], tokenizer, template, max_length)
        encoded.append(pa.array(ids, TOKENS))
        truncated += cut
        progress(len(ids))
    ids = pd.arrays.ArrowExtensionArray(pa.chunked_array(encoded, TOKENS))
    return rows.assign(input_ids=ids, truncated=np.array(truncated, dtype=bool))


def encode_rows(
    rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, template: str, max_length: int
) -> tuple[list[str], list[list[int]], list[bool]]:
    """Put each row into the template, and make tokens of it.

    If a row is too long, the end of its longest text is cut first, never the template's end: the model reads its class
    from the last token.

    Args:
        rows: has the columns that the template reads, under this project's names for them (`name_text_columns`).

    Returns:
        (texts that the model reads, their tokens, at most `max_length`, whether a text was cut)
    """
    names, encoder = parse_columns(template), get_encoder(tokenizer, template)
    columns = [rows[name].tolist() for name in name_text_columns(names)]
    parts = [dict(zip(names, texts, strict=True)) for texts in zip(*columns, strict=True)]
    encoded, truncated = [], []
    for start in range(0, len(parts), AT_ONCE):
        rows, encodings = encoder.encode_with_offsets(parts[start : start + AT_ONCE])
        for i, (ids, encoding) in enumerate(zip(rows, encodings, strict=True), start):
            truncated.append(len(ids) > max_length)
            if truncated[-1]:
                parts[i], ids = truncate_row(parts[i], encoder.costs(parts[i], encoding.offsets), encoder, max_length)
            encoded.append(ids)
    encoder.check_ends(encoded)
    return [fill_template(template, part) for part in parts], encoded, truncated


class TemplateEncoder:
    """Rows to tokens by a template: a special token's name is a token in the template, and text in a row's texts.

    The template's special tokens are renamed, in a copy of the tokenizer too, to names that no text has. Whatever else
    the tokenizer does at a special token, such as taking away the space next to it, it does as ever.

    Attributes:
        special: names of the template's special tokens, in its order.
        adds: whether the tokenizer adds the tokens that it adds by itself, such as BOS. It does not where the template
            begins with the first of them, or, if they are all at the end, ends with the last.
        end: how many it adds at the end.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self.tokenizer, self.template = tokenizer, template
        known = special_tokens(tokenizer)
        place = re.compile("|".join([PLACEHOLDER, *map(re.escape, sorted(known, key=len, reverse=True))]))
        self.special = [found[0] for found in place.finditer(template) if found[0] in known]
        added = tokenizer("a", return_special_tokens_mask=True)
        mask, names = added["special_tokens_mask"], tokenizer.convert_ids_to_tokens(added["input_ids"])
        has = template.startswith(names[0]) if mask[0] else template.endswith(names[-1]) if mask[-1] else False
        self.adds = not (self.special and has)
        self.end = len([*takewhile(bool, mask[::-1])]) if self.adds else 0
        self.ids = {}
        if self.special:
            unknown = secrets.token_hex(16)
            # As before, the characters next to its neighbours are those of its name.
            renamed = {name: f"{name}{unknown}{name}" for name in self.special}
            self.template = place.sub(lambda found: renamed.get(found[0], found[0]), template)
            self.tokenizer = copy.deepcopy(tokenizer)
            for name, other in renamed.items():
                flags = {key: getattr(known[name], key) for key in ("single_word", "lstrip", "rstrip", "normalized")}
                self.tokenizer.add_tokens([AddedToken(other, special=False, **flags)])
            to_id = tokenizer.convert_tokens_to_ids
            self.ids = {self.tokenizer.convert_tokens_to_ids(other): to_id(name) for name, other in renamed.items()}

    def encode(self, parts: Sequence[dict[str, str]]) -> list[list[int]]:
        """The tokens of rows, each {column: text}."""
        return self.encode_with_offsets(parts)[0]

    def encode_with_offsets(self, parts: Sequence[dict[str, str]]) -> tuple[list[list[int]], list[Encoding]]:
        """The same, and each row's encoding, whose `offsets` are those in `template` filled."""
        texts = [fill_template(self.template, part) for part in parts]
        batch = self.tokenizer(texts, split_special_tokens=True, add_special_tokens=self.adds)
        rows = batch["input_ids"]
        if self.special:
            rows = [[self.ids.get(token, token) for token in self._checked(row)] for row in rows]
        return rows, batch.encodings

    def _checked(self, row):
        if sum(map(row.count, self.ids)) != len(self.special):
            raise UserError(
                "params.yaml: tokenize.template: the tokenizer does not read each of "
                f"{', '.join(dict.fromkeys(self.special))} as a token there; allowed: a space or a line break around it"
            )
        return row

    def check_ends(self, rows: Sequence[list[int]]) -> None:
        """Refuse rows in which the template ends with the pad token: the classifier reads the token before it."""
        pad = self.tokenizer.pad_token
        if pad in self.special and any(row[-1 - self.end] == self.tokenizer.pad_token_id for row in rows):
            raise UserError(
                f"params.yaml: tokenize.template: a row ends with {pad}, which also pads rows, and the class is read "
                "from the last token that is not padding; allowed at the end: text, or another special token"
            )

    def costs(self, part: dict[str, str], offsets: list[tuple[int, int]]) -> np.ndarray:
        """From how many characters of each text on a token is needed, ascending: int [tokens], 0 for the template's.

        Args:
            offsets: of the row's tokens.
        """
        places, shift = [], 0  # of the texts in the row
        for column in re.finditer(PLACEHOLDER, self.template):
            start, length = column.start() + shift, len(part[column[1]])
            places.append((start, start + length))
            shift += length - len(column[0])
        starts, ends = np.array(offsets).T
        needed = np.zeros(len(offsets), dtype=int)
        for start, end in places:
            inside = (starts < end) & (ends > start)
            needed[inside] = np.maximum(starts[inside] - start, 0) + 1
        return np.sort(needed)


get_encoder = lru_cache(maxsize=2)(TemplateEncoder)  # a copy of a tokenizer takes 0.3 s and more


def truncate_row(
    part: dict[str, str], needed: np.ndarray, encoder: TemplateEncoder, max_length: int
) -> tuple[dict[str, str], list[int]]:
    """Cut a row's texts to as many characters each as fit -> (texts, tokens).

    The offsets of the whole row tell how many characters should fit. A cut text can become other tokens at its end,
    more or fewer. So fewer characters are tried until they fit, and then those of up to three tokens more; these are
    counted near the cut alone, and the best of them is encoded whole.

    Args:
        needed: the row's `TemplateEncoder.costs`.
    """

    def cut(end, start=0):
        return {name: text[start:end] for name, text in part.items()}

    def characters(tokens):
        return max(needed[tokens].item() - 1, 0) if tokens < len(needed) else max(map(len, part.values()))

    tokens, end = max_length, characters(max_length)
    while len(ids := encoder.encode([cut(end)])[0]) > max_length:
        if end == 0:
            raise UserError(f"params.yaml: tokenize.max_length: {max_length} is less than the template alone")
        tokens = max(tokens - (len(ids) - max_length), 0)
        end = min(characters(tokens), end - 1)
    ends = range(end, min(characters(max_length + 3), end + NEAR) + 1)
    near = [len(row) for row in encoder.encode([cut(other, max(end - NEAR, 0)) for other in ends])]
    for other, size in sorted(zip(ends, near, strict=True), reverse=True):
        if other > end and len(ids) + size - near[0] <= max_length:
            more = encoder.encode([cut(other)])[0]
            if len(more) <= max_length:
                return cut(other), more
    return cut(end), ids


def parse_columns(template: str) -> tuple[str, ...]:
    """The columns that a template reads, each once, in its order."""
    return tuple(dict.fromkeys(re.findall(PLACEHOLDER, template)))


def fill_template(template: str, texts: dict[str, str]) -> str:
    """The text that the model reads. Not str.format: braces in a text are text."""
    return re.sub(PLACEHOLDER, lambda column: texts[column[1]], template)
