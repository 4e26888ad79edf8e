"""tools.evaluate: which rows, labels and groups it reads from other data, and what it rejects."""

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.parameters import unpinned_params
from helpers.stages import stage_env
from helpers.tables import CLASSES, data_params

from stages import analyze
from stages.analysis.intervals import newcombe
from stages.analysis.label_permutation import find_permutation
from stages.analysis.metrics import Predictions
from stages.data.confusion import confusion_counts, f1_macro
from stages.data.task import Task
from stages.report.alarms import find_alarms
from stages.runtime.errors import UserError
from tools.evaluate import __main__ as evaluate
from tools.evaluate import predict_sets, score_sets
from tools.evaluate.labels import parse_class_map
from tools.evaluate.read_set import choose_form, choose_split, name_folder, read_set
from tools.evaluate.tables import TestRows

TASK = Task(CLASSES, "{premise} {hypothesis}", "premise")
COLUMNS = {"premise": "sentence1", "hypothesis": "sentence2"}
LABELS = ["entailment", "neutral", "contradiction", "neutral"]
NO_FLAGS = dict.fromkeys(("split", "subset", "group", "sep", "encoding", "quotechar"))


@pytest.fixture(autouse=True)
def pipeline(tmp_path, monkeypatch):
    """A pipeline's folder, in which the test runs."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(unpinned_params()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pairs(labels=LABELS, **columns):
    rows = range(len(labels))
    texts = {
        "sentence1": [f"A man runs {row // 2}." for row in rows],
        "sentence2": [f"He moves {row}." for row in rows],
    }
    return pd.DataFrame(texts | {"gold": labels} | columns)


def write(frame, name="pairs.csv", **options):
    frame.to_csv(name, index=False, **options)
    return name


def read(given, classes=(), task=TASK, columns=COLUMNS, label=("gold",), separator=None, **flags):
    class_map = parse_class_map(classes, task)
    form = choose_form(Namespace(label=label, separator=separator), data_params(label="gold"), task)
    return read_set(given, Namespace(**NO_FLAGS | flags), task, form, columns, class_map)


def codes(labelled):
    return labelled.rows["label"].tolist()


def test_columns_and_labels_of_other_names_are_mapped(capsys):
    frame = pairs(["yes", "maybe", "no", "-", ""])
    found = read(write(frame, sep=";", encoding="cp1252"), ["yes=entailment", "maybe=neutral", "no=contradiction"])
    assert codes(found) == [0, 1, 2, -1, -1]
    assert found.rows["text_premise"].tolist() == frame["sentence1"].tolist()
    assert found.rows["text_hypothesis"].tolist() == frame["sentence2"].tolist()
    assert found.record["classes"] == {"yes": "entailment", "maybe": "neutral", "no": "contradiction"}
    assert "cells are separated by semicolons" in capsys.readouterr().out
    assert "  2 rows are not labelled and left out" in list(found.describe())


def test_a_flag_replaces_the_detected_dialect():
    """Without it, the bars of this file would separate its cells."""
    frame = pd.DataFrame({"premise": ["a|b", "c|d"], "hypothesis": ["e|f", "g|h"], "gold": LABELS[:2]})
    frame.to_csv("bars.csv", index=False, sep="~")
    found = read("bars.csv", columns={"premise": "premise", "hypothesis": "hypothesis"}, sep="~")
    assert found.rows["text_premise"].tolist() == ["a|b", "c|d"]


def test_duplicates_contradictions_and_spellings_are_said_as_init_says_them():
    frame = pairs(["entailment", "ENTAILMENT", "neutral", "ja", "-"], sentence2=["a", "b", "a", "c", "a"])
    lines = list(read(write(frame.assign(sentence1="A man runs.")), ["ja=neutral"]).describe())
    assert lines[-3:] == [
        "  ENTAILMENT (1 row) is read as entailment",
        "  duplicates: 1 of 4 rows has the texts of another row",
        "  duplicates: 1 text has rows of several classes: rows 2 and 4 of pairs.csv, numbered as in a spreadsheet",
    ]


def test_labels_match_classes_by_name_in_any_case():
    assert codes(read(write(pairs(["Neutral", "ENTAILMENT", "contradiction"])))) == [1, 0, 2]


@pytest.mark.parametrize("kind", ["csv", "parquet", "parquet with missing labels"])
def test_integers_without_names_mean_no_class_by_themselves(kind):
    """The classes' numbers may be others in this data set: a wrong guess would be a wrong score."""
    labels = [0, 2, 1, 0] if kind != "parquet with missing labels" else [0, 2, 1, None]
    frame = pairs(labels)
    given = write(frame) if kind == "csv" else "pairs.parquet"
    if kind != "csv":
        frame.to_parquet(given)
    with pytest.raises(UserError, match=r"integers without names: 0 \(\d rows?\), 1 .*--class 0=CLASS --class 1=CLASS"):
        read(given)
    mapped = read(given, ["0=contradiction", "1=neutral", "2=entailment"])
    assert codes(mapped)[:3] == [2, 0, 1]


def test_integers_that_are_the_classes_names_match_them():
    task = Task(("1", "2", "5"), TASK.template, None)
    assert codes(read(write(pairs([5, 1, 2, 1])), task=task)) == [2, 0, 1, 0]


def test_a_classlabel_is_matched_by_its_names_whatever_its_numbers():
    features = datasets.Features(
        {"sentence1": datasets.Value("string"), "sentence2": datasets.Value("string"),
         "gold": datasets.ClassLabel(names=["contradiction", "other", "entailment", "neutral"])}
    )  # fmt: skip
    frame = pairs([0, 2, 3, -1])
    datasets.Dataset.from_dict(frame.to_dict("list"), features=features).to_parquet("named.parquet")
    assert codes(read("named.parquet")) == [2, 0, 1, -1]


def test_a_mapped_class_replaces_that_of_the_same_name():
    assert codes(read(write(pairs(["neutral", "entailment"])), ["neutral=contradiction"])) == [2, 0]


WRONG = {  # {case: (labels, --class, phrases of the error)}
    "unknown labels": (
        ["yes", "yes", "neutral"], [], ["column 'gold' has labels that are not classes", "yes (2 rows)", "yes=CLASS"]
    ),
    "of several words": (["a; b", "a; b", "c"], [], ["--class 'a; b'=CLASS --class c=CLASS"]),
    "one is mapped": (
        ["yes", "no", "neutral"], ["yes=entailment"],
        ["not classes of the adapter: no (1 row), the first in row 3 of pairs.csv, numbered as in a spreadsheet; the c"]
    ),
    "numbers to be predicted": ([0.5, 0.7, 0.1], [], ["not classes", "--class"]),
    "no label": (["-", "-", "-"], [], ["has no label in any row", "--label"]),
    "no such class": (LABELS, ["yes=entails"], ["--class yes=entails: the adapter has no class entails"]),
    "no =": (LABELS, ["yes"], ["--class yes: must be LABEL=CLASS"]),
    "named twice": (LABELS, ["a=neutral", "a=entailment"], ["a means neutral already"]),
}  # fmt: skip


@pytest.mark.parametrize("labels, classes, phrases", WRONG.values(), ids=WRONG)
def test_a_label_that_could_be_read_wrongly_is_rejected(labels, classes, phrases):
    with pytest.raises(UserError) as caught:
        read(write(pairs(labels)), classes)
    assert all(phrase in str(caught.value) for phrase in phrases), str(caught.value)
    assert "params.yaml" not in str(caught.value)


SEVERAL = Task(CLASSES, TASK.template, None, multi_label=True)
SETS = [["entailment", "neutral"], [], ["contradiction"], ["neutral", "contradiction"]]
FORMS = {  # {form: (what the labels are in the file, flags)}
    "lists": (lambda: write_lists(SETS), {}),
    "a text": (lambda: write(pairs(["|".join(row) for row in SETS])), {"separator": "|"}),
    "a text in other case": (lambda: write(pairs([" / ".join(row).title() for row in SETS])), {"separator": "/"}),
    "columns of 0 and 1": (
        lambda: write(pairs(**{name: [int(name in row) for row in SETS] for name in CLASSES})),
        {"label": CLASSES[::-1]},
    ),
}  # fmt: skip


def write_lists(sets):
    pairs(sets).to_parquet("sets.parquet")
    return "sets.parquet"


@pytest.mark.parametrize("make, flags", FORMS.values(), ids=FORMS)
def test_several_labels_a_row_are_read_in_each_form(make, flags):
    found = read(make(), task=SEVERAL, **flags)
    assert codes(found) == [0b011, 0, 0b100, 0b110]
    assert next(found.describe()).endswith(
        "4 labelled rows: 2 neutral, 2 contradiction, 1 entailment, 1 with none of the labels"
    )


def test_the_separator_of_the_run_is_not_used_for_lists():
    form = choose_form(Namespace(label=[], separator=None), data_params(label="gold", separator="|"), SEVERAL)
    found = read_set(write_lists(SETS), Namespace(**NO_FLAGS), SEVERAL, form, COLUMNS, {})
    assert codes(found)[0] == 0b011
    with pytest.raises(UserError, match=r"--separator: \|: column 'gold' holds lists"):
        read(write_lists(SETS), task=SEVERAL, separator="|")


def test_two_labels_may_mean_the_same_class():
    classes = ["yes=entailment", "sure=entailment", "no=contradiction"]
    found = read(write(pairs(["yes|sure", "sure|no", "-", ""])), classes, SEVERAL, separator="|")
    assert codes(found) == [0b001, 0b101, -1, 0]
    assert "  1 row is not labelled and left out" in list(found.describe())


def test_a_renamed_column_without_any_1_means_its_class():
    given = write(pairs(["0", "0"], entailment=[1, 1], neutral=[0, 1]))
    found = read(given, ["gold=contradiction"], SEVERAL, label=["entailment", "neutral", "gold"])
    assert codes(found) == [0b001, 0b011] and found.record["classes"] == {"gold": "contradiction"}


FORM_ERRORS = {  # {case: (labels, arguments of `read`, phrase of the error)}
    "no separator": (["neutral"], {"task": SEVERAL}, "name what is between them: --separator TEXT"),
    "an unknown label": (["neutral|joy"], {"task": SEVERAL, "separator": "|"},
                         "not labels of the adapter: joy (1 row), the first in row 2 of pairs.csv, numbered as in a "
                         "spreadsheet; the labels are entailment, neutral, contradiction. Say which label each means: "
                         "--class joy=CLASS"),
    "a label twice": (["neutral|neutral"], {"task": SEVERAL, "separator": "|"}, "twice in row 2 of pairs.csv, "),
    "no label in any row": (["", ""], {"task": SEVERAL, "separator": "|"}, "column 'gold' has no label in any row"),
    "a mark next to labels": (["neutral|-"], {"task": SEVERAL, "separator": "|"}, "- next to labels in row 2 of "),
    "a class without a column": (
        ["0"], {"task": SEVERAL, "label": ["neutral", "entailment"], "flags": CLASSES},
        "no label column for contradiction; name one for each label",
    ),
    "a column that is no class": (
        ["0"], {"task": SEVERAL, "label": ["gold", "neutral"], "flags": CLASSES}, "column gold is not a label of the "
        "adapter; the labels are entailment, neutral, contradiction. Say which label it means",
    ),
    "a column twice": (["0"], {"task": SEVERAL, "label": ["gold", "gold"]}, "--label gold: given twice"),
    "a separator for columns": (
        ["0"], {"task": SEVERAL, "label": ["gold", "neutral"], "separator": "|"}, "--separator: is for one label",
    ),
    "several labels of a run with one": (LABELS, {"label": ["a", "b"]}, "--label: given several times: each row"),
    "a separator of a run with one": (LABELS, {"separator": "|"}, "--separator |: each row of the run has one label"),
    "no such label": (
        ["neutral"], {"task": SEVERAL, "separator": "|", "classes": ["joy=joyful"]}, "the adapter has no label joyful",
    ),
    "lists of a run with one": (SETS, {}, "has several labels per row, but rows of the run have one"),
}  # fmt: skip


@pytest.mark.parametrize("labels, options, message", FORM_ERRORS.values(), ids=FORM_ERRORS)
def test_labels_in_another_form_than_the_runs_are_rejected_in_one_line(labels, options, message):
    options = dict(options)
    flags = {name: [1] * len(labels) for name in options.pop("flags", [])}
    with pytest.raises(UserError) as caught:
        read(write_lists(labels) if labels is SETS else write(pairs(labels, **flags)), **options)
    assert message in str(caught.value) and "\n" not in str(caught.value), str(caught.value)
    assert "params.yaml" not in str(caught.value)


COLUMN_ERRORS = {
    "no text column": ({"columns": {"premise": "text", "hypothesis": "sentence2"}}, "--column premise=COLUMN"),
    "no label column": ({"drop": "gold"}, "no label column 'gold'; it has sentence1, sentence2. Name it: --label"),
    "no group column": ({"group": "author"}, "--group author: pairs.csv has no such column; it has sentence1"),
    "the label as a text": ({"columns": {"premise": "gold", "hypothesis": "sentence2"}}, "both a text and the label"),
    "no split": ({"split": "dev"}, "--split dev: pairs.csv has no such split; it has train"),
    "no subset": ({"subset": "easy"}, "--subset: easy; allowed"),
    "an empty row": ({"blank": True}, "pairs.csv: columns premise, hypothesis are all empty in row 2 of pairs.csv, "),
    "a wrong encoding": ({"encoding": "ascii"}, "--encoding"),
}


@pytest.mark.parametrize("changes, message", COLUMN_ERRORS.values(), ids=COLUMN_ERRORS)
def test_the_error_names_the_flag(changes, message):
    changes = dict(changes)
    frame = pairs().drop(columns=changes.pop("drop", []))
    if changes.pop("blank", False):
        frame.loc[0, ["sentence1", "sentence2"]] = " "
    frame.loc[1, "sentence1"] = "A café."
    with pytest.raises(UserError) as caught:
        read(write(frame), **changes)
    assert message in str(caught.value) and "params.yaml" not in str(caught.value), str(caught.value)


def test_the_runs_group_column_is_used_under_its_name_in_the_file():
    found = read(write(pairs()))
    assert found.rows["group"].nunique() == 2 and found.task.group == "premise" and found.shares_groups


def test_without_the_runs_group_column_equal_texts_are_a_group(capsys):
    found = read(write(pairs()), task=Task(CLASSES, TASK.template, "author"))
    assert found.rows["group"].nunique() == 4 and found.task.group is None and not found.shares_groups
    assert "no column 'author', which groups the run's rows" in capsys.readouterr().out


def test_another_group_column_is_not_compared_with_that_of_training():
    found = read(write(pairs(author=["a", "a", "a", "b"])), group="author")
    assert found.rows["group"].nunique() == 2 and found.task.group == "author" and not found.shares_groups


def test_the_split_called_test_is_taken_or_the_only_one():
    assert choose_split(["train", "test"], None, "x") == "test"
    assert choose_split(["train"], None, "x") == "train"
    assert choose_split(["train", "test"], "train", "x") == "train"
    with pytest.raises(UserError, match="x: has the splits train, dev, and none is called test; name one by --split"):
        choose_split(["train", "dev"], None, "x")


def test_a_folder_is_called_as_its_data(pipeline):
    for name in ("reviews.2023.CSV", "reviews.2024.csv.gz"):
        (pipeline / name).touch()
    (pipeline / "sets").mkdir()
    names = ("reviews.2023.CSV", "reviews.2024.csv.gz", "sets/", "nyu-mll/multi_nli")
    assert list(map(name_folder, names)) == ["reviews.2023", "reviews.2024", "sets", "multi_nli"]


def named(name):
    record = {"label": "gold", "data": {"name": f"{name}.csv"}}
    return SimpleNamespace(name=name, source=SimpleNamespace(name=f"{name}.csv"), record=record)


def test_a_folder_that_the_command_has_not_written_is_not_replaced(pipeline):
    out = pipeline / "evaluations"
    score_sets.check_targets(out, [named("a"), named("b")])
    (out / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="this command has not written it"):
        score_sets.check_targets(out, [named("a")])
    (out / "a" / score_sets.RECORD).write_text("{}")
    score_sets.check_targets(out, [named("a")])
    for data in (pipeline / "a.csv", "b/a.csv"):  # a.csv may be named by another path
        (out / "a" / score_sets.RECORD).write_text(json.dumps({"data": {"name": str(data)}}))
        if data == "b/a.csv":
            with pytest.raises(UserError, match=r"a: has the report of b/a\.csv; move it, or set another --out"):
                score_sets.check_targets(out, [named("a")])
        else:
            score_sets.check_targets(out, [named("a")])
    with pytest.raises(UserError, match="would both be written to"):
        score_sets.check_targets(out, [named("b"), named("b")])
    for folder in (out / "a" / score_sets.RECORD, out / "a" / score_sets.RECORD / "b"):
        with pytest.raises(UserError, match=r"^--out: .*evaluation\.json is a file; name a folder"):
            score_sets.check_targets(folder, [named("b")])


def test_a_tab_may_be_written_as_in_python(monkeypatch):
    monkeypatch.setattr("sys.argv", ["evaluate", "a.csv", "--sep", "\\t"])
    assert evaluate.parse_arguments().sep == "\t"


@pytest.mark.parametrize("task, nouns", [(TASK, "classes"), (SEVERAL, "labels")], ids=["one", "several"])
def test_an_adapter_of_other_classes_is_rejected_in_the_words_of_the_task(task, nouns, monkeypatch):
    def read(folder):
        settings = replace(task, classes=CLASSES if folder.name == "own" else ("yes", "no"))
        return SimpleNamespace(folder=folder, settings=settings)

    monkeypatch.setattr(predict_sets.Adapter, "read", read)
    with pytest.raises(UserError, match=f"^--adapter other: its {nouns} are yes, no, but those of own are entailment"):
        predict_sets.read_adapters([Path("own"), Path("other")])


def test_the_link_to_a_report_works_with_any_name():
    assert TestRows("my [set] (1)", "my [set] (1)/report.md", pd.DataFrame(), None).title == (
        "[my \\[set\\] (1)](my%20%5Bset%5D%20%281%29/report.md)"
    )


def test_an_earlier_evaluation_stays_until_the_new_one_is_whole(pipeline, monkeypatch):
    folder = pipeline / "evaluations/a"
    monkeypatch.setattr(analyze, "write_report", lambda report, path: (path / "report.md").write_text(report))
    score_sets.write_set(folder, named("a"), "first", [])
    assert json.loads((folder / score_sets.RECORD).read_text()) == named("a").record | {"adapters": {}}

    def fail(report, path):
        (path / "report.md").write_text(report)
        raise KeyboardInterrupt

    monkeypatch.setattr(analyze, "write_report", fail)
    with pytest.raises(KeyboardInterrupt):
        score_sets.write_set(folder, named("a"), "second", [])
    assert (folder / "report.md").read_text() == "first"
    assert [path.name for path in folder.parent.iterdir()] == ["a"]


def draw_confusion(rng, rows, classes, right):
    gold = rng.integers(classes, size=rows)
    wrong = (gold + rng.integers(1, classes, rows)) % classes
    return confusion_counts(gold, np.where(rng.random(rows) < right, gold, wrong), classes)


@pytest.mark.parametrize("classes, right", [(2, 0.9), (3, 0.8), (20, 0.7)])
def test_exchanged_labels_are_found(classes, right):
    confusion = draw_confusion(np.random.default_rng(0), 800, classes, right)
    assert find_permutation(confusion) is None
    order = [1, 0, *range(2, classes)]
    assert find_permutation(confusion[order]).labels == {0: 1, 1: 0}


def test_a_class_without_rows_is_not_said_to_be_exchanged():
    confusion = draw_confusion(np.random.default_rng(0), 800, 3, 0.9)[[1, 0, 2]]
    confusion[[1, 2]] = 0
    assert find_permutation(confusion).labels == {0: 1}


@pytest.mark.parametrize(
    "classes, right, rows", [(2, 0.5, 20), (2, 0.45, 200), (3, 0.3, 30), (3, 0.33, 1000), (20, 0.05, 60)]
)
def test_a_poor_model_is_not_taken_for_exchanged_labels(classes, right, rows):
    rng = np.random.default_rng(0)
    found = [find_permutation(draw_confusion(rng, rows, classes, right)) for _ in range(200)]
    assert sum(map(bool, found)) <= 1


def alarms_of(gold, answers, metric, **options):
    reference = SimpleNamespace(difference=SimpleNamespace(value=0.1))
    comparison = SimpleNamespace(metric=metric, best_reference=reference, verdict=1, verdict_with_duplicates=1)
    cases = pd.DataFrame({"gold": gold, "tuned": answers, "in_train": False})
    return find_alarms(cases, comparison, Task(("a", "b", "c"), "", None), **options)


def test_an_alarm_says_that_a_class_without_rows_lowers_macro_f1():
    gold, answers = [0] * 40 + [1] * 10, [0] * 38 + [2] * 2 + [1] * 10
    assert alarms_of(gold, answers, "accuracy") == []
    assert alarms_of(gold, answers, "f1_macro") == [
        "No test row has the class c, but the tuned model answers so in 2 of 50 rows. Macro F1 counts an F1 of 0 for "
        "that. The mean F1 of the other classes is 98.7%."
    ]


def test_one_answer_to_all_rows_of_other_data_does_not_mean_that_nothing_was_learnt():
    assert alarms_of([0, 1], [0, 0], "accuracy")[0].endswith("to all 2 test rows: it learnt nothing.")
    (alarm,) = alarms_of([0, 1], [0, 0], "accuracy", is_own_test=False)
    assert alarm == "The tuned model answers a to all 2 test rows: on them, it is no better than a constant."


def draw_predictions(rng, groups, right):
    """Three uneven classes, in groups of three rows whose answers are alike."""
    group = np.repeat(np.arange(groups), 3)
    gold = rng.choice(3, 3 * groups, p=[0.6, 0.3, 0.1])
    quality = np.clip(right + rng.normal(0, 0.2, groups), 0, 1)[group]
    answers = np.where(rng.random(len(gold)) < quality, gold, rng.choice(3, len(gold), p=[0.6, 0.3, 0.1]))
    return Predictions(gold, answers, np.empty((len(gold), 0)), group, ("a", "b", "c"), 0.95)


def test_the_interval_of_a_difference_between_independent_samples_covers_the_truth():
    """Of accuracy and of macro F1, with rows that share a group and samples of different sizes."""
    rng, samples = np.random.default_rng(0), 300
    large = [draw_predictions(rng, 60_000, right) for right in (0.6, 0.8)]
    truth = np.array([
        large[0].right.mean() - large[1].right.mean(), float(np.subtract(*(f1_macro(p.counts) for p in large)))
    ])  # fmt: skip
    covered = np.zeros(2)
    for _ in range(samples):
        first, second = draw_predictions(rng, 40, 0.6), draw_predictions(rng, 120, 0.8)
        results = (newcombe(first.accuracy, second.accuracy), newcombe(first.f1_macro, second.f1_macro))
        covered += [low <= true <= high for (_, (low, high)), true in zip(results, truth, strict=True)]
    assert (covered / samples >= 0.925).all() and (covered / samples <= 0.985).all(), covered / samples
    assert np.allclose(truth[1], np.subtract(*(f1_macro(p.counts) for p in large)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.csv"], "no.csv: no such file or folder"),
        (["here.csv", "--adapter", "none"], "--adapter: none: no such folder"),
    ],
)
def test_a_path_that_does_not_exist_is_an_error_before_pytorch_is_imported(tmp_path, arguments, message):
    """The imports take 10 s."""
    (tmp_path / "here.csv").touch()
    code = """
import sys
from tools.evaluate import __main__
try:
    __main__.main()
except Exception as error:
    print(error, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=stage_env(), capture_output=True, text=True
    )
    assert done.stdout.startswith(message) and done.stdout.endswith(" False\n")


def test_a_file_without_a_header_needs_a_line_above_it():
    """There is no flag for the names of the columns."""
    Path("pairs.csv").write_text("".join(f"{row},A man sleeps.,neutral\n" for row in range(6)))
    with pytest.raises(UserError, match="add a line above it with the names of its 3 columns") as caught:
        read("pairs.csv")
    assert "data.read" not in str(caught.value)


def test_a_column_that_does_not_exist_is_an_error_before_pytorch_is_imported():
    code = """
import sys
from types import SimpleNamespace
from stages.data.task import Task
from tools.evaluate import __main__, score_sets
data = SimpleNamespace(label="gold", separator=None)
run = SimpleNamespace(task=Task(("a", "b"), "{premise}", None), params=SimpleNamespace(data=data))
score_sets.FinishedRun.read = lambda: run
score_sets.read_settings = lambda folder: SimpleNamespace(template="{premise}")
try:
    __main__.main()
except Exception as error:
    print(error, "torch" in sys.modules)
"""
    command = [sys.executable, "-c", code, write(pairs())]
    done = subprocess.run(command, env=stage_env(), capture_output=True, text=True)
    assert done.stdout.endswith("Name the one for premise: --column premise=COLUMN False\n"), done.stdout + done.stderr
