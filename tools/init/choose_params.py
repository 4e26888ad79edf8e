"""Choose the keys of params.yaml by looking at a model and a data set. `tools.init` uses it."""

import contextlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from stages.data.assign_splits import assign_splits
from stages.data.chat import apply_chat
from stages.data.dataset import prepare_rows
from stages.data.max_length import read_positions
from stages.data.task import SPLITS, Task
from stages.data.tokenization import CHUNK, get_encoder
from stages.runtime.errors import UserError
from stages.runtime.params import FROM_HUB, Model
from stages.sources import hub
from stages.sources.fetch import fetch, find_model_folder
from stages.sources.manifest import PATTERNS
from tools.init.columns import Columns, make_template
from tools.init.params_file import Draft
from tools.init.read_tables import HOLDOUT_SIZES

MAX_LENGTH = 8192  # the highest that params.yaml allows
MIN_LENGTH = 128  # tokens: later texts may be longer than these, and without padding a higher limit costs nothing


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


def describe_group_cause(
    draft: Draft, tables: dict[str, pa.Table], template: str, splits: Mapping[str, pd.DataFrame], task: Task
) -> Iterator[str]:
    """Say that classes are missing in a split because groups are not divided, if a holdout without groups has them."""
    missing = count_missing(splits, task)
    if task.group is None or not missing:
        return
    data = draft.params().data.model_copy(update={"group": None})
    try:
        ungrouped, rows = prepare_rows(tables, data, template)
        fewer = count_missing(assign_splits(rows, data, ungrouped), ungrouped)
    except UserError:  # rows with equal texts can't be held out either
        return
    if fewer < missing:
        without = f"fewer {task.labels.nouns} are" if fewer else f"no {task.labels.noun} is"
        yield (
            f"{task.labels.nouns} are missing because rows with the same {task.group} stay in one split; with --group "
            f"none, {without} missing"
        )


def count_missing(splits: Mapping[str, pd.DataFrame], task: Task) -> int:
    """Classes without a row, in all splits together."""
    return sum(int((task.labels.count(rows["label"]) == 0).sum()) for rows in splits.values())


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
