"""Stage `tokenize`: choose rows, drop or label unlabelled ones, fill the template, tokenize and count."""

import numpy as np
import pandas as pd
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from stages.data import batching
from stages.data.assign_splits import assign_splits
from stages.data.chat import apply_chat, describe_chat
from stages.data.data_summary import (
    DataSummary,
    PaddingShares,
    SplitSummary,
    count_dropped,
    count_tokens,
    summarize_split,
)
from stages.data.data_warnings import DataWarning, find_warnings
from stages.data.dataset import prepare_rows, resolve_unlabelled, write_rows
from stages.data.holdout import describe_holdout
from stages.data.max_length import check_max_length
from stages.data.row_places import place_columns
from stages.data.sampling import sample_evenly
from stages.data.task import NO_LABEL, SPLITS, Task
from stages.data.tokenization import describe_special_tokens, load_tokenizer, tokenize_rows
from stages.runtime import errors, files, params
from stages.runtime.progress import progress_bar


def main() -> None:
    p = params.load()
    base = files.read_json("outs/base_model.json")
    check_max_length(base, p.tokenize.max_length)
    tokenizer = load_tokenizer(base)

    template = apply_chat(tokenizer, p.tokenize, base["name"])
    task, read_rows = prepare_rows(read_tables(p.data.splits), p.data, template)
    rows = assign_splits(read_rows, p.data, task)
    dropped = count_dropped(read_rows, rows, task) if p.data.duplicates == "drop" else None
    chosen = {split: choose_rows(rows[split], split, p.data) for split in SPLITS}
    labelled = {split: label_rows(chosen[split], split, p.data, task) for split in SPLITS}
    tokenized = write_tokenized(labelled, tokenizer, task, p.tokenize.max_length)

    splits: dict[str, SplitSummary] = {}
    for split in SPLITS:
        earlier = {other: labelled[other] for other in splits}
        splits[split] = summarize_split(rows[split], chosen[split], tokenized[split], task, earlier)
    padding = measure_padding(count_tokens(tokenized["train"]), p)
    summary = DataSummary(splits, padding, p.tokenize.max_length, dropped)
    summary.write("outs/data_summary.json")
    task.write("outs/task.json")
    special_tokens = describe_special_tokens(tokenizer, task.template, base["name"])
    lines = [
        describe_classes(task),
        *describe_holdout(rows, count_divided(read_rows["train"], p.data), p.data.holdout, task),
        *describe_dropped(summary),
        *special_tokens,
        *describe_chat(tokenizer, p.tokenize, base["name"]),
    ]
    print("\n".join(lines + [describe_warning(warning) for warning in find_warnings(summary, task)]))


def read_tables(splits: params.Splits) -> dict[str, pa.Table]:
    """The tables that `download` wrote, {split: table}: those that `data.splits` names."""
    named = [split for split in SPLITS if getattr(splits, split) is not None]
    return {split: files.read_columns(f"outs/splits/{split}.parquet") for split in named}


def count_divided(train: pd.DataFrame, data: params.Data) -> int:
    """The number of training rows from which `data.holdout` takes its share: without those that will be dropped."""
    return int((train["label"] != NO_LABEL).sum()) if data.unlabelled == "drop" else len(train)


def choose_rows(rows: pd.DataFrame, split: str, data: params.Data) -> pd.DataFrame:
    """The rows of a split that `data.train_rows`, `data.validation_rows` or `data.test_rows` asks for."""
    count = getattr(data, f"{split}_rows")
    try:
        return sample_evenly(rows, count)
    except errors.UserError as error:
        raise errors.UserError(f"params.yaml: data.{split}_rows: {count}: {error}") from error


def label_rows(rows: pd.DataFrame, split: str, data: params.Data, task: Task) -> pd.DataFrame:
    """The rows of a split that have a label, or get one from `data.unlabelled`.

    Raises:
        UserError: there are none, or each row has none of several labels, and F1 is not defined.
    """
    labelled = resolve_unlabelled(rows, data.unlabelled, task)
    if not task.labels.count(labelled["label"]).any():
        column = data.label if isinstance(data.label, str) else ", ".join(data.label)
        raise errors.UserError(f"data: split '{split}': column '{column}' has no label in any of the chosen rows")
    return labelled


def write_tokenized(
    labelled: dict[str, pd.DataFrame], tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int
) -> dict[str, pd.DataFrame]:
    """Tokenize the rows of each split and write them to outs/tokenized."""
    tokenized = {}
    total = sum(map(len, labelled.values()))
    with files.atomic_folder("outs/tokenized") as folder, progress_bar(total, "tokenize", "row") as bar:
        for split, rows in labelled.items():
            tokenized[split] = tokenize_rows(rows, tokenizer, task.template, max_length, bar.update)
            # Only the report shows where rows are: a renamed file needs no new training.
            unused = ["full_length", *(place_columns(rows) if split != "test" else [])]
            write_rows(tokenized[split].drop(columns=unused), folder / f"{split}.parquet", task.labels)
    return tokenized


def measure_padding(lengths: np.ndarray, p: params.Params) -> PaddingShares:
    """Shares of padding in the first epoch's batches of training rows, whose token counts are `lengths`."""
    batch_size, max_length = p.train.batch_size, p.tokenize.max_length
    order = batching.order_rows(lengths, p.batches.order, batch_size, [p.seed, 0])
    random_order = batching.order_randomly(len(lengths), [p.seed, 0])
    to_longest = p.batches.model_copy(update={"padding": "longest"})
    to_max_length = p.batches.model_copy(update={"padding": "max_length"})
    return PaddingShares(
        as_set=batching.padding_share(lengths, order, batch_size, p.batches, max_length),
        random_order=batching.padding_share(lengths, random_order, batch_size, to_longest, max_length),
        to_max_length=batching.padding_share(lengths, random_order, batch_size, to_max_length, max_length),
    )


def describe_classes(task: Task) -> str:
    more = ", …" if len(task.classes) > 10 else ""
    return f"{len(task.classes)} {task.labels.nouns}{task.labels.note}: {', '.join(task.classes[:10])}{more}"


def describe_dropped(summary: DataSummary) -> list[str]:
    """A line each that counts the dropped duplicates, and the rows that were dropped because they are not labelled."""
    lines = []
    if duplicates := summary.dropped_duplicates:
        lines.append(
            f"dropped, since other rows have the same texts: {duplicates.rows:,} of "
            f"{duplicates.rows + summary.splits['train'].rows:,} training rows ({duplicates.in_test:,} equal a test "
            f"row, {duplicates.in_validation:,} a validation row; {duplicates.other_label:,} equal a training row that "
            "has another label and stays)"
        )
    if any(split.dropped for split in summary.splits.values()):
        counts = (f"{split.dropped:,} of {split.chosen:,} {name} rows" for name, split in summary.splits.items())
        lines.append(f"dropped, since they are not labelled: {', '.join(counts)}")
    return lines


def describe_warning(warning: DataWarning) -> str:
    return f"WARNING: {warning.text}" if warning.level == "alarm" else warning.text


if __name__ == "__main__":
    errors.run(main)
