"""Small tokenizers of the kinds that models use, trained within a moment."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["Premise: A man is sleeping in the park.\nHypothesis: A man is awake.\nLabel: user assistant system"] * 3
CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>")


def train(model, pre_tokenizer, special, alphabet):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*special], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def chatml() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with ChatML's tokens, as Qwen has. <|user|> removes the space after it, as in Phi-3."""
    stripping = AddedToken("<|user|>", rstrip=True, special=True, normalized=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = train(models.BPE(), pre_tokenizer, [*CHAT[:3], stripping], alphabet)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("  ", normalized=True)])  # as in phi-2: an added token that is not special
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="right"
    )


def metaspace(prepend: str = "first", ends: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer in SentencePiece's style, as Llama has: a space before the first word, and BOS at the start.

    Args:
        prepend: "first" or "always": before which parts a space is added.
        ends: whether EOS is added at the end.
    """
    special = ["<unk>", "<s>", "</s>", "[INST]"]
    alphabet = sorted({*"".join(TEXTS), *"<|>_[]/INSTZö🙂"})
    tokenizer = train(
        models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(prepend_scheme=prepend), special, alphabet
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    if ends:  # through transformers' own flags
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, add_bos_token=True, add_eos_token=True, **names)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # as Llama 3
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
