"""Stage `analyze`: from predictions and histories to metrics/, of which it is the only writer."""

import csv
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from stages.analysis import analysis, claims, slices
from stages.report import card, figures, report
from stages.runtime import errors, files, params
from stages.task.labels import LABELS, PROBABILITIES

STAGES = {"eval_base": "base", "train_qlora": "train", "eval_lora": "tuned"}
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
PUBLISHED = Path(__file__).parent / "report" / "published.json"


def main():
    p = params.load()
    base = files.read_table("results/base/predictions.parquet")
    tuned = files.read_table("results/tuned/predictions.parquet")
    if list(base["row"]) != list(tuned["row"]):
        raise errors.UserError("results/base and results/tuned hold predictions of different rows; run `dvc repro`")
    train = files.read_table("data/tokenized/train.parquet")
    epochs = read_curve("epochs")
    cases = case_table(base, tuned, train)

    metrics = {
        "data": files.read_json("data/summary.json"),
        "eval_base": model_metrics(base, "base", p),
        "train": train_metrics(epochs),
        "eval_lora": model_metrics(tuned, "tuned", p),
        "analysis": comparison(cases, analysis.majority_class(train["label"]), p),
        "published": files.read_json(PUBLISHED),
    }
    findings = claims.claims(cases, p.analysis.confidence)
    metrics["analysis"]["claims"] = {key: found["verdict"] for key, found in findings.items()}
    tables = plot_tables(cases, epochs, p.analysis.confidence)
    pictures = {name: figures.render(draw) for name, draw in drawings(metrics, tables, cases).items()}
    about = {"model": files.read_json("models/base.json"), "data": files.read_json("data/source.json"), "params": p}

    for name, values in metrics.items():
        files.write_json(f"metrics/{name}.json", values)
    write_csv("metrics/cases.csv", as_plain_text(in_words(cases)), quoting=csv.QUOTE_NONNUMERIC)
    with files.new_folder("metrics/plots") as folder:
        for name, table in tables.items():
            write_csv(folder / f"{name}.csv", table)
    with files.new_folder("metrics/figures") as folder:
        for name, (png, _) in pictures.items():
            (folder / f"{name}.png").write_bytes(png)
    context = report.context(metrics, findings, cases, tables, pictures, about)
    write_text("metrics/report.html", report.html(context))
    write_text("metrics/report.md", report.markdown(context))
    write_text("metrics/model_card.md", card.text(metrics, about))


def read_curve(name):
    """A table of the training's history; an infinite loss is missing, as one that is NaN."""
    return pd.read_csv(f"results/train/{name}.csv").replace([np.inf, -np.inf], np.nan)


def case_table(base, tuned, train):
    """Every test row with both predictions, their probabilities, the guess from the hypothesis alone, and its fate."""
    cases = base[["row", "premise", "hypothesis"]].assign(gold=base["label"])
    for name, table in (("base", base), ("tuned", tuned)):
        cases[name] = table["prediction"]
        cases[[f"{name}_{label}" for label in LABELS]] = table[PROBABILITIES]
        cases[f"{name}_confidence"] = table[PROBABILITIES].max(axis=1)
    cases["baseline"] = analysis.hypothesis_only(train["hypothesis"], train["label"], cases["hypothesis"])
    cases["fate"] = analysis.fates(cases["gold"], cases["base"], cases["tuned"])
    return cases.join(slices.features(cases["premise"], cases["hypothesis"]))


def in_words(cases):
    """The cases with the classes' names for their numbers."""
    names = dict(enumerate(LABELS))
    return cases.assign(**{column: cases[column].map(names) for column in ("gold", "base", "tuned", "baseline")})


def as_plain_text(cases):
    """The cases with an apostrophe before each text that a spreadsheet would take for a formula, as OWASP advises."""
    quoted = {
        column: [f"'{text}" if text.startswith(FORMULA_STARTS) else text for text in cases[column]]
        for column in ("premise", "hypothesis")
    }
    return cases.assign(**quoted)


def model_metrics(table, name, p):
    """Scores of one model with their intervals, calibration, and what its run measured of itself."""
    gold, predicted = table["label"].to_numpy(), table["prediction"].to_numpy()
    right = predicted == gold
    measured = accuracy(right, table["premise"], p)
    f1 = analysis.f1_intervals(
        analysis.confusion_counts(gold, predicted), measured["design_effect"],
        p.analysis.bootstrap_samples, p.analysis.confidence, p.seed,
    )  # fmt: skip
    bins = analysis.reliability(right, table[PROBABILITIES].max(axis=1))
    return {
        **analysis.scores(gold, predicted),
        **measured,
        **{f"{name}_interval": ends(interval) for name, interval in f1.items()},
        "calibration_error": analysis.calibration_error(bins),
        "brier": analysis.brier(gold, table[PROBABILITIES].to_numpy()),
        **run_figures(name),
    }


def comparison(cases, majority, p):
    """The gain with its interval and its McNemar p; and what guesses right that reads no premise."""
    changed = analysis.changes(cases["gold"], cases["base"], cases["tuned"])
    references = {"majority_class": cases["gold"] == majority, "hypothesis_only": cases["baseline"] == cases["gold"]}
    return {
        **analysis.gain(cases["gold"], cases["base"], cases["tuned"]),
        "accuracy_gain_interval": ends(analysis.gain_interval(changed, cases["premise"], p.analysis.confidence)),
        "design_effect": analysis.design_effect(changed, cases["premise"]),
        "mcnemar_p": analysis.mcnemar(changed, cases["premise"]),
        **{name: accuracy(right, cases["premise"], p) for name, right in references.items()},
    }


def accuracy(right, premises, p):
    """Share of right rows, its interval, and the design effect of rows that share a premise, which widens it."""
    counts = analysis.effective_counts(right, premises)
    return {
        "accuracy": float(right.mean()),
        "accuracy_interval": ends(analysis.wilson(*counts, p.analysis.confidence)),
        "design_effect": analysis.design_effect(right, premises),
    }


def ends(interval):
    return {"low": interval[0], "high": interval[1]}


def run_figures(name):
    """What a run found of its model and measured of itself; a CPU's memory is no `gpu`."""
    run = files.read_json(f"results/{name}/summary.json") | files.read_json(f"measurements/{name}/run.json")
    used = run.pop("gpu")
    return run | ({"gpu": used} if used["name"] != "cpu" else {"memory_peak_gb": used["peak"]})


def train_metrics(epochs):
    """Figures of the training run, with the validation scores of the epoch that was kept."""
    run = run_figures("train")
    kept = epochs.set_index("epoch").loc[run["best_epoch"]]
    return run | {name: float(value) for name, value in kept.items()}


def plot_tables(cases, epochs, confidence):
    """The points that dvc.yaml's plots and the report draw."""
    names = dict(enumerate(LABELS))
    samples = {stage: pd.read_csv(f"measurements/{name}/usage.csv") for stage, name in STAGES.items()}
    usage = pd.concat([table.assign(stage=stage) for stage, table in samples.items()])
    usage["seconds"] = (usage["seconds"] + usage["stage"].map(offsets(usage))).round(3)
    tables = {
        "epochs": epochs,
        "steps": analysis.thinned(read_curve("steps"), 1000),
        "usage": usage,
    }
    for name in ("base", "tuned"):
        right = cases[name] == cases["gold"]
        tables[f"confusion_{name}"] = pd.DataFrame(
            {"actual": cases["gold"].map(names), "predicted": cases[name].map(names)}
        )
        tables[f"reliability_{name}"] = bins_with_rows(right, cases[f"{name}_confidence"])
        cut = slices.cuts(cases["gold"], cases, cases[f"{name}_confidence"])
        tables[f"slices_{name}"] = slices.slice_table(cut, right, cases["premise"], confidence)
    return tables


def bins_with_rows(right, confidence):
    bins = pd.DataFrame(analysis.reliability(right, confidence))
    return bins[bins["rows"] > 0]


def offsets(usage):
    """Seconds at which each stage begins, when the stages are laid end to end."""
    ends = usage.groupby("stage", sort=False)["seconds"].max()
    return dict(zip(ends.index, ends.cumsum().shift(fill_value=0), strict=True))


def drawings(metrics, tables, cases):
    """{name: function that draws the picture in given colours}."""
    kept = metrics["train"]["best_epoch"]
    shown = {
        "always one class": (metrics["analysis"]["majority_class"], "muted"),
        "hypothesis alone": (metrics["analysis"]["hypothesis_only"], "muted"),
        "base": (metrics["eval_base"], "base"),
        "tuned": (metrics["eval_lora"], "tuned"),
    }
    points = [(name, m["accuracy"], tuple(m["accuracy_interval"].values()), c) for name, (m, c) in shown.items()]
    confusions = [analysis.confusion_counts(cases["gold"], cases[name]) for name in ("base", "tuned")]
    return {
        "accuracy": partial(figures.accuracy, points),
        "loss": partial(figures.loss, tables["epochs"], tables["steps"], kept),
        "validation": partial(figures.validation, tables["epochs"], kept),
        "confusion": partial(figures.confusion, *confusions),
        "slices": partial(figures.slices, tables["slices_base"], tables["slices_tuned"]),
        "reliability": partial(figures.reliability, tables["reliability_base"], tables["reliability_tuned"]),
        "usage": partial(figures.usage, tables["usage"], "gpu" in metrics["train"]),
    }


def write_csv(path, table, quoting=csv.QUOTE_MINIMAL):
    """Write a table; where it holds any text, all text is to be quoted, else a bare carriage return ends the row."""
    with files.new_file(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n", quoting=quoting)


def write_text(path, text):
    with files.new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    errors.run(main)
