"""One forward pass over rows: class probabilities in the rows' own order."""

import contextlib

import numpy as np
import pandas as pd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from stages.task.batching import collate
from stages.task.labels import LABELS, PROBABILITIES

# All but cuDNN's attention, which builds a plan for each new shape: here nearly every batch has another length.
ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def speed_up(model):
    """Let a classifier evaluate faster, in place: LoRA in the precision of the activations, as the fast step has it,
    and on a GPU the layers of a known architecture in fewer kernels. It can't be trained further."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(model.dtype)
    if next(model.parameters()).is_cuda:
        with contextlib.suppress(ImportError):  # no Triton
            from stages.kernels.fusion import fuse_decoder_layers

            fuse_decoder_layers(model)


@torch.inference_mode()
def predict(model, examples, pad_id, batch_size, batches, max_length, title):
    """Class probabilities of a classifier.

    Args:
        model: gives `.logits` [rows, classes] for `input_ids`; in evaluation mode.
        examples: list of {"input_ids", "labels"}.
        title: names the progress bar, which counts rows given to the device; None for no bar.

    Returns:
        float64 [rows, classes], in the order of `examples`.
    """
    device = next(model.parameters()).device
    order = range(len(examples))
    if batches.group_by_length:
        order = sorted(
            order, key=lambda i: -len(examples[i]["input_ids"])
        )  # longest first: running out of memory shows at once
    batches = batches.model_copy(update={"multiple_of": 1})  # nothing is captured here, and padding is work
    done = []
    with sdpa_kernel(ATTENTION), tqdm(total=len(examples), desc=title, unit="row", disable=title is None) as bar:
        for start in range(0, len(examples), batch_size):
            rows = order[start : start + batch_size]
            ids = collate([examples[i] for i in rows], pad_id, batches, max_length)["input_ids"]
            logits = model(input_ids=ids.to(device, non_blocking=True)).logits
            done.append((list(rows), torch.softmax(logits.double(), dim=-1)))  # fetched later: the GPU need not wait
            bar.update(len(rows))
    probabilities = np.empty((len(examples), len(LABELS)))
    for rows, values in done:
        probabilities[rows] = values.cpu().numpy()
    return probabilities


def prediction_table(tokenized, probabilities):
    """One line a test row: its texts, gold label, prediction and class probabilities (rounded to 1e-6)."""
    table = tokenized[["row", "premise", "hypothesis", "label"]].reset_index(drop=True)
    columns = pd.DataFrame(probabilities.round(6), columns=PROBABILITIES)
    return pd.concat([table, columns.assign(prediction=probabilities.argmax(axis=1))], axis=1)
