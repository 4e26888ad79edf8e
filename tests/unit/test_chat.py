"""Instruct models: the template in the model's own chat template."""

import random
import re
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from helpers import tokenizers
from helpers.parameters import manifest_of, unpinned_params
from helpers.tables import SPLITS, arrow
from transformers.utils import chat_template_utils

from stages import tokenize
from stages.data.chat import apply_chat, describe_chat
from stages.data.task import Task, fill_template
from stages.data.tokenization import encode_rows, load_configured_tokenizer, load_tokenizer
from stages.model.zero_shot import find_first_tokens
from stages.runtime import files, params
from stages.runtime.errors import UserError
from stages.runtime.params import Tokenize

TEMPLATE = "Premise: {premise}\nHypothesis: {hypothesis}\nLabel:"
SYSTEM = "Does the premise entail it?"
NO_SYSTEM = ("Gemma 2",)


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


@pytest.mark.parametrize("model", tokenizers.CHAT_TEMPLATES)
def test_a_saved_tokenizer_makes_the_same_tokens(model, tmp_path):
    """With BOS, if the chat template has it, and without it, although the tokenizer adds one to other texts."""
    tokenizers.chat(model).save_pretrained(tmp_path)
    manifest = manifest_of(tmp_path)
    assert "chat_template.jinja" in manifest["files"], "it is fetched and pinned with the model"
    tokenizer = load_tokenizer(manifest)
    template = apply_chat(tokenizer, settings(), model)
    texts, ids, _ = encode(tokenizer, template, random_rows())
    assert load_configured_tokenizer(manifest, template)(texts)["input_ids"] == ids
    bos = tokenizer.bos_token_id
    assert {row.count(bos) for row in ids} == {1 if tokenizers.CHAT_TEMPLATES[model].startswith("{{ bos_token") else 0}


@pytest.mark.parametrize("model", tokenizers.CHAT_TEMPLATES)
def test_a_text_is_truncated_and_the_generation_prompt_is_not(model):
    tokenizer = tokenizers.chat(model)
    template = apply_chat(tokenizer, settings(), model)
    ((_, end),) = re.findall(r"(\{hypothesis\})(.*)", template, re.DOTALL)
    rows = [{"premise": "A man is sleeping. " * 60, "hypothesis": "A man is awake."}]
    (short,) = encode(tokenizer, template, [rows[0] | {"premise": "A man"}])[1]
    limit = len(short) + 10
    (text,), (ids,), (length,) = encode(tokenizer, template, rows, limit)
    assert length > limit and len(short) < len(ids) <= limit
    assert text.endswith(f"A man is awake.{end}") and ids[-3:] == short[-3:]


@pytest.mark.parametrize("model", tokenizers.CHAT_TEMPLATES)
def test_a_class_name_can_follow_the_generation_prompt(model):
    """After a line break no space separates the two."""
    tokenizer = tokenizers.chat(model)
    template = apply_chat(tokenizer, settings(), model)
    names = ("awake", "sleeping", "man")  # the small tokenizers have whole pieces of these words
    starts = tokenizer.convert_ids_to_tokens(find_first_tokens(tokenizer, template, names))
    space = "" if template.endswith("\n") else "▁"
    assert all(f"{space}{name}".startswith(start) for name, start in zip(names, starts, strict=True))


def test_the_name_of_a_special_token_in_a_text_is_text():
    tokenizer = tokenizers.chat("Qwen2.5")
    template = apply_chat(tokenizer, settings(), "m")
    rows = [{"premise": "A <|im_end|> man", "hypothesis": "a"}, {"premise": "A man", "hypothesis": "a"}]
    named, plain = encode(tokenizer, template, rows)[1]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert named.count(end) == plain.count(end) > 0


def test_the_date_is_the_same_on_every_day(monkeypatch):
    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 1, 2)

    tokenizer = tokenizers.chat("Llama 3.2")
    today = apply_chat(tokenizer, settings(), "m")
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert "02 Jan 2031" in tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert apply_chat(tokenizer, settings(), "m") == today
    assert "Today Date: 26 Jul 2024\n" in today


def test_without_chat_the_template_is_that_of_params_yaml():
    assert apply_chat(tokenizers.chat("Llama 3.2"), settings(chat=False), "m") == TEMPLATE


def test_a_chat_template_that_is_not_used_is_reported():
    tokenizer = tokenizers.chat("Qwen2.5")
    (line,) = describe_chat(tokenizer, settings(chat=False), "Qwen/Q")
    assert line.startswith("Qwen/Q has a chat template, but tokenize.chat is false; ")
    assert (
        describe_chat(tokenizer, settings(), "m") == describe_chat(tokenizers.chatml(), settings(chat=False), "m") == []
    )


def test_the_default_is_used_of_several_chat_templates():
    named = {"tool_use": "tools {{ messages[0].content }}", "default": "chat {{ messages[0].content }} end"}
    assert apply_chat(use(named), settings(), "m") == f"chat {TEMPLATE} end"


USER = "{{ messages[-1].content%s }} end"
REFUSED = {
    "no chat template": (None, {}, r"tokenize\.chat: m has no chat template; set"),
    "no default": ({"rag": USER % "", "tool_use": USER % ""}, {}, r"tokenize\.chat: .* with no default specified!"),
    "an error": ("{{ tools[0].name }}", {"system": "x"}, r"tokenize\.chat: .* \(None has no element 0\); set"),
    "no Jinja": ("{% if %}", {}, r"tokenize\.chat: the chat template of m does not render \("),
    "system message": (
        tokenizers.CHAT_TEMPLATES["Gemma 2"], {"system": "x"},
        r"tokenize\.system: the chat template of m does not render \(System role not supported\); leave it empty",
    ),
    "system message left out": (USER % "", {"system": "x" * 9}, r"tokenize\.system: .* leaves it out; leave it empty"),
    "user's message left out": ("{{ messages[0].content[0].text }}", {}, r"tokenize\.chat: .* user's message out"),
    "braces": (USER % "" + " {{ '{' }}x}", {}, r"tokenize\.chat: .* would be read as a column: \{x\}; set"),
    "another date": ("{% set f = '%d' %}{{ strftime_now(f) }}" + USER % "", {}, r"tokenize\.chat: .* today's date in"),
    "line breaks": (USER % ".replace('\n\n', '\n')", {}, r"tokenize\.chat: .* changes texts"),
    "JSON": (USER % " | tojson", {}, r"tokenize\.chat: .* changes texts"),
    "HTML": (USER % " | e", {}, r"tokenize\.chat: .* changes texts"),
    "a column first": (USER % " | trim", {"template": "{a} or {b}?"}, r"tokenize\.template: .*no column may be there"),
    "a column last": (USER % ".rstrip()", {"template": "Is {a}"}, r'tokenize\.template: .*"Text: \{a\}\\nClass:"$'),
    "line breaks at the ends": (USER % ".strip('\n')", {"template": "{a}."}, r"tokenize\.template: .* at the ends"),
    "no empty text": (USER % " or 'nothing'", {"template": "{a}"}, r"tokenize\.template: .* at the ends"),
}  # fmt: skip


@pytest.mark.parametrize(("template", "keys", "message"), REFUSED.values(), ids=REFUSED)
def test_a_chat_template_that_cannot_be_used_is_refused_in_one_line(template, keys, message):
    with pytest.raises(UserError, match=rf"^params\.yaml: {message}") as raised:
        apply_chat(use(template), settings(**keys), "m")
    assert "\n" not in str(raised.value)


def test_a_column_may_be_at_an_end_if_the_chat_template_keeps_whitespace():
    tokenizer = tokenizers.chat("Qwen2.5")
    template = apply_chat(tokenizer, settings("{premise}{hypothesis}"), "m")
    assert "<|im_start|>user\n{premise}{hypothesis}<|im_end|>\n" in template


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"chat": False, "system": "Be brief."}, r"must be empty with chat: false .*, not 'Be brief\.'"),
        ({"chat": True, "system": "Read {text}."}, r"must have no text in braces .*, not 'Read \{text\}\.'"),
    ],
)
def test_a_system_message_needs_a_chat_template_and_names_no_column(keys, message):
    raw = unpinned_params()
    raw["tokenize"] |= keys
    with pytest.raises(UserError, match=rf"^params\.yaml: tokenize\.system: {message}$"):
        params.validate(raw, params.Params, "params.yaml")


def test_the_stage_tokenizes_and_writes_the_chat_template(tmp_path, monkeypatch, capsys):
    tokenizers.chat("Llama 3.2").save_pretrained(tmp_path / "model")
    raw = unpinned_params()
    raw["tokenize"] |= {"chat": True, "system": SYSTEM}
    raw["data"] |= {"group": None, "train_rows": None, "validation_rows": None, "test_rows": None}
    monkeypatch.chdir(tmp_path)
    files.write_json("params.yaml", raw)
    files.write_json("outs/base_model.json", manifest_of("model"))
    Path("outs/splits").mkdir()
    for split in SPLITS:
        pq.write_table(arrow(label=["entailment", "neutral"]), f"outs/splits/{split}.parquet")
    monkeypatch.setattr(tokenize, "check_max_length", lambda *_: None)  # the folder has no config.json
    tokenize.main()
    task, tokenizer = Task.read("outs/task.json"), load_tokenizer(manifest_of("model"))
    assert task.template == apply_chat(tokenizer, params.load().tokenize, "m") and SYSTEM in task.template
    ids = pd.read_parquet("outs/tokenized/test.parquet")["input_ids"]
    assert tokenizer.decode(ids[1]).startswith("<s><|start_header_id|>system<|end_header_id|>")
    assert "read as special tokens: <s>, <|start_header_id|>, " in capsys.readouterr().out
