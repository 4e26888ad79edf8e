"""How long a row may be: the positions that a model has."""

from transformers import AutoConfig, PreTrainedConfig

from stages.runtime.errors import UserError
from stages.sources.fetch import find_model_folder


def check_max_length(manifest: dict, max_length: int) -> None:
    """Refuse rows that may be longer than the model has positions, before anything is computed."""
    folder = find_model_folder(manifest)
    try:
        config = AutoConfig.from_pretrained(folder).get_text_config()
    except Exception as error:  # the loaders raise a dozen kinds
        raise UserError(f"model.name: {manifest['name']}: no usable config.json ({str(error).strip()})") from error
    positions = count_positions(config)
    if positions is not None and max_length > positions:
        raise UserError(
            f"params.yaml: tokenize.max_length: {max_length}: {manifest['name']} has {positions} positions; "
            f"allowed: 8 to {positions}"
        )


def count_positions(config: PreTrainedConfig) -> int | None:
    """How many positions a model has; None where it has no limit of its own.

    Transformers gives the many names of it one, `max_position_embeddings`. OPT's table has two more, which are not for
    tokens. A sliding window is no limit.
    """
    if config.model_type == "mpt":  # it computes its ALiBi biases for no more
        return config.max_seq_len
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or getattr(config, "alibi", False):  # bloom has ALiBi, and no key; falcon may have it
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("linear", "dynamic"):  # of these the key is the length before scaling, else after it
        return int(positions * rope["factor"])
    return positions
