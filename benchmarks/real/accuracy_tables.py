"""Print the tables of benchmarks/real/README.md and docs/notebook.md from results.json and predictions.parquet.

    python benchmarks/real/accuracy_tables.py

Intervals and p-values are computed as in `tools.compare`: for other seeds and other test rows.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE)]
from variants import FIXES, VARIANTS  # noqa: E402 - needs the line above

from stages.analysis.multi_seed.comparison import Difference, compare_recipes  # noqa: E402
from stages.analysis.multi_seed.row_values import GoldRows  # noqa: E402
from stages.analysis.multi_seed.scores import MeanScore, Recipe, score_recipe  # noqa: E402

CONFIDENCE = 0.95
CLASSES = 3
REFERENCES = {
    "untrained_head": "the base with an untrained head",
    "zero_shot": "zero-shot: the base's own head on the class names",
    "probe": "a linear probe on the frozen base, 1,000 training rows",
}


def main() -> None:
    results = json.loads((HERE / "results.json").read_text())
    predictions = pd.read_parquet(HERE / "predictions.parquet")
    rows = GoldRows(predictions["gold"].to_numpy(), predictions["group"].to_numpy(), CLASSES, "accuracy")
    differences = compare_variants(predictions, rows)
    tables = (
        score_table(predictions, rows, results),
        change_table(differences, results),
        calibration_table(results),
        fix_table(differences),
    )
    for table in tables:
        print("\n".join(table), end="\n\n")


def compare_variants(predictions: pd.DataFrame, rows: GoldRows) -> list[Difference]:
    """The difference of each variant with the same training rows from ours."""
    recipes = [setting(predictions, name) for name in VARIANTS if name != "all rows"]
    return compare_recipes(recipes, rows, CONFIDENCE)[1]


def score_table(predictions: pd.DataFrame, rows: GoldRows, results: dict) -> Iterator[str]:
    """The table of scores of each recipe."""
    yield "| | training rows | seeds | accuracy, % | weighted F1, % | accuracies of the seeds, % |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name in (*REFERENCES, *(name for name in VARIANTS if name not in FIXES)):
        yield line(score_cells(setting(predictions, name), rows, results))


def change_table(differences: list[Difference], results: dict) -> Iterator[str]:
    """The table of differences from our recipe."""
    yield "| instead of ours | points of accuracy | p | Holm's p | detectable | loss | training, s | testing, s | GB |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    yield line(change_cells("ours", None, results))
    for difference in differences:
        yield line(change_cells(difference.name, difference, results))


def calibration_table(results: dict) -> Iterator[str]:
    """The table of temperatures: test loss and calibration error without and with them, means over the seeds."""
    yield "| | temperatures | loss without | with | calibration error without, % | with, % |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name in (name for name in VARIANTS if name not in FIXES and name != "notebook"):
        runs = runs_of(name, results)
        temperatures = [run["temperature"]["value"] for run in runs]
        sides = [run["without_temperature"] for run in runs], runs
        yield line(
            iter([
                VARIANTS[name].title,
                f"{min(temperatures):.1f} to {max(temperatures):.1f}",
                *(f"{np.mean([scores['loss'] for scores in side]):.2f}" for side in sides),
                *(f"{100 * np.mean([scores['calibration_error'] for scores in side]):.1f}" for side in sides),
            ])
        )  # fmt: skip


def fix_table(differences: list[Difference]) -> Iterator[str]:
    """The table of fixes for docs/notebook.md: how much better our value is."""
    yield "| parameter | effect of the fix, points of accuracy |"
    yield "| --- | ---: |"
    for difference in differences:
        if difference.name in FIXES:
            low, gap, high = (points(-share) for share in (difference.high, difference.value, difference.low))
            yield f"| {', '.join(FIXES[difference.name].changes)} | {gap} ({low} to {high}) |"


def line(cells: Iterator[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def setting(predictions: pd.DataFrame, name: str) -> Recipe:
    """The runs of a variant as input of `compare_recipes`. name: a key of VARIANTS or REFERENCES."""
    columns = [column for column in predictions if column.rpartition(" ")[0] == name]
    seeds = tuple(int(column.rpartition(" ")[2]) for column in columns)
    return Recipe(name, seeds, predictions[columns].to_numpy().T)


def score_cells(recipe: Recipe, rows: GoldRows, results: dict) -> Iterator[str]:
    """The cells of a recipe's scores."""
    score = score_recipe(recipe, rows, CONFIDENCE)
    yield REFERENCES.get(recipe.name) or VARIANTS[recipe.name].title
    yield "" if recipe.name in REFERENCES else f"{runs_of(recipe.name, results)[0]['rows']['train']:,}"
    yield str(len(recipe.seeds))
    yield percent(score.accuracy)
    yield percent(score.f1_weighted)
    yield f"{100 * min(score.seed_scores):.1f} to {100 * max(score.seed_scores):.1f}"


def change_cells(name: str, difference: Difference | None, results: dict) -> Iterator[str]:
    """The cells of one variant's difference. None: our recipe, with which the others are compared."""
    times = results["times"].get(name)  # None: not timed
    yield VARIANTS[name].title if difference else "(ours)"
    if difference:
        yield f"{points(difference.value)} ({points(difference.low)} to {points(difference.high)})"
        yield probability(difference.p)
        yield probability(difference.p_holm)
        yield f"{100 * difference.smallest_detectable:.1f}"
    else:
        yield from ("", "", "", "")
    yield f"{np.mean([run['loss'] for run in runs_of(name, results)]):.2f}"
    yield f"{times['train']['seconds']:.0f}" if times else ""
    yield f"{times['tuned']['seconds']:.1f}" if times else ""
    yield f"{times['train']['peak_gb']:.1f}" if times else ""


def runs_of(name: str, results: dict) -> list[dict]:
    return [run for run in results["runs"] if run["setting"] == name]


def points(share: float) -> str:
    """A difference in points with one decimal and a typographic minus."""
    return f"{100 * share:+.1f}".replace("-", "−").replace("−0.0", "0.0").replace("+0.0", "0.0")


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def percent(score: MeanScore) -> str:
    return f"{100 * score.value:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f})"


if __name__ == "__main__":
    main()
