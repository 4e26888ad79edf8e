"""From texts to tokens: the template, special tokens, and truncation."""

import json
from functools import cache, partial

import numpy as np
import pandas as pd
import pytest
from helpers import tokenizers
from helpers.memory import traced_peak
from helpers.parameters import manifest_of
from helpers.project import NANO, SHARED
from tokenizers import AddedToken
from transformers import AutoTokenizer

from stages.data import tokenization
from stages.data.tokenization import load_tokenizer
from stages.runtime.errors import UserError

TEMPLATE = "Premise: {premise}\nHypothesis: {hypothesis}\nLabel:"


def frame(premise, hypothesis):
    return pd.DataFrame({"text_premise": [premise], "text_hypothesis": [hypothesis]})


@pytest.fixture(scope="module")
def words():
    return load_tokenizer(manifest_of(NANO))


def tokenize_row(words, premise, hypothesis, max_length=128, template=TEMPLATE):
    return tokenization.tokenize_rows(frame(premise, hypothesis), words, template, max_length).iloc[0]


def test_progress_counts_rows(words):
    counts = []
    tokenization.tokenize_rows(
        pd.concat([frame("a man sleeps", "a man runs")] * 2500), words, TEMPLATE, 128, counts.append
    )
    assert counts == [1000, 1000, 500]


def test_only_some_rows_are_python_objects_at_a_time(words):
    """As lists, texts and tokens of all 20,000 rows would take 1,000 bytes a row; those of 1,000 rows take 70."""
    rows = pd.concat([frame("a man sleeps", "a man runs")] * 20_000, ignore_index=True)
    tables = []
    peak = traced_peak(lambda: tables.append(tokenization.tokenize_rows(rows, words, TEMPLATE, 128)))
    assert len(tables[0]) == 20_000 and tables[0]["input_ids"].map(len).min() > 10
    assert peak / 20_000 < 300


def test_braces_in_a_text_are_text():
    texts = {"premise": "{hypothesis} {0} \\1", "hypothesis": "{premise}"}
    assert tokenization.fill_template("P: {premise} H: {hypothesis}.", texts) == "P: {hypothesis} {0} \\1 H: {premise}."


@pytest.mark.parametrize(
    ("template", "columns"),
    [
        ("Text: {text}\nTopic:", ("text",)),
        ("{b} {a} {b}", ("b", "a")),
        ('{"title": "{Review Title}", "n": {n}}', ("Review Title", "n")),
        ("{größe} {a.b} {{x}}", ("größe", "a.b", "x")),
    ],
)
def test_a_template_names_its_columns_in_its_order(template, columns):
    assert tokenization.parse_columns(template) == columns


def test_a_column_may_occur_twice_and_other_braces_are_text():
    assert tokenization.fill_template('{"a": {a}, "again": {a}}', {"a": "x"}) == '{"a": x, "again": x}'


def test_the_longest_of_three_texts_is_truncated(words):
    table = pd.DataFrame({"text_a": ["a man"], "text_b": ["sleeps " * 200], "text_c": ["a dog runs"]})
    row = tokenization.tokenize_rows(table, words, "{a} | {b} | {c}.", 48).iloc[0]
    text = words.decode(row["input_ids"])
    assert row["truncated"] and 45 <= len(row["input_ids"]) <= 48
    assert text.startswith("a man | sleeps sleeps") and text.endswith(" | a dog runs.")


def test_the_template_has_its_end_after_a_truncated_text(words):
    row = tokenization.tokenize_rows(
        pd.DataFrame({"text_text": ["a man " * 200]}), words, "Text: {text}\nTopic:", 32
    ).iloc[0]
    assert words.decode(row["input_ids"]).endswith("\nTopic:")


def test_the_template_is_filled_with_both_texts(words):
    row = tokenize_row(words, "a man sleeps", "a man runs")
    assert words.decode(row["input_ids"]) == "Premise: a man sleeps\nHypothesis: a man runs\nLabel:"
    assert not row["truncated"]


def test_the_name_of_a_special_token_in_a_text_is_text(words):
    plain = tokenize_row(words, "a man <|endoftext|> sleeps", "a man runs")["input_ids"]
    assert words.eos_token_id not in plain


LONG = {
    "premise": ("a man sleeps " * 200, "a man runs"),
    "hypothesis": ("a man sleeps", "a man runs " * 200),
    "both": ("a man sleeps " * 200, "a dog runs " * 150),
    "one word": ("x" * 100_000, "a man runs"),
    "emoji": ("👩🏽‍🚀" * 20_000, "a man runs"),
}


@pytest.mark.parametrize("name", LONG)
def test_a_text_that_is_too_long_is_truncated_and_the_templates_end_is_not(words, name):
    row = tokenize_row(words, *LONG[name], max_length=48)
    text = words.decode(row["input_ids"])
    assert row["truncated"]
    assert len(row["input_ids"]) <= 48
    assert text.startswith("Premise: ")
    assert text.endswith("\nLabel:")
    assert "\nHypothesis: " in text


@pytest.mark.parametrize("name", LONG)
def test_the_filled_template_makes_the_same_tokens(words, name):
    """Other programs can be given the text instead of the tokens."""
    (text,), (ids,), (length,) = tokenization.encode_rows(frame(*LONG[name]), words, TEMPLATE, 48)
    assert length > 48 and text.endswith("\nLabel:") and len(text) < 64 * 48
    assert words(text, split_special_tokens=True)["input_ids"] == ids


@pytest.mark.parametrize("name", ["premise", "hypothesis", "both"])
def test_a_truncated_row_is_nearly_as_long_as_allowed(words, name):
    assert len(tokenize_row(words, *LONG[name], max_length=48)["input_ids"]) >= 45


def test_the_longer_text_is_truncated_first(words):
    text = words.decode(tokenize_row(words, *LONG["premise"], max_length=48)["input_ids"])
    assert text.endswith("\nHypothesis: a man runs\nLabel:")


def test_a_row_of_max_length_tokens_is_not_truncated(words):
    ids = tokenize_row(words, "a man sleeps", "a man runs")["input_ids"]
    row = tokenize_row(words, "a man sleeps", "a man runs", max_length=len(ids))
    assert list(row["input_ids"]) == list(ids)
    assert not row["truncated"]


def test_a_template_longer_than_max_length_is_an_error(words):
    with pytest.raises(UserError, match=r"tokenize\.max_length: 8 "):
        tokenize_row(words, *LONG["both"], max_length=8)


@pytest.mark.parametrize(
    "text", ["🙂 smile", "שלום עולם", "مرحبا", "a\0b", "naïve café", "\u202eright to left", "👩🏽‍🚀"]
)
def test_any_text_is_decoded_to_itself(words, text):
    decoded = words.decode(tokenize_row(words, text, text)["input_ids"])
    assert decoded == f"Premise: {text}\nHypothesis: {text}\nLabel:"


def test_no_rows_make_no_tokens(words):
    assert len(tokenization.tokenize_rows(frame("a", "b")[:0], words, TEMPLATE, 128)) == 0


@pytest.mark.parametrize("max_length", [128, 24])
def test_a_bos_token_that_the_tokenizer_adds_is_added_once(nano_copy, max_length):
    """Gemma and Llama need it, also in truncated rows. The token's name in a text is text."""
    path = nano_copy / "tokenizer.json"
    settings = json.loads(path.read_text())
    bos = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    settings["post_processor"] |= {"special_tokens": {"<|endoftext|>": bos}}
    settings["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}})
    path.write_text(json.dumps(settings))
    row = tokenize_row(load_tokenizer(manifest_of(nano_copy)), "a <|endoftext|> man " * 4, "a dog runs", max_length)
    assert row["truncated"] == (max_length == 24)
    assert row["input_ids"].index(0) == 0 and row["input_ids"].count(0) == 1


PHI_2 = SHARED / "models/phi-2"
# {kind: (function that loads the tokenizer, templates with its special tokens)}
KINDS = {
    "phi-2": (
        lambda: pytest.skip("needs phi-2") if not PHI_2.is_dir() else load_tokenizer(manifest_of(PHI_2)),
        ["<|endoftext|>{premise}   in{hypothesis}", "{premise}<|endoftext|>\n{hypothesis} Label:"],
    ),
    "nano": (
        lambda: load_tokenizer(manifest_of(NANO)),
        ["<|endoftext|>{premise}\n{hypothesis}.", "Premise:{premise}<|endoftext|>A{hypothesis}"],
    ),
    "ChatML": (
        tokenizers.chatml,
        [
            "<|im_start|>user\nA{premise} {hypothesis}<|im_end|>\n<|im_start|>assistant\n",
            "<|user|> Premise:  {premise} <|im_end|>  {hypothesis}<|im_end|>",
        ],
    ),
    "space before the first word": (
        tokenizers.metaspace,
        ["[INST] {premise}\n{hypothesis} [INST]", "<s>[INST]{premise} {hypothesis}.", "<s>{premise}</s> {hypothesis}a"],
    ),
    "space before each piece": (
        partial(tokenizers.metaspace, "always"),
        ["<s>[INST] {premise}[INST]{hypothesis}.", "{premise}[INST]{hypothesis}"],
    ),
    "EOS at the end": (
        partial(tokenizers.metaspace, "first", ends=True),
        ["[INST] {premise} {hypothesis}[INST]", "<s>{premise}{hypothesis}"],
    ),
}  # fmt: skip
CASES = [(kind, template) for kind, (_, templates) in KINDS.items() for template in templates]
ROWS = pd.DataFrame(
    {
        "text_premise": ["A man is sleeping.", " a  man", "", "Zoë 🙂 is in the park", "A man is awake. " * 30],
        "text_hypothesis": ["A man is awake.", "asleep ", "the park", "user", "sleeping"],
    }
)


@cache
def load_kind(name):
    return KINDS[name][0]()


def fill_rows(template, rows=ROWS):
    return [
        tokenization.fill_template(template, {"premise": premise, "hypothesis": hypothesis})
        for premise, hypothesis in zip(rows["text_premise"], rows["text_hypothesis"], strict=True)
    ]


@pytest.mark.parametrize(("kind", "template"), CASES)
def test_a_special_token_in_a_template_is_that_token(kind, template):
    """The tokens are those of the tokenizer itself, and a BOS token in the template is not added again."""
    tokenizer = load_kind(kind)
    expected = tokenizer(
        fill_rows(template), split_special_tokens=False, add_special_tokens=not template.startswith("<s>")
    )
    _, ids, lengths = tokenization.encode_rows(ROWS, tokenizer, template, 10_000)
    assert ids == expected["input_ids"] and lengths == [*map(len, ids)]


@pytest.mark.parametrize(("kind", "template"), CASES)
def test_the_name_of_a_special_token_in_a_text_is_text_next_to_special_tokens_of_the_template(kind, template):
    """No special token is added, and all characters of the name are there."""
    tokenizer = load_kind(kind)
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    rows = pd.DataFrame({"text_premise": [f"A{name}{name}man" for name in names], "text_hypothesis": "user"})
    _, (clean, *_), _ = tokenization.encode_rows(ROWS, tokenizer, template, 10_000)
    _, encoded, _ = tokenization.encode_rows(rows, tokenizer, template, 10_000)
    for name, ids in zip(names, encoded, strict=True):
        for token in {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids(names)} - {tokenizer.unk_token_id}:
            assert ids.count(token) == clean.count(token)
        assert f"A{name}{name}man" in tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_without_special_tokens_is_read_as_by_the_tokenizer(kind):
    tokenizer, template = load_kind(kind), "Premise: {premise}  user {hypothesis}:"
    _, ids, _ = tokenization.encode_rows(ROWS, tokenizer, template, 10_000)
    assert ids == tokenizer(fill_rows(template), split_special_tokens=True)["input_ids"]


def test_the_name_of_a_special_token_that_arises_only_by_filling_is_text():
    chat = tokenizers.chatml()
    _, (ids,), _ = tokenization.encode_rows(frame("im_start", "a"), chat, "<|im_end|><|{premise}|>{hypothesis}", 100)
    assert chat.convert_tokens_to_ids("<|im_start|>") not in ids
    assert chat.decode(ids) == "<|im_end|><|im_start|>a"


@pytest.mark.parametrize(("kind", "template"), CASES)
def test_a_text_between_special_tokens_is_truncated(kind, template):
    tokenizer = load_kind(kind)
    long = frame("A man is sleeping in the park. " * 200, "awake")
    (text,), (ids,), (length,) = tokenization.encode_rows(long, tokenizer, template, 48)
    assert length > 48 and 46 <= len(ids) <= 48
    expected = tokenizer(text, split_special_tokens=False, add_special_tokens=not template.startswith("<s>"))
    assert ids == expected["input_ids"]


@pytest.mark.parametrize(("kind", "template"), [case for case in CASES if case[0] != "phi-2"])
def test_a_saved_tokenizer_makes_the_tokens_of_training(kind, template, tmp_path):
    """It can be used without this project."""
    load_kind(kind).save_pretrained(tmp_path / "base")
    for used in (template, "Premise: {premise} {hypothesis}:"):
        tokenizer = tokenization.load_configured_tokenizer(manifest_of(tmp_path / "base"), used)
        tokenizer.save_pretrained(tmp_path / "saved")
        _, ids, _ = tokenization.encode_rows(ROWS, load_tokenizer(manifest_of(tmp_path / "base")), used, 10_000)
        assert AutoTokenizer.from_pretrained(tmp_path / "saved")(fill_rows(used))["input_ids"] == ids
        assert (
            tokenizer(fill_rows(used))["input_ids"] == ids == tokenization.encode_rows(ROWS, tokenizer, used, 10_000)[1]
        )


def test_a_text_with_the_name_of_a_special_token_is_ambiguous_if_the_template_has_special_tokens():
    chat = tokenizers.chatml()
    unambiguous = partial(tokenization.is_unambiguous, tokenizer=chat)
    assert unambiguous("<|im_start|>a<|im_end|>", template="<|im_start|>{text}<|im_end|>")
    assert not unambiguous("<|im_start|><|im_end|><|im_end|>", template="<|im_start|>{text}<|im_end|>")
    assert not unambiguous("<|im_start|><|user|>", template="<|im_start|>{text}")
    assert unambiguous("<|user|>", template="{text}"), "without special tokens in the template, every name is text"


@pytest.mark.parametrize(
    ("template", "premise"),
    [("{hypothesis}{premise}<|endoftext|>", "a"), ("{hypothesis}<|endoftext|>{premise}", "")],
)
def test_a_row_that_ends_with_the_pad_token_is_rejected(words, template, premise):
    """The classifier would read the token before it."""
    with pytest.raises(
        UserError, match=r"tokenize\.template: a row ends with <\|endoftext\|>, .* allowed at the end: "
    ):
        tokenization.encode_rows(frame(premise, "b"), words, template, 100)


def test_the_tokenizer_may_add_the_pad_token_at_the_end():
    """The classifier skips it and reads the template's last token."""
    ending = tokenizers.metaspace("first", ends=True)
    _, (ids,), _ = tokenization.encode_rows(frame("a", "b"), ending, "{premise}</s>{hypothesis} a", 100)
    assert ids[-1] == ending.pad_token_id != ids[-2]
    with pytest.raises(UserError, match="a row ends with </s>"):
        tokenization.encode_rows(frame("a", "b"), tokenizers.metaspace(), "{premise}{hypothesis}</s>", 100)


def test_a_special_token_that_the_tokenizer_does_not_read_in_the_template_is_rejected(words, nano_copy):
    """A token with the flag `single_word` is only read between spaces."""
    words = load_tokenizer(manifest_of(nano_copy))
    words.add_tokens([AddedToken("<sep>", single_word=True, special=True, normalized=False)], special_tokens=True)
    assert len(tokenization.encode_rows(frame("a", "b"), words, "{premise} <sep> {hypothesis}", 100)[1][0]) == 4
    with pytest.raises(UserError, match="does not read each of <sep> as a token there; allowed: a space"):
        tokenization.encode_rows(frame("a", "b"), words, "{premise}<sep>{hypothesis}", 100)


def test_a_tokenizer_without_offsets_is_rejected(nano_copy):
    """Truncation needs the offsets."""
    for name, text in {"vocab.json": '{"<unk>": 0, "a</w>": 1}', "merges.txt": "#version\n"}.items():
        (nano_copy / name).write_text(text)
    (nano_copy / "tokenizer.json").unlink()
    (nano_copy / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer", "pad_token": "<unk>"}')
    with pytest.raises(UserError, match=r"model: .*: no tokenizer\.json, and transformers can't convert its"):
        load_tokenizer(manifest_of(nano_copy))


def test_special_tokens_of_the_template_and_text_that_looks_like_one_are_described():
    lines = tokenization.describe_special_tokens(tokenizers.chatml(), "<|im_start|><|user|><|im_start|>{a}<|bot|>", "m")
    assert lines == [
        "tokenize.template: read as special tokens: <|im_start|>, <|user|>",
        "tokenize.template: read as text, since m has no such token: <|bot|>",
    ]
    assert tokenization.describe_special_tokens(tokenizers.chatml(), "Premise: {a} |> {b}", "m") == []


def count_fitting_characters(tokenizer, template, row, max_length):
    """The largest number of characters of each text with which a row fits. All numbers are tried."""
    cuts = [row.map(lambda text, end=end: text[:end]) for end in range(row.map(len).max() + 1)]
    sizes = tokenizer(fill_rows(template, pd.DataFrame(cuts)), split_special_tokens=True)["input_ids"]
    return max(end for end, ids in enumerate(sizes) if len(ids) <= max_length)


@pytest.mark.skipif(not PHI_2.is_dir(), reason="needs phi-2")
@pytest.mark.parametrize("max_length", [16, 24, 32])
def test_a_truncated_row_has_as_many_characters_as_fit(max_length):
    tokenizer = load_kind("phi-2")
    rows = pd.read_parquet(SHARED / "data/snli/test.parquet")[["premise", "hypothesis"]][:9_000:75]
    rows.columns = ["text_premise", "text_hypothesis"]
    texts, _, lengths = tokenization.encode_rows(rows, tokenizer, TEMPLATE, max_length)
    truncated = np.array(lengths) > max_length
    assert truncated.sum() > 60
    for i in np.flatnonzero(truncated):
        end = count_fitting_characters(tokenizer, TEMPLATE, rows.iloc[i], max_length)
        assert texts[i] == fill_rows(TEMPLATE, rows.iloc[[i]].map(lambda text, end=end: text[:end]))[0]


@pytest.mark.parametrize("name", LONG)
def test_truncation_encodes_a_row_few_times(words, name, monkeypatch):
    """Once whole, once with the predicted cut, and perhaps once or twice more; near the cut, only some words."""
    calls, call = [], type(words)._encode_plus
    monkeypatch.setattr(
        type(words), "_encode_plus", lambda self, text, *a, **k: calls.append(text) or call(self, text, *a, **k)
    )
    _, (ids,), _ = tokenization.encode_rows(frame(*LONG[name]), words, TEMPLATE, 48)
    assert len(ids) <= 48 and len(calls) <= 5
    assert [len(texts) for texts in calls if len(texts) > 1] in ([], [len(calls[-1])], [len(calls[-2])])
