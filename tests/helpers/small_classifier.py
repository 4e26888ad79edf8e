"""A small LoRA classifier, batches and gradients, for the tests of the fused layers and the captured step."""

from collections.abc import Callable

import numpy as np
import torch

from helpers.project import COMMITTED
from helpers.tables import CLASSES, LABELS
from stages.data.labels import MultiLabel
from stages.model.adapter import add_lora
from stages.model.base import load_base
from stages.model.head import freeze_head
from stages.runtime import params
from stages.training.loss import set_loss

PAD = 0
PARAMS = COMMITTED / "params.yaml"
TRAIN_LABELS = np.arange(5)[:, None] < [2, 4, 1]  # of rows with several labels, whose weights are 1.5, 0.25 and 4
DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


class Tokenizer:
    pad_token_id = PAD

    def __len__(self):
        return 1000


def classifier(manifest, freeze, dropout=0.0, targets="all-linear", checkpointing=False, several=False, **of_model):
    """Make a LoRA classifier in training mode. Its B matrices are not zero, so A's gradients are not zero either.

    Args:
        manifest: of a small model's folder.
        freeze: whether to freeze the head.
        dropout: rate of every dropout, LoRA's too.
        several: whether a row may have several labels. Their loss is weighted as by `TRAIN_LABELS`.
        of_model: changes of the section `model` of params.yaml.
    """
    p = params.load(PARAMS)
    labels = MultiLabel(CLASSES) if several else LABELS
    base = load_base(manifest, p.model.model_copy(update=of_model), labels, DEVICE, 42, Tokenizer())
    if several:
        set_loss(base, labels, TRAIN_LABELS, balanced=True)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    lora_params = p.lora.model_copy(update={"dropout": dropout, "target_modules": targets})
    lora = add_lora(base, lora_params, 42)
    if freeze:
        freeze_head(lora)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    if checkpointing:
        lora.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    return lora.train()


def batch(rows=4, length=16, seed=0, several=False):
    """Token ids [rows, length], padded on the right by 0 to 6 tokens, and labels [rows], or [rows, 3] if several."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 1000, (rows, length), generator=generator)
    for row in range(rows):
        ids[row, length - row % 7 :] = PAD if row % 7 else ids[row, -1]
    highest, shape = (2, (rows, 3)) if several else (3, (rows,))
    return ids.to(DEVICE), torch.randint(0, highest, shape, generator=generator).to(DEVICE)


def make_eager_step(monkeypatch, lora, longest, dequantize_once=False):
    """Make the captured step of a classifier for batches of 4 rows, but run it eagerly, so it needs no GPU."""
    from stages.training.captured_step import CapturedStep

    if DEVICE.type == "cpu":
        for name in ("graph_pool_handle", "Stream"):
            monkeypatch.setattr(torch.cuda, name, lambda: None)
    step = CapturedStep(lora, 4, longest, 42, PAD)
    step.layers.keep_weights(dequantize_once)
    step.capturable = False
    return step


def as_inputs(ids, labels, **others):
    """A padded batch as the captured step takes it: one part."""
    return [{"input_ids": ids, "labels": labels, **others}]


def as_rows(ids, labels):
    """The rows of a padded batch without padding, for `pack_rows`."""
    ends = [int((row != PAD).nonzero().max()) + 1 for row in ids]
    return [
        {"input_ids": row[:end].cpu().numpy(), "labels": label.tolist()}
        for row, end, label in zip(ids, ends, labels, strict=True)
    ]


def eager(lora, ids, labels, compute_loss: Callable | None = None):
    """Loss and gradients as PyTorch computes them; compute_loss: of logits and labels, if not the model's own."""
    loss = compute_loss(lora(input_ids=ids).logits, labels) if compute_loss else lora(input_ids=ids, labels=labels).loss
    loss.backward()
    result = loss.item(), gradients(lora)
    lora.zero_grad()
    return result


def binary_loss(logits, labels):
    """PyTorch's loss of several labels, weighted as by `TRAIN_LABELS`."""
    weights = torch.tensor([1.5, 0.25, 4.0], device=logits.device)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float(), pos_weight=weights)


def gradients(lora):
    return {n: p.grad.detach().float().clone() for n, p in lora.named_parameters() if p.requires_grad}


def distance(actual, expected):
    """Relative distance of all gradients together."""
    difference = sum((actual[name] - expected[name]).norm() ** 2 for name in expected)
    return (difference / sum(value.norm() ** 2 for value in expected.values())).sqrt().item()
