"""The base model's tokenizer."""

from transformers import AutoTokenizer

from stages.runtime.errors import UserError
from stages.sources import hub


def load_tokenizer(manifest):
    """The base's tokenizer, padding on the right, with eos where it has no pad token (phi-2 has none).

    Args:
        manifest: what `download` wrote.
    """
    folder = hub.model_folder(manifest)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the loaders raise a dozen kinds
        raise UserError(f"model.name: {manifest['name']}: no usable tokenizer ({str(error).strip()})") from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(f"model.name: {manifest['name']}: its tokenizer has neither a pad token nor an eos token")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer
