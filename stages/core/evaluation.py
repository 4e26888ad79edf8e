"""One forward pass over rows: class probabilities in the rows' own order."""

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from stages.core.batching import collate
from stages.core.labels import LABELS, PROBABILITIES


@torch.inference_mode()
def predict(model, examples, pad_id, batch_size, batches, max_length, title):
    """Class probabilities of a classifier.

    Args:
        model: gives `.logits` [rows, classes] for `input_ids`; in evaluation mode.
        examples: list of {"input_ids", "labels"}.
        title: names the progress bar; None for no bar.

    Returns:
        float64 [rows, classes], in the order of `examples`.
    """
    device = next(model.parameters()).device
    order = range(len(examples))
    if batches.group_by_length:
        order = sorted(
            order, key=lambda i: -len(examples[i]["input_ids"])
        )  # longest first: running out of memory shows at once
    probabilities = np.empty((len(examples), len(LABELS)))
    with tqdm(total=len(examples), desc=title, unit="row", disable=title is None) as bar:
        for start in range(0, len(examples), batch_size):
            rows = order[start : start + batch_size]
            ids = collate([examples[i] for i in rows], pad_id, batches, max_length)["input_ids"]
            logits = model(input_ids=ids.to(device, non_blocking=True)).logits
            probabilities[list(rows)] = torch.softmax(logits.double(), dim=-1).cpu().numpy()
            bar.update(len(rows))
    return probabilities


def prediction_table(tokenized, probabilities):
    """One line a test row: its texts, gold label, prediction and class probabilities (rounded to 1e-6)."""
    table = tokenized[["row", "premise", "hypothesis", "label"]].reset_index(drop=True)
    columns = pd.DataFrame(probabilities.round(6), columns=PROBABILITIES)
    return pd.concat([table, columns.assign(prediction=probabilities.argmax(axis=1))], axis=1)
