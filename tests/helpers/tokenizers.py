"""Small tokenizers of the kinds that models use, trained within a moment."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = ["Premise: A man is sleeping in the park.\nHypothesis: A man is awake.\nLabel: user assistant system"] * 3
CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|user|>")
HEADER = "'<|start_header_id|>' + turn.role + '<|end_header_id|>\n\n'"
# {model: chat template}: short, with what the model's own one does to a system and a user message
CHAT_TEMPLATES = {
    "Qwen2.5": "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}{% for turn in messages %}{{ '<|im_start|>' + turn.role + '\n' + turn.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "Llama 3.2": "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% endif %}{% set turn = {'role': 'system'} %}{{ " + HEADER + " + 'Today Date: ' + date_string + '\n\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% set messages = messages[1:] %}{% endif %}"
    "<|eot_id|>{% for turn in messages %}{{ " + HEADER + " + turn.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% set turn = {'role': 'assistant'} %}{% if add_generation_prompt %}{{ " + HEADER + " }}{% endif %}",
    "Gemma 2": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for turn in messages %}{{ '<start_of_turn>' + turn.role + '\n' + turn.content | trim + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
    "Mistral": "{{ bos_token }}{% for turn in messages %}{% if turn.role == 'user' %}[INST] {% if loop.index0 == 1 %}"
    "{{ messages[0].content + '\n\n' }}{% endif %}{{ turn.content + ' [/INST]' }}{% endif %}{% endfor %}",
    "Zephyr": "{% for turn in messages %}{{ '<|' + turn.role + '|>\n' + turn.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",  # no BOS, while its tokenizer adds one
    "Vicuna": "{% for turn in messages %}{{ turn.role + ': ' + turn.content + '\n' }}{% endfor %}assistant:",
}


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


def chat(model: str) -> PreTrainedTokenizerFast:
    """A tokenizer with one of `CHAT_TEMPLATES`: as Qwen and GPT-2 have it, or as Llama has it, with BOS."""
    tokenizer = chatml() if model == "Qwen2.5" else metaspace()
    names = {
        "Llama 3.2": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "Gemma 2": ["<start_of_turn>", "<end_of_turn>"],
    }
    tokens = [AddedToken(name, special=True, normalized=False) for name in names.get(model, [])]
    tokenizer.add_tokens(tokens)
    tokenizer.chat_template = CHAT_TEMPLATES[model]
    return tokenizer
