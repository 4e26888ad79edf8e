"""Small tokenizers of the kinds that models have, trained in a moment."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["Premise: A man is sleeping in the park.\nHypothesis: A man is awake.\nLabel: user assistant system"] * 3
CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>")


def trained(model, pre_tokenizer, special, alphabet):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*special], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def chatml() -> PreTrainedTokenizerFast:
    """Bytes as Qwen has them, with ChatML's tokens, and one that takes the space after it away as Phi-3's do."""
    stripping = AddedToken("<|user|>", rstrip=True, special=True, normalized=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = trained(models.BPE(), pre_tokenizer, [*CHAT[:3], stripping], alphabet)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("  ", normalized=True)])  # as phi-2 has: a token, and none of the special ones
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="right"
    )


def metaspace(prepend: str = "first", ends: bool = False) -> PreTrainedTokenizerFast:
    """SentencePiece's way, as Llama has it: a space before the first word, and BOS before all.

    Args:
        prepend: "first" or "always", where a space is put.
        ends: whether EOS is added at the end too.
    """
    special = ["<unk>", "<s>", "</s>", "[INST]"]
    alphabet = sorted({*"".join(TEXTS), *"<|>_[]/INSTZö🙂"})
    tokenizer = trained(
        models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(prepend_scheme=prepend), special, alphabet
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    if ends:  # by transformers' own flags
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, add_bos_token=True, add_eos_token=True, **names)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # as Llama 3
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
