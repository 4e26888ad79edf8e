"""Random mistakes in the task's parameters: each is an error of one line that names its key, without outputs."""

import random

import datasets
import pytest
import yaml
from helpers.parameters import set_key, unpinned_params, use
from helpers.project import NANO
from helpers.stages import error_line, run_stage_in_each, written

COUNT = 200  # mistakes drawn; 127 of them are distinct, and those run
COLUMNS = {
    "title": datasets.Value("string"),
    "body": datasets.Value("string"),
    "topic": datasets.Value("string"),
    "declared": datasets.ClassLabel(names=["sport", "art", "food"]),
    "stars": datasets.Value("int64"),
    "price": datasets.Value("float64"),
    "tags": datasets.List(datasets.Value("string")),
    "raw": datasets.Value("binary"),
    "id": datasets.Value("string"),
    "alike": datasets.Value("string"),
}
TOPICS = ["sport", "art", "food"]
CORRECT = {
    "data.label": "topic", "data.classes": TOPICS, "data.group": None, "data.subset": None, "data.unlabelled": "drop",
    "data.splits": dict.fromkeys(("train", "validation", "test"), "train"),
    "tokenize.template": "{title}\n{body}\nTopic:", "train.class_weights": None,
}  # fmt: skip
WRONG = [True, 0, 3.5, [], {}, ["a"], {"a": 1}, ""]  # for a key whose value is text
NAMES = [
    "no such",
    "Title",
    "title ",
    "🙂",
    "a\nb",
    "../x",
    "label",
    "'",
    "x" * 300,
    "data.label",
    "{title}",
    "-1",
    "%s",
]
SPLITS = ["test", "dev", "train[", "train[:", "train]", "train[a:b]", "train[:200%]", "train[-200%:]", "train[900:]",
          "train[3:3]", "train[1.5:]", "train+", "+", "train+dev", "train[:10%", "train (80%)", "all[9:1]",
          "train[::2]"]  # fmt: skip
UNSUITABLE = ["tags", "raw", "price", "id", "alike"]  # columns without classes
CLASSES = [
    TOPICS[:2], ["sport", "art", "foods"], [*TOPICS, "sport"], [*TOPICS, " art "], ["sport"], [], "sport, art, food",
    [True, False], ["sport", None, "food"], [["sport"], "art", "food"], [1.5, 2, 3], ["", "art", "food"],
    [f"class {number}" for number in range(1001)], {"sport": 0, "art": 1}, 3, True, ["sport", "art", "food\0"],
]  # fmt: skip


def draw_mistake(rng):
    """A random mistake: (dotted key, its value, words, one of which the error must contain)."""
    key = rng.choice(["label", "label", "classes", "classes", "group", "subset", "unlabelled", "splits", "splits",
                      "template", "template", "weights"])  # fmt: skip
    if key == "label":
        value = rng.choice([*NAMES, *UNSUITABLE, "body", *WRONG])
        return "data.label", value, ["data.label", "{body}", "data.classes"]
    if key == "classes":
        return "data.classes", rng.choice(CLASSES), ["data.classes"]
    if key == "group":
        return "data.group", rng.choice([*NAMES, *WRONG]), ["data.group"]
    if key == "subset":
        return "data.subset", rng.choice([*NAMES, *WRONG]), ["data.subset"]
    if key == "unlabelled":
        return "data.unlabelled", rng.choice([*NAMES, "Sport", "dropped", *WRONG]), ["data.unlabelled"]
    if key == "splits":
        split = rng.choice(["train", "validation", "test"])
        value = rng.choice([*SPLITS, *SPLITS, *NAMES, *WRONG])
        return f"data.splits.{split}", value, [f"data.splits.{split}"]
    if key == "template":
        column = rng.choice(
            [*(name for name in NAMES if "{" not in name), "stars", "price", "tags", "raw", "topic", "declared"]
        )
        value = rng.choice(
            [f"{{{column}}}", f"{{title}} {{{column}}}", f"{{{column}}}: {{body}}", "title", "{}", *WRONG]
        )
        return "tokenize.template", value, ["tokenize.template"]
    return "train.class_weights", rng.choice([*NAMES, "Balanced", [1, 2, 3], 1, True]), ["train.class_weights"]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """A data set with columns of every type."""
    folder = tmp_path_factory.mktemp("reviews") / "data"
    folder.mkdir()
    rows = 60
    columns = {
        "title": [f"title {i}" for i in range(rows)], "body": [f"a man sleeps {i}" for i in range(rows)],
        "topic": [TOPICS[i % 3] for i in range(rows)], "declared": [i % 3 for i in range(rows)],
        "stars": [i % 5 for i in range(rows)], "price": [i + 0.5 for i in range(rows)],
        "tags": [["a", "b"]] * rows, "raw": [b"a"] * rows, "id": [f"row {i}" for i in range(rows)],
        "alike": ["a"] * rows,
    }  # fmt: skip
    datasets.Dataset.from_dict(columns, features=datasets.Features(COLUMNS)).to_parquet(folder / "train.parquet")
    return folder


def write_case(folder, data, key=None, value=None):
    """Write a folder for the stages, with one mistake or with none."""
    raw = unpinned_params()
    use(raw, "model", str(NANO))
    use(raw, "data", str(data))
    for name, default in CORRECT.items():
        set_key(raw, name, dict(default) if isinstance(default, dict) else default)
    if key:
        set_key(raw, key, value)
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, allow_unicode=True))
    return folder


@pytest.fixture(scope="module")
def outcomes(reviews, tmp_path_factory):
    """([(mistake, finished process, files in its folder)], the finished process without a mistake)."""
    top, rng = tmp_path_factory.mktemp("mistakes"), random.Random(12)
    drawn = [draw_mistake(rng) for _ in range(COUNT)]
    mistakes = list({repr(each): each for each in drawn}.values())  # 127: a mistake that is drawn twice runs once
    folders = [write_case(top / f"{number}", reviews, key, value) for number, (key, value, _) in enumerate(mistakes)]
    done = run_stage_in_each("download,tokenize", [*folders, write_case(top / "correct", reviews)])
    results = [(mistake, done[folder.name], written(folder)) for mistake, folder in zip(mistakes, folders, strict=True)]
    return results, done["correct"]


def test_the_stages_run_without_a_mistake(outcomes):
    assert outcomes[1].returncode == 0, outcomes[1].stderr


def test_each_mistake_is_an_error_of_one_line_that_names_its_key(outcomes):
    wrong = []
    for (key, value, words), done, _ in outcomes[0]:
        try:
            line = error_line(done)
        except AssertionError as error:
            wrong.append(f"{key}: {value!r:.60}: {error!s:.300}")
            continue
        if not any(word in line for word in words) or len(line) > 3000:
            wrong.append(f"{key}: {value!r:.60}: {line:.300}")
    assert not wrong, "\n".join(wrong)


def test_a_mistake_leaves_no_output_of_tokenize(outcomes):
    """The outputs of `download` may be there, if `tokenize` found the mistake."""
    for mistake, _, files in outcomes[0]:
        outputs = [
            name
            for name in files
            if name.startswith(("outs/tokenized", "outs/task", "outs/data_summary")) or ".tmp" in name
        ]
        assert outputs == [], mistake
