"""Check `tokenize.max_length` against the number of positions that the model has."""

from transformers import AutoConfig, PreTrainedConfig

from stages.runtime.errors import UserError
from stages.sources.fetch import find_model_folder


def check_max_length(manifest: dict, max_length: int) -> None:
    """Reject a maximum length beyond the model's positions, before the stage computes anything.

    Args:
        manifest: what `download` wrote.
    """
    positions = read_positions(manifest)
    if positions is not None and max_length > positions:
        raise UserError(
            f"params.yaml: tokenize.max_length: {max_length}: {manifest['name']} has {positions} positions; "
            f"allowed: 8 to {positions}"
        )


def read_positions(manifest: dict) -> int | None:
    """`count_positions` of the model of a manifest."""
    folder = find_model_folder(manifest)
    try:
        config = AutoConfig.from_pretrained(folder).get_text_config()
    except Exception as error:  # the loaders raise a dozen kinds
        raise UserError(f"model: {manifest['name']}: no usable config.json ({str(error).strip()})") from error
    return count_positions(config)


def count_positions(config: PreTrainedConfig) -> int | None:
    """How many positions a model has; None if it has no limit.

    Transformers maps the various keys to `max_position_embeddings`. OPT's embedding table has two more rows, which are
    not for tokens. A sliding window is not a limit.
    """
    if config.model_type == "mpt":  # it computes its ALiBi biases only up to this length
        return config.max_seq_len
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or getattr(config, "alibi", False):  # bloom has ALiBi and no such key; falcon may have ALiBi
        return None
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("linear", "dynamic"):  # for these types the key is the length before scaling
        return int(positions * rope["factor"])
    return positions
