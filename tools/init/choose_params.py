"""Choose the keys of params.yaml by looking at a model and a data set. `tools.init` uses it."""

import contextlib
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from stages.data.assign_splits import assign_splits
from stages.data.chat import apply_chat
from stages.data.dataset import prepare_rows
from stages.data.label_column import (
    INTEGER,
    NUMBER,
    UNLABELLED_MARKS,
    LabelColumn,
    encode_labels,
    resolve_classes,
)
from stages.data.max_length import read_positions
from stages.data.task import SPLITS, Task
from stages.data.tokenization import CHUNK, get_encoder
from stages.runtime.errors import UserError
from stages.runtime.params import FROM_HUB, MAX_CLASSES, Model
from stages.sources import hub
from stages.sources.fetch import choose_folder_value, fetch, find_model_folder
from stages.sources.manifest import PATTERNS
from tools.init.columns import Columns, list_some, make_template
from tools.init.params_file import Draft
from tools.init.read_tables import HOLDOUT_SIZES

MAX_LENGTH = 8192  # the highest that params.yaml allows
MIN_LENGTH = 128  # tokens: later texts may be longer than these, and without padding a higher limit costs nothing
MISSING = ("nan", "none", "null", "na", "n/a", "?", "unknown")  # how other programs write a missing value
ALIKE = 0.85  # difflib's ratio of two names of which one may be a typo; of biling and billing: 0.92
OFTEN, RARER = 5, 20  # a typo's class has at least 5 rows, and 20 times those of the typo
EVEN = 0.4  # share of the rarer of two classes from which they count as equally frequent


def choose_source(draft: Draft, section: str, given: str) -> None:
    """Set where the model or the data is: a path, or a name on the hub with its present commit."""
    path, on_hub = Path(given), False
    if not path.exists():
        on_hub = hub.NAME.fullmatch(given) is not None
        if not on_hub:
            raise UserError(f"{given}: no such file or folder; allowed: a path, or OWNER/NAME on the Hugging Face hub")
        print(f"{given}: no such path here, so it is read from the hub")
    draft.set(f"{section}.folder", FROM_HUB if on_hub else choose_folder_value(path))
    draft.set(f"{section}.name", given if on_hub else None)
    draft.set(f"{section}.revision", hub.find_present_commit(given, section) if on_hub else None)
    draft.set(f"{section}.digest", None)


def read_model(model: Model) -> dict[str, Any]:
    """The manifest of the model, as `download` writes it. From the hub, all files but the weights are fetched."""
    if model.folder != FROM_HUB:
        with contextlib.redirect_stdout(io.StringIO()):  # the digest that would pin it
            return fetch(model, "model")[1]
    assert model.name is not None and model.revision is not None  # params.py checks it
    folder = hub.download(model.name, model.revision, "model", [p for p in PATTERNS["model"] if "safetensors" not in p])
    files = {path.name: {"size": path.stat().st_size} for path in folder.iterdir() if path.suffix != ".safetensors"}
    return {"name": model.name, "revision": model.revision, "files": files}


def choose_activation(draft: Draft, manifest: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Set `model.hidden_act` for a new model, and reject one that can't become a classifier."""
    from stages.data.labels import SingleLabel
    from stages.model.base import load_classifier_config  # takes 3 s to import, and most runs keep the model

    folder, settings = find_model_folder(manifest), draft.params().model.settings
    comment = "gelu_pytorch_tanh: one kernel for a tanh GELU; null: the model's own"
    for activation in ("gelu_pytorch_tanh", None):
        changed = settings.model_copy(update={"hidden_act": activation})
        try:
            load_classifier_config(folder, manifest, changed, SingleLabel(("0", "1")), tokenizer)
        except UserError:
            if activation is None:
                raise
        else:
            draft.set("model.hidden_act", activation, comment)
            return


def choose_classes(columns: Sequence[LabelColumn], separator: str | None = None) -> tuple[list[str] | None, list[str]]:
    """`data.classes`, and sentences about them; None if the classes of the data are clear.

    Of two classes, the rarer is the last: the report's ROC AUC and best threshold are about it.

    Args:
        columns: the label columns of all splits, one label column or several of 0 and 1.
        separator: `data.separator`.

    Raises:
        UserError: there are too few or too many classes.
    """
    listed: list[str] | None = None
    notes: list[str] = []
    try:
        classes = list(resolve_classes(columns, None))
    except UserError as error:
        classes, notes = list_classes(columns, error)
        listed = classes
    if columns[0].class_names is None:
        notes += describe_spellings(pd.concat([column.values for column in columns]), classes)
    named = columns[0].missing is not None and columns[0].class_names is not None  # as of columns of 0 and 1
    if not named and (missing := [name for name in classes if name.casefold() in MISSING]):
        advice = advise_on_missing(columns[0], separator)
        notes.append(f"{', '.join(missing)} is read as a class; if it means that a row is not labelled, {advice}")
    if len(classes) == 2 and columns[0].missing is None:
        codes = np.concatenate([encode_labels(column, classes) for column in columns])
        counts = np.bincount(codes[codes >= 0], minlength=2)
        if counts[1] > counts[0] and counts[0] < EVEN * counts.sum():
            listed = classes = classes[::-1]
        notes.append(f"ROC AUC and the best threshold are about the last class, {classes[1]}")
    return listed, notes


def advise_on_missing(column: LabelColumn, separator: str | None) -> str:
    """What to write for a row that is not labelled. In a text with a separator, nothing is another case."""
    if column.missing is None:
        return "empty these cells of the data"
    if separator is not None:
        return "write - in these cells; empty them if it means that the row has none of the labels"
    return "write null in place of the list; write an empty list if it means that the row has none of the labels"


def list_classes(columns: Sequence[LabelColumn], error: UserError) -> tuple[list[str], list[str]]:
    """The classes of labels from which `resolve_classes` can't tell them, and sentences that say what was decided."""
    counts = pd.concat([column.values for column in columns]).dropna().value_counts()
    values, notes = set(counts.index), []
    declared = len({(column.class_names, column.unnamed_integers) for column in columns}) > 1 or columns[0].class_names
    others = values - UNLABELLED_MARKS
    numeric = all(map(NUMBER.fullmatch, others))
    marks = values & UNLABELLED_MARKS
    numbers = {float(value) for value in others} if numeric else set()
    if numeric and (min(numbers, default=0) < 0 or numbers <= {0, 1}):  # of -2 to 2, or of -1, 0 and 1
        marks -= {"-1", "-1.0"}
    if kept := values & UNLABELLED_MARKS - marks:
        notes.append(
            f"{min(kept)} is read as a class; if it means that a row is not labelled, remove it from data.classes"
        )
    if marks:
        notes.append(f"rows with {min(marks)} are not labelled, and left out")
    unique: dict[Any, str] = {}  # the most frequent spelling of each name
    for value in (value for value in counts.index if value not in marks):
        unique.setdefault(float(value) if numeric else value.casefold(), value)
    if numeric and all(map(INTEGER.fullmatch, (value.removesuffix(".0") for value in unique.values()))):
        unique = {key: value.removesuffix(".0") for key, value in unique.items()}
    if declared or not 2 <= len(unique) <= min(MAX_CLASSES, max(20, counts.sum() / 2)):
        raise error
    return [unique[key] for key in sorted(unique)], notes


def describe_spellings(values: pd.Series, classes: Sequence[str]) -> Iterator[str]:
    """Which labels are read as a class that is written in another way, and which classes may be typos of others.

    Args:
        values: label of each row.
    """
    counts: dict[str, int] = {}  # rows of each class
    others: dict[str, list[str]] = {}  # {class: its other spellings}
    find = {_simplify(name): name for name in classes}
    for value, count in values.dropna().value_counts().items():
        if name := value if value in classes else find.get(_simplify(value)):
            counts[name] = counts.get(name, 0) + count
            if value != name:
                others.setdefault(name, []).append(f"{value} ({_count_rows(count)})")
    if others:
        read = [f"{list_some(texts)} {_are(texts)} read as {name}" for name, texts in others.items()]
        yield list_some(read)
    typos, of = [], []
    for name in filter(counts.__contains__, classes):
        frequent = [other for other in counts if counts[other] >= max(OFTEN, RARER * counts[name])]
        if re.search(r"\d", name) or not (near := [other for other in frequent if is_near(name, other)]):
            continue
        typos.append(f"{name} ({_count_rows(counts[name])})")
        of.append(f"{near[0]} ({_count_rows(counts[near[0]])})")
    if len(typos) == 1:
        yield f"{typos[0]} is a class of its own; if it is a typo of {of[0]}, correct it in the data"
    elif typos:
        yield (
            f"{list_some(typos)} are classes of their own; if they are typos of {list_some(of)}, correct them in the "
            "data"
        )


def is_near(name: str, other: str) -> bool:
    """Whether a name may be a typo of another: most letters are the same, or two neighbours are exchanged."""
    name, other = name.casefold(), other.casefold()
    if abs(len(name) - len(other)) > 2:
        return False
    differing = [place for place, (a, b) in enumerate(zip(name, other, strict=False)) if a != b]
    if len(name) == len(other) and len(differing) == 2 and differing[1] == differing[0] + 1 and len(name) > 3:
        return name[differing[0]] == other[differing[1]] and name[differing[1]] == other[differing[0]]
    matcher = difflib.SequenceMatcher(None, name, other)
    return matcher.quick_ratio() >= ALIKE and matcher.ratio() >= ALIKE  # the first is fast, and never the lower one


def _simplify(value: str) -> float | str:
    """What labels that are read as one class have in common."""
    return float(value) if NUMBER.fullmatch(value) else value.casefold()


def _are(texts: Sequence[str]) -> str:
    return "is" if len(texts) == 1 else "are"


def _count_rows(rows: int) -> str:
    return f"{rows:,} row{'' if rows == 1 else 's'}"


def set_columns(draft: Draft, columns: Columns) -> None:
    """Set the keys that name columns, and those that were about the rows of other data."""
    draft.set("data.label", columns.label if isinstance(columns.label, str) else list(columns.label))
    draft.set("data.separator", columns.separator)
    draft.set("data.group", columns.group)
    draft.set("data.unlabelled", "drop")
    draft.set("data.classes", None)
    for split in SPLITS:
        sampled = getattr(draft.present.data, f"{split}_rows")  # a comment says what the number means
        draft.set(f"data.{split}_rows", None, "null: all" if sampled else None)
    holdout = draft.params().data.holdout
    held_out = holdout.validation or holdout.test
    draft.set("data.holdout.columns", list(columns.texts) if held_out and not columns.group else None)


def choose_template(draft: Draft, columns: Columns, tokenizer: PreTrainedTokenizerBase, model: str) -> str:
    """Set the template and whether the model's chat template is used -> what the model reads."""
    template = make_template(columns.texts, columns.label)
    draft.set("tokenize.system", None)
    draft.set("tokenize.chat", tokenizer.chat_template is not None)
    if tokenizer.chat_template is not None and template.startswith("{"):
        template = f"Text: {template}"  # many chat templates remove the spaces at a message's start
    draft.set("tokenize.template", template, "each {column} is filled from the row")
    try:
        return apply_chat(tokenizer, draft.params().tokenize, model)
    except UserError as error:
        print(f"tokenize.chat is false: {error}")
        draft.set("tokenize.chat", False)
        return template


def assign(draft: Draft, tables: dict[str, pa.Table], template: str) -> tuple[Task, dict[str, pd.DataFrame]]:
    """The task and the rows of the three splits, as `tokenize` makes them. Sets the smallest holdout that works."""
    for size in HOLDOUT_SIZES:
        data = draft.params().data
        task, rows = prepare_rows(tables, data, template)
        try:
            return task, assign_splits(rows, data, task)
        except UserError as error:
            if "params.yaml: data.holdout" not in str(error) or size == HOLDOUT_SIZES[-1]:
                raise
        for split in SPLITS[1:]:
            if getattr(data.holdout, split) is not None:
                draft.set(f"data.holdout.{split}", HOLDOUT_SIZES[HOLDOUT_SIZES.index(size) + 1])
    raise AssertionError


def count_tokens(rows: pd.DataFrame, tokenizer: PreTrainedTokenizerBase, task: Task) -> np.ndarray:
    """Tokens of each row before truncation, int [rows]."""
    encoder = get_encoder(tokenizer, task.template)
    lengths: list[int] = []
    for chunk in np.array_split(rows[task.text_columns].to_numpy(), -(-len(rows) // CHUNK)):
        ids = encoder.encode([dict(zip(task.columns, texts, strict=True)) for texts in chunk])
        encoder.check_ends(ids)
        lengths += map(len, ids)
    return np.array(lengths)


def find_longest_input(manifest: dict[str, Any]) -> int:
    """The most tokens of a row that the model and params.yaml allow."""
    return min(MAX_LENGTH, read_positions(manifest) or MAX_LENGTH)


def choose_max_length(draft: Draft, lengths: np.ndarray, limit: int) -> int:
    """Set `tokenize.max_length`: all rows fit if that costs little, else 99% of them.

    Long rows cost memory in proportion to the longest batch. Up to twice the 99th percentile counts as little. Rows to
    be predicted later may be longer, so it is at least `MIN_LENGTH`.

    Args:
        lengths: tokens of each row, [rows].
        limit: from `find_longest_input`.
    """
    longest, most = int(lengths.max()), int(np.quantile(lengths, 0.99, method="inverted_cdf"))
    needed = longest if round_up(longest) <= max(MIN_LENGTH, 2 * round_up(most)) else most
    max_length = min(max(round_up(needed), MIN_LENGTH), limit)
    comment = f"tokens, at most {limit:,} with this model; the longest row has {longest:,}"
    draft.set("tokenize.max_length", max_length, comment)
    return max_length


def round_up(tokens: int) -> int:
    """The next multiple of 16, which suits a GPU's tiles."""
    return -(-tokens // 16) * 16
