"""The logits of a batch of packed rows: rows that follow one another without padding."""

import torch

from stages.kernels.fusion import unwrap_peft


def compute_logits(model: torch.nn.Module, batch: dict[str, torch.Tensor], longest: int) -> torch.Tensor:
    """Logits [rows, classes].

    Args:
        model: a model for which `fusion.takes_packed_rows` is true.
        batch: from `data.batching.pack_rows`, on the model's device.
        longest: the largest number of tokens that a row may have.
    """
    classifier, ids = unwrap_peft(model), batch["input_ids"][None]
    states = classifier.base_model(
        input_ids=ids,
        position_ids=batch["positions"][None],
        attention_mask=torch.empty((1, 1, 1, 1), device=ids.device),  # unused; without it transformers builds one
        cu_seq_lens_q=batch["starts"].int(),
        max_length_q=longest,
        last=batch["last"],  # the last layer returns these tokens only
    ).last_hidden_state[0]
    return classifier.get_submodule("score")(states)
