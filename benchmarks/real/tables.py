"""The tables of README.md beside this file and of docs/notebook.md, made from results.json and predictions.parquet.

    python benchmarks/real/tables.py

Intervals and p are those of `tools.compare`: they hold for other seeds and other test rows.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE)]
from settings import FIXES, SETTINGS  # noqa: E402 - found by the line above

from stages.analysis.multi_seed.comparison import Difference, compare_recipes  # noqa: E402
from stages.analysis.multi_seed.scores import Recipe, Score, score_recipe  # noqa: E402

CONFIDENCE = 0.95
CLASSES = 3


def main() -> None:
    results = json.loads((HERE / "results.json").read_text())
    predictions = pd.read_parquet(HERE / "predictions.parquet")
    rows = predictions["gold"].to_numpy(), predictions["group"].to_numpy(), CLASSES, CONFIDENCE
    differences = compared(predictions, rows)
    for table in (scored(predictions, rows, results), changes(differences, results), worths(differences)):
        print("\n".join(table), end="\n\n")


Rows = tuple[np.ndarray, np.ndarray, int, float]  # gold, groups, classes and confidence of `compare_recipes`


def compared(predictions: pd.DataFrame, rows: Rows) -> list[Difference]:
    """The difference from ours of each recipe that trains on the same rows."""
    recipes = [setting(predictions, name) for name in SETTINGS if name != "all rows"]
    return compare_recipes(recipes, *rows)[1]


def scored(predictions: pd.DataFrame, rows: Rows, results: dict) -> Iterator[str]:
    """The table of what tuning is worth."""
    yield "| | training rows | seeds | accuracy, % | weighted F1, % | accuracies of the seeds, % |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name in ("base", *(name for name in SETTINGS if name not in FIXES)):
        yield line(result(setting(predictions, name), *rows, results))


def changes(differences: list[Difference], results: dict) -> Iterator[str]:
    """The table of what each recipe changes."""
    yield "| instead of ours | points of accuracy | p | Holm's p | could show | loss | training, s | testing, s | GB |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    yield line(change("ours", None, results))
    for difference in differences:
        yield line(change(difference.name, difference, results))


def worths(differences: list[Difference]) -> Iterator[str]:
    """What each fix is worth, for docs/notebook.md: how much better ours is."""
    yield "| parameter | worth, points of accuracy |"
    yield "| --- | ---: |"
    for difference in differences:
        if difference.name in FIXES:
            low, gap, high = (points(-share) for share in (difference.high, difference.value, difference.low))
            yield f"| {', '.join(FIXES[difference.name].changes)} | {gap} ({low} to {high}) |"


def line(cells: Iterator[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def setting(predictions: pd.DataFrame, name: str) -> Recipe:
    """The runs of a setting as `compare_recipes` takes them; name: of SETTINGS, or "base"."""
    columns = [column for column in predictions if column.rpartition(" ")[0] == name]
    seeds = tuple(int(column.rpartition(" ")[2]) for column in columns)
    return Recipe(name, seeds, predictions[columns].to_numpy().T)


def result(
    recipe: Recipe, gold: np.ndarray, groups: np.ndarray, classes: int, confidence: float, results: dict
) -> Iterator[str]:
    """The cells of a setting's own scores."""
    found = score_recipe(recipe, gold, groups, classes, confidence)
    yield "the base, its head untrained" if recipe.name == "base" else SETTINGS[recipe.name].says
    yield "" if recipe.name == "base" else f"{runs_of(recipe.name, results)[0]['rows']['train']:,}"
    yield str(len(recipe.seeds))
    yield percent(found.accuracy)
    yield percent(found.f1_weighted)
    yield f"{100 * min(found.seed_accuracies):.1f} to {100 * max(found.seed_accuracies):.1f}"


def change(name: str, difference: Difference | None, results: dict) -> Iterator[str]:
    """The cells of what a setting changes; None: the first, with which the others are compared."""
    train, test = (results["times"][name][part] for part in ("train", "tuned"))
    yield SETTINGS[name].says if difference else "(ours)"
    if difference:
        yield f"{points(difference.value)} ({points(difference.low)} to {points(difference.high)})"
        yield probability(difference.p)
        yield probability(difference.p_holm)
        yield f"{100 * difference.smallest_detectable:.1f}"
    else:
        yield from ("", "", "", "")
    yield f"{np.mean([run['loss'] for run in runs_of(name, results)]):.2f}"
    yield f"{train['seconds']:.0f}"
    yield f"{test['seconds']:.1f}"
    yield f"{train['peak_gb']:.1f}"


def runs_of(name: str, results: dict) -> list[dict]:
    return [run for run in results["runs"] if run["setting"] == name]


def points(share: float) -> str:
    """A difference in tenths of a point, a true minus."""
    return f"{100 * share:+.1f}".replace("-", "−").replace("−0.0", "0.0").replace("+0.0", "0.0")


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def percent(score: Score) -> str:
    return f"{100 * score.value:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f})"


if __name__ == "__main__":
    main()
