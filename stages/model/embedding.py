"""Keep only the embeddings of the tokens that a training reads. The whole embedding of Llama 3 takes 1 GB."""

from typing import cast

import numpy as np
import torch
from transformers import PreTrainedModel


@torch.no_grad()
def keep_embeddings(model: PreTrainedModel, tokens: np.ndarray) -> None:
    """Free the embeddings of all tokens but these, in place. The others then have NaN, and so do rows with them.

    Args:
        model: frozen; it may be trained by LoRA, except on its embedding.
        tokens: numbers of the tokens, int64.
    """
    embedding = cast(torch.nn.Embedding, model.get_input_embeddings())
    weight, kept = embedding.weight, torch.from_numpy(tokens).to(embedding.weight.device)
    rows = torch.full((len(weight),), len(kept), device=weight.device)
    rows[kept] = torch.arange(len(kept), device=weight.device)
    nan = torch.full_like(weight[:1], torch.nan)
    embedding.weight = torch.nn.Parameter(torch.cat([weight[kept], nan]), requires_grad=False)
    del weight
    torch.cuda.empty_cache()  # otherwise LoRA gets a piece of the freed block, and no graph can use the rest
    embedding.padding_idx = None  # of the whole embedding; it matters only to gradients
    embedding.register_buffer("row_of_token", rows, persistent=False)
    embedding.register_forward_pre_hook(_look_up_rows)


def count_freed_weights(model: torch.nn.Module) -> int:
    """The number of weights that `keep_embeddings` has freed, 0 without it."""
    freed = 0
    for module in model.modules():
        if "row_of_token" in dict(module.named_buffers(recurse=False)):
            weight = module.get_parameter("weight")
            freed += len(module.get_buffer("row_of_token")) * weight.shape[1] - weight.numel()
    return freed


def _look_up_rows(embedding: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
    return (embedding.get_buffer("row_of_token")[inputs[0]],)
