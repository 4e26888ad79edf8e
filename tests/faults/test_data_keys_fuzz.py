"""Random values of the keys for data, splits, chat and folders: each is read as written, or is an error of one line.

The error names the key, and nothing is written. A mistake that params.py finds costs no stage.
"""

import math
import random
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers.parameters import set_key, unpinned_params, use
from helpers.project import NANO
from helpers.stages import error_line, run_stage_in_each, written

from stages.runtime import params
from stages.runtime.errors import UserError

COUNT = 300  # mutations drawn; those that occur twice run once
RUN_ANYWAY = 10  # of the mutations that params.py rejects: a stage prints the same line
ROWS = 120
TOPICS = ["sport", "art", "food"]
OWN_SPLITS = {"train": "train", "validation": "dev", "test": "test"}
WRONG = [True, 0, -1, 3.5, [], {}, ["a"], {"a": 1}, "", " ", "\0", "🙂", "x" * 500, "a\nb", "null", "{title}"]
SIZES = [
    "0%", "100%", "99.9%", "0.0001%", "50%", "99%", "60", "119", "120", "121", "1000000", "1", "2", 1, 2, 30, 0, -5,
    1.5, 10.5, "10 %", "%", "1e1%", "-10%", "0.1", "10.5%", "010%", "١٠%", "10%%", True, [], {}, ["10%"], "all",
]  # fmt: skip
FOLDERS = [
    "no/such", "/no/such", "~", "~/data", "~root", "../data", "../../data", "..", ".", "./", "outs", "./outs",
    "outs/splits", "metrics", "outs/../outs", "params.yaml", "/dev/null", "/", "From_hub", "from_hub ", "from_hub",
    "https://example.com/a.csv", "hf://datasets/a/b", "file:///tmp", "-", "*", "$HOME", "empty", "notes", "two kinds",
    "a.csv/b", "headless.csv.gz",
]  # fmt: skip
DIGESTS = ["0" * 64, "0" * 63, "A" * 64, "g" * 64, "none", "main", f" {'0' * 64}"]
ENCODINGS = [
    "no such", "hex", "rot13", "base64", "zlib", "bz2", "uu", "quopri", "undefined", "mbcs", "ascii", "utf-16",
    "utf-32", "utf-7", "idna", "punycode", "big5", "shift_jis", "UTF8 ", "latin-1", "cp1252", "utf-8-sig", "utf_8",
]  # fmt: skip
SEPARATORS = [";", "\t", "|", ";;", "\n", "\r", "\\", '"', "'", "a", "1", " ", ",", ",,", "tab", r"\t", r"\s+", "é"]
QUOTES = ["''", '""', "'", ",", "\n", "a", "|", '"', "“"]
HEADER = ["title", "body", "topic", "author", "set"]
NAMES = [
    HEADER, HEADER[:-1], HEADER[:1], [*HEADER, "more"], [*HEADER[:-1], "title"], ["title"] * 5, [*HEADER[:-1], ""],
    [*HEADER[:-1], 5], [*HEADER[:-1], None], [*HEADER[:-1], ["set"]], HEADER[::-1], ["a", "b", "c", "d", "e"],
    ",".join(HEADER), dict.fromkeys(HEADER, "text"), [f"column {n}" for n in range(1000)], [*HEADER[:-1], "{set}"],
]  # fmt: skip
COLUMNS = [
    "no such",
    "Title",
    "title ",
    "title",
    "body",
    "topic",
    "author",
    "set",
    "id",
    "label",
    "group",
    "text_title",
]


KEYS = {  # where an error may name another key, which the mutation makes wrong
    "data.folder": ["data.folder", "data.name: must not be empty with folder"],
    "model.folder": ["model.folder", "model.name: must not be empty with folder"],
    "data.read.names": ["data.read.names", "tokenize.template: {title}: split 'train' has no such column"],
    "data.holdout.columns": ["data.holdout.columns", "because rows with equal"],
}


def draw_mutation(rng):
    """(changes as {dotted key: value}, whether the data file has a header)."""
    kind = rng.choice(list(KINDS))
    return KINDS[kind](rng)


def pick(key, *values):
    """A kind of mutation that sets one key to one of the values, or to one of WRONG."""
    return lambda rng: {key: rng.choice([*values, *values, *WRONG])}


def change_splits(rng):
    """The file's own splits, of which one is empty or something else."""
    split = rng.choice(list(OWN_SPLITS))
    value = rng.choice([None, None, "train", "dev", "no such", "train[:50%]", "dev[", "train+dev", *WRONG])
    return {"data.split": "set", "data.splits": OWN_SPLITS | {split: value}, "data.holdout": no_holdout()}


def change_split_column(rng):
    column = rng.choice([*COLUMNS, *WRONG])
    values = rng.choice([OWN_SPLITS, {**OWN_SPLITS, "test": None}, dict.fromkeys(OWN_SPLITS, "train")])
    return {"data.split": column, "data.splits": values, "data.holdout": no_holdout()}


def change_both(rng):
    """Splits and a holdout for the same rows, or neither."""
    named = {"validation": rng.choice([None, "train[:20%]"]), "test": rng.choice([None, "train[80%:]"])}
    sizes = {split: rng.choice([None, "10%"]) for split in named}
    return {
        "data.splits": {"train": rng.choice(["train", "train[20%:80%]"]), **named},
        "data.holdout": no_holdout() | sizes,
    }


def change_sizes(rng):
    validation, test = (rng.choice(["10%", "20", "50%", "40%", "60%", "99%", "0.5%", 60, *SIZES]) for _ in range(2))
    return {"data.holdout.validation": validation, "data.holdout.test": test}


def change_dialect(rng):
    keys = rng.sample(["sep", "encoding", "quotechar", "names"], 2)
    values = {"sep": SEPARATORS, "encoding": ENCODINGS, "quotechar": QUOTES, "names": NAMES}
    return {f"data.read.{key}": rng.choice(values[key]) for key in keys}


def change_source(rng):
    """The keys of a folder and of the hub at the same time, or a part of them."""
    section = rng.choice(["data", "model"])
    values = {
        "folder": ["from_hub", "no/such"], "name": [None, "a/b", "./a", "/a", "~/a", "a b/c", 5, "a/b/c", "..", ""],
        "revision": [None, "main", "none", "0" * 64, "0" * 40, 7, "a b", ""], "digest": [None, *DIGESTS],
    }  # fmt: skip
    keys = rng.sample(list(values), rng.randint(1, 4))
    return {f"{section}.{key}": rng.choice(values[key]) for key in keys}


def change_holdout_columns(rng):
    columns = rng.choice(
        [*([name] for name in COLUMNS), ["title", "title"], ["title", "no such"], [], [1], [None], *WRONG]
    )
    return {"data.holdout.columns": columns, "data.group": rng.choice([None, "author"])}


def no_holdout():
    return {"validation": None, "test": None, "seed": 42, "columns": None}


KINDS = {
    "folder": pick("data.folder", *FOLDERS), "digest": pick("data.digest", *DIGESTS), "source": change_source,
    "model folder": pick("model.folder", *FOLDERS), "model digest": pick("model.digest", *DIGESTS),
    "sep": pick("data.read.sep", *SEPARATORS), "encoding": pick("data.read.encoding", *ENCODINGS),
    "quotechar": pick("data.read.quotechar", *QUOTES), "names": pick("data.read.names", *NAMES),
    "dialect": change_dialect, "split": change_split_column, "splits": change_splits, "both": change_both,
    "validation": pick("data.holdout.validation", *SIZES), "test": pick("data.holdout.test", *SIZES),
    "sizes": change_sizes, "seed": pick("data.holdout.seed", 0, 2**32 - 1, 2**32, "42", "4.2", None, 10**30),
    "columns": change_holdout_columns, "duplicates": pick("data.duplicates", "keep", "drop", "Drop", "dropped", None),
    "chat": pick("tokenize.chat", True, "yes", "true", 1, 2, None),
    "system": lambda rng: {"tokenize.system": rng.choice(["Be brief.", "{title}", None, *WRONG]),
                           "tokenize.chat": rng.choice([True, False])},
    "read": pick("data.read", None, {}, {"sep": ";"}, {"delimiter": ";"}, [";"]),
    "holdout": pick("data.holdout", None, {}, "10%", {"test": "10%"}, ["10%", "10%"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder next to the cases: one csv file with a column for each key, and places that are no data."""
    top = tmp_path_factory.mktemp("data")
    rows = pd.DataFrame(
        {"title": [f"title {n} für {n} €" for n in range(ROWS)], "body": [f"a man, sleeping {n}" for n in range(ROWS)],
         "topic": [TOPICS[n % 3] for n in range(ROWS)], "author": [f"author {n // 4}" for n in range(ROWS)],
         "set": [("train", "train", "train", "dev", "test")[n // 3 % 5] for n in range(ROWS)]}
    )  # fmt: skip
    rows.to_csv(top / "own.csv", index=False)
    return top / "own.csv"


def write_case(folder, data, changes):
    """Write a folder for the stages in which some keys are changed."""
    raw = unpinned_params()
    use(raw, "model", str(NANO))
    use(raw, "data", str(data))
    correct = {
        "data.label": "topic", "data.classes": None, "data.group": "author",
        "data.splits": {"train": "train", "validation": None, "test": None},
        "data.holdout": no_holdout() | {"validation": "10%", "test": "20%"},
        "tokenize.template": "{title}\n{body}\nTopic:",
    }  # fmt: skip
    for key, value in (correct | changes).items():
        set_key(raw, key, value)
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, allow_unicode=True))
    (folder / "empty").mkdir()
    for name, files in {"notes": ["notes.txt"], "two kinds": ["a.csv", "b.json"]}.items():
        (folder / name).mkdir()
        for file in files:
            (folder / name / file).write_text("title,topic\n")
    return folder


def is_same(value, given):
    """Whether a value was read as written. A number may be written as text."""
    if isinstance(given, dict):
        return value == dict.fromkeys(value) | given
    if isinstance(value, bool) or isinstance(given, bool) or value is None or given is None:
        return value == given or (isinstance(value, bool) and str(given) in ("0", "1", "yes", "true"))
    if isinstance(value, (int, float)):
        return math.isclose(value, float(given))
    return value == given or value == str(given)


@pytest.fixture(scope="module")
def outcomes(data, tmp_path_factory):
    """([(changes, folder)], {folder: files before}, {folder: line of params.py}, {folder's name: finished stages})."""
    top, rng = tmp_path_factory.mktemp("mutations"), random.Random(26)
    drawn = {repr(changes): changes for changes in (draw_mutation(rng) for _ in range(COUNT))}
    cases = [(changes, write_case(top / f"{n}", data, changes)) for n, changes in enumerate(drawn.values())]
    before = {folder: written(folder) for _, folder in cases}
    early = {folder: line for _, folder in cases if (line := load_error(folder))}
    run = [folder for _, folder in cases if folder not in early] + list(early)[:RUN_ANYWAY]
    done = run_stage_in_each("download,tokenize", [*run, write_case(top / "correct", data, {})])
    assert done.pop("correct").returncode == 0
    return cases, before, early, done


def load_error(folder):
    """The line with which params.py rejects a case's file; None if it accepts it."""
    try:
        params.load(folder / "params.yaml")
    except UserError as error:
        return " ".join(str(error).replace(str(folder / "params.yaml"), "params.yaml").split())
    return None


def find_line(done, folder, early):
    """The error line of a case that was rejected; None for one that was accepted."""
    if folder.name not in done:
        return f"error: {early[folder]}"
    return None if done[folder.name].returncode == 0 else error_line(done[folder.name])


def test_each_mutation_is_accepted_or_an_error_of_one_line_that_names_its_key(outcomes):
    cases, _, early, done = outcomes
    wrong = []
    for changes, folder in cases:
        try:
            line = find_line(done, folder, early)
        except AssertionError as error:
            wrong.append(f"{folder.name} {changes!r:.200}: {error!s:.600}")
            continue
        if line and (len(line) > 3000 or not any(word in line for key in changes for word in KEYS.get(key, [key]))):
            wrong.append(f"{folder.name} {changes!r:.200}: {line:.400}")
        if line and folder in early and folder.name in done and line != f"error: {early[folder]}":
            wrong.append(f"{folder.name} {changes!r:.200}: the stage says {line:.200}")
    assert not wrong, "\n".join(wrong)


def test_an_accepted_mutation_is_read_as_written(outcomes):
    cases, _, early, done = outcomes
    wrong = []
    for changes, folder in cases:
        if folder in early or done[folder.name].returncode:
            continue
        p = params.load(folder / "params.yaml").model_dump()
        for key, given in changes.items():
            value = p
            for part in key.split("."):
                value = value[part]
            if not is_same(value, given):
                wrong.append(f"{changes!r:.200}: {key} is read as {value!r:.60}")
    assert not wrong, "\n".join(wrong)


def test_a_mutation_that_is_rejected_leaves_no_half_of_a_stage(outcomes):
    """The outputs of `download` may be there, if `tokenize` found the mistake."""
    cases, before, _, done = outcomes
    for changes, folder in cases:
        if folder.name in done and done[folder.name].returncode:
            files = {Path(name) for name in written(folder)} - set(map(Path, before[folder]))
            stage = {path.parts[1] for path in files}
            assert stage <= {"splits", "data_source.json", "base_model.json"}, (changes, files)
            assert not files or len(stage) == 3, (changes, files)


def test_the_accepted_mutations_have_the_classes_and_all_rows_of_the_file(outcomes):
    cases, _, early, done = outcomes
    wrong = []
    for changes, folder in cases:
        if folder in early or done[folder.name].returncode:
            continue
        classes = yaml.safe_load((folder / "outs/task.json").read_text())["classes"]
        rows = {path.stem: len(pd.read_parquet(path)) for path in (folder / "outs/tokenized").glob("*.parquet")}
        specs = [spec for spec in changes.get("data.splits", {}).values() if spec]
        overlap = len(set(specs)) < len(specs) or any(set("[+") & set(spec) for spec in specs)
        if classes != sorted(TOPICS) or not all(rows.values()) or (sum(rows.values()) != ROWS and not overlap):
            wrong.append(f"{changes!r:.200}: {classes} {rows}: {done[folder.name].stdout:.300}")
    assert not wrong, "\n".join(wrong)
