"""Group runs into recipes, check that they have the same test rows, and compare the recipes."""

import hashlib
import json
from collections.abc import Sequence, Set
from typing import Any

import numpy as np

from stages.analysis.measures import choose_leading_metric
from stages.analysis.multi_seed.comparison import compare_recipes
from stages.analysis.multi_seed.row_values import GoldRows
from stages.analysis.multi_seed.scores import Recipe
from stages.data.confusion import count_classes
from stages.data.labels import Labels
from stages.report.comparison_page import RecipeComparison, recipe_letter
from stages.report.render import shorten
from stages.report.wording import interval_warnings
from stages.runtime import errors
from tools.read_runs import CASES, INPUTS, Run, split_labels
from tools.run_alarms import describe_alarms

SPLITS = INPUTS[0]
MAX_SHOWN = 40  # characters of a text in an error
FETCH = "fetch the predictions by `dvc pull` or `dvc exp pull`"
# Parameters that choose the test rows. With the same input files, rows of the same number then have the same texts.
ROW_PARAMETERS = (
    "data.subset", "data.splits.test", "data.label", "data.separator", "data.classes", "data.group", "data.test_rows",
    "data.unlabelled", "data.holdout.validation", "data.holdout.test", "data.holdout.seed", "data.holdout.columns",
)  # fmt: skip


def compare_runs(runs: Sequence[Run], confidence: float | None, notes: Sequence[str]) -> RecipeComparison:
    """Group the runs into recipes, score each recipe, and compare each with the first.

    Args:
        runs: one or more.
        confidence: of intervals and verdicts; None: `analysis.confidence` of the first run.
        notes: printed before the notes that this function adds.
    """
    first = runs[0]
    for run in runs[1:]:
        check_same_rows(first, run)
    groups = next((run.rows["group"] for run in runs if "group" in run.rows), None)
    if groups is None:
        raise errors.UserError(f"{first.name}: {unknown_groups(first)}; {FETCH}")
    with_texts = next(run for run in runs if run.has_texts)
    grouped, group_notes = group_by_recipe(runs)
    names = [name_recipe(number, members, grouped[0][0]) for number, members in enumerate(grouped)]
    texts = {*first.rows["gold"], *(answer for run in runs for answer in run.rows["predicted"])}
    labels, codes = encode_labels(texts, first.kind)
    gold = labels.from_codes(first.rows["gold"].map(codes))
    recipes = [
        Recipe(
            name,
            tuple(run.params["seed"] for run in members),
            np.array([labels.from_codes(run.rows["predicted"].map(codes)) for run in members]),
        )
        for name, members in zip(names, grouped, strict=True)
    ]
    confidence = confidence or float(first.params["analysis.confidence"])
    metric = choose_leading_metric(gold, len(labels.classes))
    rows = GoldRows(gold, groups.to_numpy(), len(labels.classes), metric)
    scores, differences = compare_recipes(recipes, rows, confidence)
    known_classes = next((run.classes for run in runs if run.classes), labels.classes)
    counts = dict(zip(labels.classes, count_classes(gold, gold, len(labels.classes))[1].tolist(), strict=True))
    class_rows = {name: counts.get(name, 0) for name in known_classes}
    return RecipeComparison(
        scores,
        differences,
        [
            ("" if name == members[0].name else f"{name}: ") + ", ".join(map(describe_run, members))
            for name, members in zip(names, grouped, strict=True)
        ],
        [
            *notes,
            *group_notes,
            *note_alarms(grouped),
            *note_other_differences(grouped, names),
            *interval_warnings(class_rows, len(gold), groups.nunique(), first.params.get("data.group"), first.kind),
        ],
        metric,
        confidence,
        class_rows,
        groups.nunique(),
        first.params.get("data.group"),
        hash_rows(with_texts),
        len(gold),
    )


def encode_labels(texts: Set[str], kind: type[Labels]) -> tuple[Labels, dict[str, int]]:
    """The classes in these texts of `Run.rows`, and the code of each text (see `stages.data.labels`)."""
    names = {text: split_labels(text, kind) for text in texts}
    labels = kind(tuple(sorted({name for parts in names.values() for name in parts})))
    numbers = {name: number for number, name in enumerate(labels.classes)}
    return labels, {text: sum(labels.code(numbers[name]) for name in parts) for text, parts in names.items()}


def unknown_groups(run: Run) -> str:
    """Why it is unknown which rows of a run share a group. To treat them as independent would be wrong."""
    group = run.params.get("data.group")
    if not run.has_texts:
        return f"{CASES} does not have all texts (analysis.texts), so rows with the same {group or 'texts'} are unknown"
    return f"rows are grouped by {group!r}, which is neither in {CASES} nor in DVC's cache"


def check_same_rows(first: Run, other: Run) -> None:
    """Reject runs with different test rows, classes or columns: their difference would have no meaning."""
    if first.text_columns != other.text_columns:
        columns = [", ".join(name.removeprefix("text_") for name in run.text_columns) for run in (other, first)]
        raise errors.UserError(
            f"{other.name}: its text columns are {columns[0]}, but those of {first.name} are {columns[1]}; compare "
            "runs of the same task, and commit the first one"
        )
    if first.classes and other.classes and first.classes != other.classes:
        raise errors.UserError(
            f"{other.name}: its {first.kind.nouns} are {', '.join(other.classes)}, but those of {first.name} are "
            f"{', '.join(first.classes)}; compare runs of the same task"
        )
    if first.kind is not other.kind:
        raise errors.UserError(
            f"{other.name}: its task is {other.kind.problem_type}, but that of {first.name} is "
            f"{first.kind.problem_type}; compare runs of the same task"
        )
    columns = [*first.text_columns, "gold"]
    if not (first.has_texts and other.has_texts):
        check_same_data(first, other)
        columns = ["row", "gold"]
    rows, other_rows = first.rows[columns].astype(str), other.rows[columns].astype(str)
    count = min(len(rows), len(other_rows))
    differing = np.flatnonzero((rows[:count].to_numpy() != other_rows[:count].to_numpy()).any(axis=1))
    same_length = len(rows) == len(other_rows)
    if same_length and not len(differing):
        return
    reordered = same_length and sorted(map(tuple, rows.to_numpy())) == sorted(map(tuple, other_rows.to_numpy()))
    row = int(differing[0]) if len(differing) else count
    texts = [
        shorten(" / ".join(table.iloc[row]), MAX_SHOWN) if row < len(table) else "nothing"
        for table in (other_rows, rows)
    ]
    raise errors.UserError(
        f"{other.name}: its test rows are not those of {first.name}"
        + (", but the same in another order" if reordered else f" ({len(other_rows):,} and {len(rows):,} rows)")
        + f"; the first difference is in row {row}, counted from 0: {texts[0]!r}, not {texts[1]!r}. "
        "Only runs with the same test rows in the same order can be compared"
    )


def check_same_data(first: Run, other: Run) -> None:
    """Reject runs whose rows of the same number may have different texts. It is for runs without texts."""
    changed = [key for key in differing_keys(other.params, first.params) if key in ROW_PARAMETERS]
    if other.inputs[SPLITS] != first.inputs[SPLITS]:
        changed.append(SPLITS)
    if changed:
        blank = other if first.has_texts else first
        raise errors.UserError(
            f"{other.name}: {', '.join(changed)} differ{'s' if len(changed) == 1 else ''} from {first.name}, and "
            f"{CASES} of {blank.name} does not have all texts (analysis.texts). The test rows may differ; {FETCH}"
        )


def group_by_recipe(runs: Sequence[Run]) -> tuple[list[list[Run]], list[str]]:
    """The runs of each recipe, in the order in which the recipes first occur, and notes on duplicate runs.

    Runs of one recipe differ only in the seed. Their code and inputs are the same too. A run with the same seed and the
    same answers is a duplicate. A run with the same seed and other answers, as from another machine, is a recipe of its
    own.
    """
    grouped: list[list[Run]] = []
    notes = []
    for run in runs:
        for members in (members for members in grouped if is_same_recipe(members[0], run)):
            twin = next((other for other in members if other.params["seed"] == run.params["seed"]), None)
            if twin is None:
                members.append(run)
                break
            if (twin.rows["predicted"] == run.rows["predicted"]).all():
                notes.append(f"{run.name} is the same run as {twin.name}. It is counted once.")
                break
            notes.append(
                f"{run.name} has the parameters, seed, code and inputs of {twin.name}, but other answers: it ran on "
                "another machine or with other versions. It is listed as a recipe of its own."
            )
        else:
            grouped.append([run])
    return grouped, notes


def is_same_recipe(run: Run, other: Run) -> bool:
    """Whether two runs differ only in the seed, or not at all."""
    return (run.recipe, run.code, run.inputs) == (other.recipe, other.code, other.inputs)


def name_recipe(number: int, members: Sequence[Run], first: Run) -> str:
    """Name a recipe by the parameters that differ from those of the first one. The first has the name of its run."""
    run = members[0]
    changed = differing_keys(run.recipe, first.recipe)
    if number == 0 or not changed:
        return run.name
    return ", ".join(f"{key}={run.recipe[key]}" if key in run.recipe else f"without {key}" for key in changed)


def differing_keys(values: dict[str, Any], others: dict[str, Any]) -> list[str]:
    """Keys at which two dicts differ, in their order."""
    missing = object()  # a key with the value null is not a missing key
    return [key for key in dict.fromkeys([*others, *values]) if values.get(key, missing) != others.get(key, missing)]


def note_other_differences(grouped: Sequence[Sequence[Run]], names: Sequence[str]) -> list[str]:
    """Notes on recipes that differ from the first one in code or inputs too, not only in their parameters."""
    first = grouped[0][0]
    letters = [f"{recipe_letter(number)} {name}" for number, name in enumerate(names)]
    differences = [describe_other_differences(members[0], first) for members in grouped]
    return [
        f"{name} also differs from {letters[0]} in {difference}."
        for name, difference in zip(letters, differences, strict=True)
        if difference
    ]


def note_alarms(grouped: Sequence[Sequence[Run]]) -> list[str]:
    """Each alarm of the runs' reports, with the letters of the recipes that have it."""
    return describe_alarms(
        (recipe_letter(number), [alarm for run in members for alarm in run.alarms])
        for number, members in enumerate(grouped)
    )


def describe_other_differences(run: Run, first: Run) -> str:
    """Code and inputs in which a run differs from the first; empty if in none.

    Inputs are left out if a parameter of `data` or `model` explains them.
    """
    changed = differing_keys(run.recipe, first.recipe)
    inputs = [
        path
        for path, section in zip(INPUTS, ("data.", "model."), strict=True)
        if run.inputs[path] != first.inputs[path] and not any(key.startswith(section) for key in changed)
    ]
    paths = {"code": differing_keys(run.code, first.code), "inputs": inputs}
    return " and ".join(f"{what} ({', '.join(differing)})" for what, differing in paths.items() if differing)


def describe_run(run: Run) -> str:
    """A run with its seed and its commit."""
    commit = f", {run.commit}" if run.commit and not run.name.startswith(run.commit) else ""
    return f"{run.name} (seed {run.params['seed']}{commit})"


def hash_rows(run: Run) -> str:
    """The start of the SHA-256 of texts and gold classes. It changes with the rows and with their order."""
    lines = run.rows[[*run.text_columns, "gold"]].to_numpy().tolist()
    return hashlib.sha256(json.dumps(lines, ensure_ascii=False).encode()).hexdigest()[:16]
