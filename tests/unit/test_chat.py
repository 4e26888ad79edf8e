"""Instruct models: the template in the model's own chat template."""

import random

import pandas as pd
import pytest
from helpers import tokenizers

from stages.data.chat import apply_chat
from stages.data.task import fill_template
from stages.data.tokenization import encode_rows
from stages.runtime.params import Tokenize

TEMPLATE = "Premise: {premise}\nHypothesis: {hypothesis}\nLabel:"
SYSTEM = "Does the premise entail it?"
NO_SYSTEM = ("Gemma 2",)
ONE_TURN = "{{ bos_token }}%s{%% if add_generation_prompt %%}assistant{%% endif %%}"


def settings(template=TEMPLATE, chat=True, system=None):
    return Tokenize(template=template, max_length=500, chat=chat, system=system)


def use(template, base=tokenizers.metaspace):
    """A tokenizer with a chat template."""
    tokenizer = base()
    tokenizer.chat_template = template
    return tokenizer


def random_rows(count=40):
    """Texts with spaces, line breaks, quotes, braces and other scripts, also at their ends, and empty ones."""
    pieces = ("A man", " is", "\n", " ", "  ", "Zoë 🙂", "'", '"', "{premise}", "&lt;", "\t", "user", "assistant\n")
    draw = random.Random(0)
    return [
        {name: "".join(draw.choices(pieces, k=draw.randint(0, 8))) for name in ("premise", "hypothesis")}
        for _ in range(count)
    ]


def encode(tokenizer, template, rows, max_length=500):
    table = pd.DataFrame([{f"text_{name}": text for name, text in row.items()} for row in rows])
    return encode_rows(table, tokenizer, template, max_length)


MODELS = [
    (model, system)
    for model in tokenizers.CHAT_TEMPLATES
    for system in (None, SYSTEM)
    if not (system and model in NO_SYSTEM)
]


@pytest.mark.parametrize(("model", "system"), MODELS)
def test_the_tokens_are_those_of_the_models_own_chat_template(model, system):
    tokenizer, rows = tokenizers.chat(model), random_rows()
    template = apply_chat(tokenizer, settings(system=system), model)
    turns = [{"role": "system", "content": system}] if system else []
    for row, ids in zip(rows, encode(tokenizer, template, rows)[1], strict=True):
        chat = [*turns, {"role": "user", "content": fill_template(TEMPLATE, row)}]
        options = {"date_string": "26 Jul 2024", "add_generation_prompt": True}
        assert ids == tokenizer.apply_chat_template(chat, **options)["input_ids"]
