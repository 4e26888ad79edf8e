"""Which rows `data.holdout` holds out: they depend on the rows' content, and on nothing else that may change.

Each test runs the stages `download` and `tokenize` on files of the same rows.
"""

import random

import pandas as pd
import pytest
import yaml
from helpers.parameters import set_key, unpinned_params, use
from helpers.project import NANO

from stages import download, tokenize

KINDS = ["red", "green", "blue"]
WORDS = ["apple", "bird", "car", "door", "egg", "fish", "für 5 €", "猫", 'a "quote"', "a, b", "it's", "1.0", "NA"]
KEYS = {
    "data.label": "kind", "data.classes": None, "data.group": None,
    "data.splits": {"train": "train", "validation": None, "test": None},
    "data.holdout": {"validation": "10%", "test": "20%", "seed": 42, "columns": ["text", "title"]},
    "tokenize.template": "{title}\n{text}\nKind:",
}  # fmt: skip
GROUPS = pytest.mark.parametrize("group", [None, "author"])
WRITERS = {
    "csv": lambda rows, path: rows.to_csv(path, index=False),
    "csv.gz": lambda rows, path: rows.to_csv(path, index=False),
    "tsv": lambda rows, path: rows.to_csv(path, index=False, sep="\t"),
    "jsonl": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    "json": lambda rows, path: rows.to_json(path, orient="records", force_ascii=False),
    "parquet": lambda rows, path: rows.to_parquet(path, index=False),
}


def make_rows(count=400, seed=1, kinds=KINDS):
    """Rows with a text that no other row has, a title that some share, an author of about four rows, and a class."""
    rng = random.Random(seed)
    rows = [
        {
            "title": rng.choice(WORDS),
            "text": f"{' '.join(rng.choices(WORDS, k=6))} {seed} {number}",
            "author": f"author {seed} {rng.randrange(count // 4)}",
            "kind": rng.choices(kinds, weights=range(1, len(kinds) + 1))[0],
        }
        for number in range(count)
    ]
    return pd.DataFrame(rows)


ROWS = make_rows()


def shuffle(rows):
    return rows.sample(frac=1, random_state=5)


@pytest.fixture(scope="module")
def hold_out(tmp_path_factory):
    """A function: run the two stages on rows in a kind of file -> {split: set of (title, text, class)}."""

    def run(rows, changes, kind="csv"):
        folder = tmp_path_factory.mktemp("holdout")
        WRITERS[kind](rows, folder / f"own.{kind}")
        raw = unpinned_params()
        use(raw, "model", str(NANO))
        use(raw, "data", f"own.{kind}")
        for key, value in (KEYS | changes).items():
            set_key(raw, key, value)
        (folder / "params.yaml").write_text(yaml.safe_dump(raw, allow_unicode=True))
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            download.main()
            tokenize.main()
        return read_splits(rows, folder)

    return run


def read_splits(rows, folder):
    """The rows of the file that are in each split, by their texts: {split: set of (title, text, class)}."""
    classes = yaml.safe_load((folder / "outs/task.json").read_text())["classes"]
    splits, rows = {}, rows.drop_duplicates("text").set_index("text")
    for path in (folder / "outs/tokenized").glob("*.parquet"):
        frame = pd.read_parquet(path)
        found = rows.loc[frame["text_text"]]
        assert [classes[number] for number in frame["label"]] == found["kind"].tolist()
        splits[path.stem] = set(zip(found["title"], found.index, found["kind"], strict=True))
    train, validation, test = (splits[split] for split in ("train", "validation", "test"))
    assert not (train & validation or train & test or validation & test)
    return splits


@pytest.fixture(scope="module")
def base(hold_out):
    """{group column: splits of ROWS}."""
    return {group: hold_out(ROWS, {"data.group": group}) for group in (None, "author")}


@GROUPS
def test_all_rows_are_in_a_split_and_each_class_has_its_share(base, group):
    splits = base[group]
    assert sum(map(len, splits.values())) == len(ROWS)
    for kind, count in ROWS["kind"].value_counts().items():
        for split, share in (("test", 0.2), ("validation", 0.1)):
            rows = sum(row[2] == kind for row in splits[split])
            assert rows == pytest.approx(share * count, abs=0.51 if group is None else 5)


def test_an_author_is_in_one_split(base):
    authors = ROWS.set_index("text")["author"]
    train, validation, test = (
        {authors[text] for _, text, _ in base["author"][split]} for split in ("train", "validation", "test")
    )
    assert not (train & validation or train & test or validation & test)


@GROUPS
def test_the_order_of_the_rows_changes_no_split(hold_out, base, group):
    for rows in (shuffle(ROWS), ROWS.sort_values("kind")):
        assert hold_out(rows, {"data.group": group}) == base[group]


@GROUPS
@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "csv"])
def test_the_format_of_the_file_changes_no_split(hold_out, base, kind, group):
    assert hold_out(ROWS, {"data.group": group}, kind) == base[group]


def test_groups_that_are_numbers_are_the_same_in_each_format(hold_out):
    """Some are missing, so pandas writes 1.0 for 1 in a csv file."""
    numbers = ROWS["author"].str.split().str[-1].astype(float).where(ROWS.index % 7 > 0)
    rows, changes = ROWS.assign(author=numbers), {"data.group": "author"}
    splits = hold_out(rows, changes)
    for kind in ("parquet", "jsonl"):
        assert hold_out(shuffle(rows), changes, kind) == splits
    assert hold_out(rows.assign(author=numbers.astype("Int64")), changes) == splits


def test_only_the_holdout_s_own_seed_changes_the_splits(hold_out, base):
    others = {"seed": 7, "train.batch_size": 8, "train.epochs": 1, "lora.r": 4, "tokenize.max_length": 100}
    assert hold_out(ROWS, others) == base[None]
    assert hold_out(ROWS, {"data.holdout": KEYS["data.holdout"] | {"seed": 7}})["test"] != base[None]["test"]


@GROUPS
def test_another_template_changes_no_split_if_the_columns_are_set(hold_out, base, group):
    assert hold_out(ROWS, {"tokenize.template": "Colour of {text}:", "data.group": group}) == base[group]


def test_the_order_of_columns_and_classes_changes_no_split(hold_out, base):
    holdout = KEYS["data.holdout"] | {"columns": ["title", "text"]}
    rows = ROWS[["kind", "author", "text", "title"]].assign(more="x")
    assert hold_out(rows, {"data.holdout": holdout, "data.classes": KINDS}) == base[None]


@pytest.mark.parametrize("size", ["25%", "30"])
def test_the_size_of_the_validation_split_does_not_change_the_test_rows(hold_out, base, size):
    holdout = KEYS["data.holdout"] | {"validation": size}
    assert hold_out(ROWS, {"data.holdout": holdout})["test"] == base[None]["test"]


@GROUPS
def test_new_rows_of_another_class_change_no_held_out_row(hold_out, base, group):
    """With a group column, the new rows are of authors of their own."""
    rows = pd.concat([ROWS, make_rows(150, seed=2, kinds=["yellow"])], ignore_index=True)
    splits = hold_out(shuffle(rows), {"data.group": group})
    assert {split: {row for row in splits[split] if row[2] != "yellow"} for split in splits} == base[group]


def test_new_rows_of_the_same_classes_replace_few_test_rows(hold_out, base):
    rows = pd.concat([ROWS, make_rows(40, seed=3)], ignore_index=True)
    before, after = base[None]["test"], hold_out(rows, {})["test"]
    assert len(before) == pytest.approx(80, abs=2) and len(after) == pytest.approx(88, abs=2)
    assert len(before - after) <= 4


def test_equal_rows_are_in_one_split_whatever_their_order(hold_out):
    rows = pd.concat([ROWS, ROWS[:100]], ignore_index=True)
    splits = hold_out(rows, {})
    assert hold_out(shuffle(rows), {}) == splits
    assert hold_out(rows, {"data.duplicates": "drop"}) == splits


def test_rows_without_a_label_change_with_neither_order_nor_format(hold_out):
    rows = ROWS.assign(kind=ROWS["kind"].where(ROWS.index % 9 > 0))
    splits = hold_out(rows, {})
    assert sum(map(len, splits.values())) == rows["kind"].notna().sum()
    assert hold_out(shuffle(rows), {}, "jsonl") == splits
