"""150 random changes of the keys and cells for several labels a row: each is read as written, or an error of one line.

The error names the key or the column. The changed rows are read and held out as `tokenize` does it.
"""

import random

import numpy as np
import pyarrow as pa
import pytest
from helpers.tables import data_params

from stages.data.assign_splits import assign_splits
from stages.data.dataset import prepare_rows
from stages.data.task import NO_LABEL, SPLITS
from stages.runtime import params
from stages.runtime.errors import UserError

COUNT, ROWS = 150, 120
NAMES = ["awe", "fear", "joy", "rage"]
HAS = np.random.default_rng(0).random((ROWS, len(NAMES))) < [0.5, 0.3, 0.2, 0.1]
WRONG = [True, 0, -1, 3.5, [], {}, ["a"], {"a": 1}, "", " ", "\0", "🙂", "x" * 500, "a\nb", "text", "no such"]
KEYS = {
    "label": [*WRONG, NAMES, NAMES[:2], NAMES[::-1], [*NAMES, "awe"], [*NAMES, "no such"], [*NAMES, "text"], [NAMES],
              NAMES[:1], "lists", "texts", "commas", "single", "awe", ["awe", "single"], ["lists", "texts"], None],
    "separator": [*WRONG, "|", ",", ", ", "||", ";", "\\", ".", ".*", "\t", "e", None, ["|"]],
    "classes": [*WRONG, NAMES, NAMES[::-1], NAMES[:3], [*NAMES, "calm"], [*NAMES, "awe"], [*NAMES, "a|b"],
                [name.upper() for name in NAMES], [1, 2, 3, 4], None],
    "unlabelled": [*WRONG, "drop", "joy", "Joy", "joy|awe", None, NAMES],
    "group": ["lists", "texts", "awe", "no such", None, 1, ["lists"]],
}  # fmt: skip
CELLS = {  # of a form's column, in one row
    "lists": [None, [], ["-"], ["-1"], ["joy", "joy"], ["joy", "Joy"], ["joy", None], [None], [""], ["joy", "-"],
              ["calm"], ["a|b"], ["joy|awe"], ["x" * 500]],
    "texts": [None, "", " ", "-", "-1", "joy|joy", "joy|", "||", "|", "joy|Joy", "joy|-", "calm", "joy,awe", "x" * 500],
    "awe": [None, "", "2", "-1", "-", "yes", "true", "1.0", "01", "0.5", "x" * 500],
}  # fmt: skip
REJECTED = {  # cells that could be read in two ways
    "lists": [["joy", "joy"], ["joy", "Joy"], ["joy", None], ["joy", "-"], ["-"], ["a|b"]],
    "texts": ["joy|joy", "joy|Joy", "joy|-", "-", "-1"], "awe": [None, "", "2", "-1", "-", "yes", "01", "0.5"],
}  # fmt: skip
RELATED = {"label": ["data.separator"], "group": ["data.holdout"], "separator": ["column 'texts'"]}
FORMS = {"lists": ("lists", None), "texts": ("texts", "|"), "awe": (NAMES, None)}


def make_table(cells=()):
    """All forms of the same labels. Cells are {(column, row): another value}."""
    rows = [[name for name, has in zip(NAMES, row, strict=True) if has] for row in HAS]
    columns = {
        "text": [f"text {row}" for row in range(ROWS)], "lists": rows, "texts": ["|".join(row) for row in rows],
        "commas": [", ".join(row) for row in rows], "single": [(row or ["none"])[0] for row in rows],
    }  # fmt: skip
    columns |= {name: [str(int(has)) for has in HAS[:, number]] for number, name in enumerate(NAMES)}
    for (column, row), value in dict(cells).items():
        columns[column] = [*columns[column][:row], value, *columns[column][row + 1 :]]
    return pa.table(columns)


def draw_mutation(rng):
    """(form, {key of `data`: value}, {(column, row): cell})."""
    form = rng.choice(list(FORMS))
    if rng.random() < 0.4:
        return form, {}, {(form, rng.randrange(ROWS)): rng.choice(CELLS[form]) for _ in range(rng.randint(1, 2))}
    keys = rng.sample(list(KEYS), rng.choice([1, 1, 2]))
    return form, {key: rng.choice(KEYS[key]) for key in keys}, {}


def read(form, keys, cells):
    """(task, rows of the splits) of a mutation."""
    label, separator = FORMS[form]
    sizes = {"validation": "10%", "test": "20%"}
    section = data_params(
        label=label, separator=separator, classes=None, splits={"train": "train"} | dict.fromkeys(sizes),
        holdout=sizes | {"seed": 42, "columns": None},
    ).model_dump()  # fmt: skip
    data = params.validate(section | keys, params.Data, "params.yaml: data")
    task, rows = prepare_rows({"train": make_table(cells)}, data, "{text}")
    return task, assign_splits(rows, data, task)


@pytest.fixture(scope="module")
def outcomes():
    """[(mutation, error, task, splits)]"""
    rng, found = random.Random(29), []
    for _ in range(COUNT):
        mutation = draw_mutation(rng)
        try:
            found.append((mutation, None, *read(*mutation)))
        except UserError as error:
            found.append((mutation, str(error), None, None))
    return found


def test_an_error_is_one_line_that_names_the_key_or_the_column(outcomes):
    wrong = []
    for mutation, error, _, _ in outcomes:
        _, keys, cells = mutation
        names = [*keys, *(name for key in keys for name in RELATED.get(key, []))]
        names += [] if keys else ["params.yaml: data.label: ", *(f"column '{column}'" for column, _ in cells)]
        if error and (len(error) > 3000 or not any(name in error for name in names)):
            wrong.append(f"{mutation!r:.200}: {error!r:.400}")
    assert not wrong, "\n".join(wrong)
    errors = sum(error is not None for _, error, _, _ in outcomes)
    assert COUNT / 3 < errors < COUNT * 0.9, errors


def test_what_is_accepted_has_all_rows_and_the_labels_of_the_file(outcomes):
    wrong = []
    for (form, keys, cells), _, task, splits in outcomes:
        if task is None:
            continue
        wrong += [f"{column}, row {row}: {cell!r}" for (column, row), cell in cells.items() if cell in REJECTED[column]]
        rows = {row: code for split in SPLITS for row, code in splits[split]["label"].items()}
        if len(rows) != ROWS or not task.multi_label:
            is_single = keys.get("label") in ("single", "awe") or ("separator" in keys and form == "texts")
            wrong += [] if len(rows) == ROWS and is_single else [f"{keys!r:.200} {cells!r:.200}: {len(rows)}"]
            continue
        changed = {row for _, row in cells}
        for row, code in rows.items():
            given = {name for name, has in zip(NAMES, HAS[row], strict=True) if has}
            found = {name.lower() for name in task.labels.name(max(code, 0)).split("|") if name}
            of_all = set(map(str.lower, task.classes)) >= set(NAMES) and keys.get("separator", "|") == "|"
            if row not in changed and "label" not in keys and of_all and (code == NO_LABEL or found != given):
                wrong.append(f"{form} {keys!r:.200} {cells!r:.200}: row {row} has {found}, not {given}")
                break
    assert not wrong, "\n".join(wrong)
