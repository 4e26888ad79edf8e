"""params.yaml: which values are valid, and the message for each kind of mistake."""

import contextlib
import re
import shutil
from typing import get_args

import pytest
import yaml
from dvc.utils.serialize import modify_yaml
from helpers.parameters import set_key
from helpers.project import COMMITTED
from helpers.stages import error_line, run_stage, written

from stages.analysis import references
from stages.runtime import errors, params
from stages.runtime.errors import UserError

BOTH = (COMMITTED, COMMITTED / "demo")
REMOVED = object()  # the key is removed

# name: (key, wrong value, words of the message besides the key)
BAD_VALUES = {
    "text for a number": ("lora.r", "abc", "'abc'"),
    "out of range": ("lora.r", 0, "not 0"),
    "negative": ("train.weight_decay", -1, "-1"),
    "huge": ("lora.r", 10**30, "1024"),
    "fraction for an integer": ("data.train_rows", 1.5, "1.5"),
    "NaN": ("train.learning_rate", float("nan"), "nan"),
    "a rate too high for float32": ("train.learning_rate", 1e39, "1e+39"),
    "infinity": ("train.max_grad_norm", float("inf"), "inf"),
    "true for a number": ("seed", True, "true or false"),
    "true for a float": ("train.learning_rate", True, "true or false"),
    "true for an optional number": ("threads", True, "true or false"),
    "no row at once": ("train.micro_batch", 0, "must be auto, or a number of rows from 1 to 65,536, not 0"),
    "a word for auto or a number": ("train.micro_batch", "abc", "must be auto, or a number of rows"),
    "a fraction for auto or a number": ("train.micro_batch", 1.5, "not 1.5"),
    "true for auto or a number": ("train.micro_batch", True, "must be auto, or a number of rows"),
    "null for auto or a number": ("train.micro_batch", None, "must be auto, or a number of rows"),
    "a word for auto, true or false": ("train.gradient_checkpointing", "maybe", "must be auto, true or false"),
    "unknown choice": ("device", "tpu", "'cuda' or 'cpu'"),
    "unknown key in a section": ("lora.rank", 8, "unknown key"),
    "unknown key at the top": ("learning_rate", 8, "unknown key"),
    "missing key": ("lora.r", REMOVED, "missing"),
    "missing section": ("train", REMOVED, "missing"),
    "number for a section": ("lora", 3, "not 3"),
    "null for a section": ("eval", None, "not None"),
    "empty text": ("model.folder", "", "at least 1 character"),
    "number for text": ("data.folder", 5, "not 5"),
    "NUL in text": ("data.folder", "a\0b", "pattern"),
    "invalid regular expression": ("lora.target_modules", "*proj", "nothing to repeat"),
    "fp16 without 4-bit products": ("model.precision", "fp16", "quantization: none"),
    "no modules": ("lora.target_modules", [], "at least 1 item"),
    "template without a column": ("tokenize.template", "Text:", "such as {text}"),
    "template of empty braces": ("tokenize.template", "{} {{}}", "such as {text}"),
    "template with a backslash": ("tokenize.template", "{text}\\nMood:", "in double quotes"),
    "one class": ("data.classes", ["a"], "must name 2 to 1,000 classes"),
    "text for the classes": ("data.classes", "a, b", "valid list"),
    "a class twice": ("data.classes", ["a", "b", "a "], "each class once ('a' is there twice)"),
    "a class that YAML reads as true": ("data.classes.1", True, "quote a name such as 'yes'"),
    "an empty class": ("data.classes.0", " ", "must not be blank"),
    "a class that is a fraction": ("data.classes.2", 1.5, "valid string"),
    "no label": ("data.label", None, "must be a column, or a list of 2 to 1,000"),
    "one column of 0 and 1": ("data.label", ["toxic"], "must be a column, or a list of 2 to 1,000"),
    "a column of 0 and 1 twice": ("data.label", ["toxic", "toxic"], "must be a column, or a list of 2 to 1,000"),
    "a path as a name": ("model.name", "./nano", "set a path as `folder`"),
    "a whole path as a name": ("data.name", "/data/reviews", "set a path as `folder`"),
    "none for no revision": ("data.revision", "none", "a commit of the hub, or null"),
    "a digest as a revision": ("model.revision", "0" * 64, "the digest of a folder's files is `digest` now"),
    "none for no digest": ("model.digest", "none", "or null for no check"),
    "no folder": ("data.folder", REMOVED, "set a path, or from_hub with data.name and data.revision"),
    "the old key of DVC's folders": ("watch", {"model": "nano", "data": "reviews"}, "remove it, and set model.folder"),
    "no split": ("data.splits.test", "", "at least 1 character"),
    "a split too many": ("data.splits.dev", "dev", "unknown key"),
    "other weights": ("train.class_weights", "uniform", "'balanced'"),
    "a list of weights": ("train.class_weights", [1, 2, 3], "'balanced'"),
}

# name: (content of params.yaml, words of the message)
BAD_FILES = {
    "empty": (b"", "NoneType"),
    "broken": (b"lora: [", "not valid YAML"),
    "base 8": (b"data: {classes: [010, 011]}", "YAML reads 010 in base 8: quote it if it is a name"),
    "list": (b"- 1", "list"),
    "object": (b"!!python/object/apply:os.system ['touch pwned']", "not valid YAML"),
    "latin": (b"\xff", "not readable"),
    "control": (b"\x00", "not valid YAML"),
}


def error_of(folder, content):
    """The error line for a params.yaml with this content; None: there is no file."""
    if content is not None:
        (folder / "params.yaml").write_bytes(content)
    with contextlib.chdir(folder), pytest.raises(UserError) as caught:
        params.load()
    return errors.one_line(caught.value)


@pytest.mark.parametrize("name", BAD_VALUES)
def test_a_wrong_value_is_reported_in_one_line_with_file_and_key(tmp_path, raw_params, name):
    key, value, words = BAD_VALUES[name]
    if key.startswith("data.classes."):  # a member of the list
        raw_params["data"]["classes"][int(key[-1])] = value
    else:
        set_key(raw_params, key, value)
    if name == "fp16 without 4-bit products":
        raw_params["model"]["quantization"] = "none"
    if value is REMOVED:
        *sections, leaf = key.split(".")
        del (raw_params[sections[0]] if sections else raw_params)[leaf]
    line = error_of(tmp_path, yaml.safe_dump(raw_params).encode())
    assert line.startswith(f"params.yaml: {key}: ")
    assert words in line
    assert ";" not in line or name == "no modules", "one message for one mistake"


@pytest.mark.parametrize("name", BAD_FILES)
def test_an_unreadable_file_is_reported_in_one_line(tmp_path, name):
    content, words = BAD_FILES[name]
    line = error_of(tmp_path, content)
    assert line.startswith("params.yaml: ")
    assert words in line
    assert not (tmp_path / "pwned").exists()


def test_a_missing_file_is_reported_in_one_line(tmp_path):
    assert error_of(tmp_path, None).startswith("params.yaml: not readable")


def test_a_stage_prints_the_line_and_writes_nothing(tmp_path, raw_params):
    raw_params["lora"]["r"] = "abc"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw_params))
    assert error_line(run_stage("download", tmp_path)).startswith("error: params.yaml: lora.r: ")
    assert written(tmp_path) == []


def test_classes_may_be_integers(make_params):
    assert make_params(data__classes=[-1, 0, 1]).data.classes == ["-1", "0", "1"]


def test_every_mistake_is_reported(tmp_path, raw_params):
    raw_params["lora"]["r"] = 0
    raw_params["train"]["epochs"] = "many"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw_params))
    with pytest.raises(UserError, match=r"lora\.r: .*; train\.epochs: "):
        params.load(tmp_path / "params.yaml")


def test_a_params_yaml_of_version_0_1_0_is_rejected_in_one_line_that_says_what_to_write(tmp_path):
    old = {"model": "assets/nano-phi", "data": "assets/everyday-nli"}
    raw = yaml.safe_load((COMMITTED / "demo/params.yaml").read_text())
    for section, name in old.items():
        raw[section] |= {"name": name, "revision": raw[section]["digest"]}
        del raw[section]["folder"], raw[section]["digest"]
    for key in ("read", "split", "holdout", "duplicates"):
        del raw["data"][key]
    del raw["tokenize"]["chat"], raw["tokenize"]["system"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw | {"watch": old}))
    with pytest.raises(UserError) as caught:
        params.load(tmp_path / "params.yaml")
    line = str(caught.value)
    for section in old:
        assert f"{section}.folder: missing: set a path, or from_hub with {section}.name and {section}.revision;" in line
        assert f"{section}.revision: must be a commit of the hub, or null: the digest of a folder's files is" in line
    for key in ("model.digest", "data.digest", "data.read", "data.split", "data.holdout", "data.duplicates"):
        assert f"; {key}: missing;" in line
    assert "tokenize.chat: missing; tokenize.system: missing;" in line
    assert line.endswith(
        "watch: no longer a key: remove it, and set model.folder and data.folder, whose files DVC watches"
    )


def test_the_hub_needs_a_name_and_a_commit(raw_params):
    raw_params["data"]["folder"] = params.FROM_HUB
    with pytest.raises(UserError) as caught:
        params.validate(raw_params, params.Params, "params.yaml")
    for key in ("name", "revision"):
        assert f"data.{key}: must not be empty with folder: from_hub" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "number"), [("2e-05", 2e-5), ("1e-4", 1e-4), ("0.5", 0.5)]
)  # DVC's -S writes 2e-05, which YAML 1.1 reads as text
def test_a_number_may_be_written_as_text(tmp_path, text, number):
    content = (COMMITTED / "demo/params.yaml").read_text()
    changed, count = re.subn(r"learning_rate: \S+", f"learning_rate: {text}", content)
    assert count == 1
    (tmp_path / "params.yaml").write_text(changed)
    assert params.load(tmp_path / "params.yaml").train.learning_rate == number


@pytest.mark.parametrize("folder", BOTH, ids=["root", "demo"])
def test_the_committed_files_are_valid(folder):
    assert params.load(folder / "params.yaml").seed == 42


def leaves(raw, prefix=""):
    """Dotted keys of nested dicts."""
    return [
        key
        for name, value in raw.items()
        for key in (leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name])
    ]


def test_root_and_demo_have_the_same_keys_in_the_same_order():
    root, demo = (yaml.safe_load((folder / "params.yaml").read_text()) for folder in (COMMITTED, COMMITTED / "demo"))
    assert leaves(root) == leaves(demo)


def test_the_root_has_the_published_recipe():
    p = params.load(COMMITTED / "params.yaml")
    assert (p.model.name, p.data.name, p.device) == ("microsoft/phi-2", "stanfordnlp/snli", "cuda")
    assert p.model.folder == p.data.folder == params.FROM_HUB
    assert len(p.model.revision) == len(p.data.revision) == 40, "pinned to a commit"
    assert (p.data.train_rows, p.data.validation_rows, p.data.test_rows) == (1000, 100, 100)
    assert (p.lora.r, p.lora.alpha, p.lora.dropout, p.lora.target_modules) == (16, 64, 0.05, "all-linear")
    assert (p.train.epochs, p.train.batch_size, p.train.learning_rate, p.train.schedule) == (5, 16, 1e-4, "linear")
    assert (p.model.quantization, p.tokenize.max_length) == ("nf4", 128)


def test_a_stage_cannot_change_parameters(make_params):
    with pytest.raises(ValueError, match="frozen"):
        make_params().lora.r = 8


def test_a_change_by_dvc_changes_only_one_line(tmp_path):
    """`dvc exp run -S` rewrites the whole file."""
    for folder in BOTH:
        path = tmp_path / "params.yaml"
        shutil.copy(folder / "params.yaml", path)
        before = path.read_text().splitlines()
        with modify_yaml(path) as raw:
            raw["lora"]["r"] = 8
        after = path.read_text().splitlines()
        assert len(before) == len(after)
        changed = [new for old, new in zip(before, after, strict=True) if old != new]
        assert [line.split("#")[0].strip() for line in changed] == ["r: 8"]


def test_the_references_that_params_allows_are_those_of_the_analysis():
    assert get_args(params.Reference) == references.REFERENCES
    assert set(references.OF_LANGUAGE_MODEL) < set(references.REFERENCES)
