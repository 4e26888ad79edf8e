"""Stage `tokenize`: the task of the data, rows chosen, unlabelled ones dropped, texts put into the template, tokens."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from stages.data import batching, dataset
from stages.data.data_warnings import find_warnings
from stages.data.max_length import check_max_length
from stages.data.task import SPLITS, Task
from stages.data.tokenization import describe_special_tokens, load_tokenizer, parse_columns, tokenize_rows
from stages.runtime import errors, files, params


def main() -> None:
    p = params.load()
    base = files.read_json("outs/base_model.json")
    check_max_length(base, p.tokenize.max_length)
    tokenizer = load_tokenizer(base)
    wanted = {"train": p.data.train_rows, "validation": p.data.validation_rows, "test": p.data.test_rows}
    columns = parse_columns(p.tokenize.template)
    task, rows = dataset.prepare_rows({split: read_raw(split) for split in SPLITS}, p.data, columns)
    chosen = {split: choose(rows[split], split, wanted[split]) for split in SPLITS}
    labelled = {split: with_label(chosen[split], split, p.data, task) for split in SPLITS}
    summary = {}
    with (
        files.atomic_folder("outs/tokenized") as folder,
        tqdm(total=sum(map(len, labelled.values())), desc="tokenize", unit="row", disable=None) as bar,
    ):
        for split in SPLITS:
            kept = tokenize_rows(labelled[split], tokenizer, p.tokenize.template, p.tokenize.max_length, bar.update)
            dataset.write_rows(kept, folder / f"{split}.parquet")
            summary[split] = dataset.summarize_split(rows[split], chosen[split], kept, task)
            if split == "train":
                summary["padding"] = padding(dataset.count_tokens(kept), p)
            for other in SPLITS[: SPLITS.index(split)]:
                summary[split][f"in_{other}"] = dataset.count_overlap(kept, labelled[other], task)
    files.write_json("outs/data_summary.json", summary)
    task.write("outs/task.json")
    special = describe_special_tokens(tokenizer, p.tokenize.template, base["name"])
    facts = [f"{len(task.classes)} classes: {listed(task.classes)}", *without_label(summary), *special]
    facts += find_warnings(summary, task.group)
    print("\n".join(facts))


def without_label(summary: dict) -> list[str]:
    """A line that counts the rows dropped for want of a label, where there are any."""
    counts = ", ".join(f"{summary[s]['dropped']:,} of {summary[s]['chosen']:,} {s} rows" for s in SPLITS)
    return [f"dropped, since they have no label: {counts}"] if any(summary[s]["dropped"] for s in SPLITS) else []


def read_raw(split: str) -> pa.Table:
    try:
        return pq.read_table(f"outs/splits/{split}.parquet")
    except (OSError, ValueError) as error:
        raise errors.UserError(
            f"outs/splits/{split}.parquet: not readable as parquet ({error}); run `dvc repro`"
        ) from error


def listed(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:10]) + (", …" if len(classes) > 10 else "")


def choose(rows: pd.DataFrame, split: str, samples: int | None) -> pd.DataFrame:
    try:
        return dataset.sample_evenly(rows, samples)
    except errors.UserError as error:
        raise errors.UserError(f"params.yaml: data.{split}_rows: {samples}: {error}") from error


def with_label(rows: pd.DataFrame, split: str, data: params.Data, task: Task) -> pd.DataFrame:
    labelled = dataset.resolve_unlabelled(rows, data.unlabelled, task)
    if labelled.empty:
        raise errors.UserError(f"data: split '{split}': column '{data.label}' has no label in any of the chosen rows")
    return labelled


def padding(lengths: np.ndarray, p: params.Params) -> dict[str, float]:
    """Share of padding in training batches: as set, padded to the batch in random order, and padded to `max_length`.

    As set is where rows are padded: with `padding: none` there is none where the model's family takes them end to end.
    """
    size, longest = p.train.batch_size, p.tokenize.max_length
    mixed = batching.order_randomly(len(lengths), [p.seed, 0])
    order = batching.order_rows(lengths, p.batches.order, size, [p.seed, 0])
    to_longest = p.batches.model_copy(update={"padding": "longest"})
    to_maximum = p.batches.model_copy(update={"padding": "max_length"})
    return {
        "as_set": batching.padding_share(lengths, order, size, p.batches, longest),
        "random_order": batching.padding_share(lengths, mixed, size, to_longest, longest),
        "to_max_length": batching.padding_share(lengths, mixed, size, to_maximum, longest),
    }


if __name__ == "__main__":
    errors.run(main)
