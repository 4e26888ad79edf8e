"""Stage `analyze`: from predictions and histories to metrics/, of which it is the only writer."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from stages.analysis import comparison, metrics, nli, plot_tables, usage
from stages.data.task import Task
from stages.report import cases, document, figures, model_card
from stages.runtime import errors, files, params
from stages.runtime.stage_table import GPU_STAGES

PUBLISHED = Path(__file__).parent / "report" / "published.json"


def main() -> None:
    p = params.load()
    settings, task = p.analysis, Task.read("outs/task.json")
    base = files.read_table("outs/results/base/predictions.parquet")
    tuned = files.read_table("outs/results/tuned/predictions.parquet")
    if list(base["row"]) != list(tuned["row"]):
        raise errors.UserError("outs/results: base and tuned hold predictions of different rows; run `dvc repro`")
    read = {"train": [*task.text_columns, "label"], "test": ["truncated"]}  # without tokens, the most of all rows
    tokenized = {split: files.read_table(f"outs/tokenized/{split}.parquet", read[split]) for split in read}
    epochs, steps = (read_curve(f"outs/results/train/{name}.csv") for name in ("epochs", "steps"))
    found = {name: files.read_json(f"outs/results/{name}/summary.json") for name in GPU_STAGES.values()}
    measured = {
        name: usage.figures(files.read_json(f"outs/measurements/{name}/run.json")) for name in GPU_STAGES.values()
    }
    samples = {stage: pd.read_csv(f"outs/measurements/{name}/usage.csv") for stage, name in GPU_STAGES.items()}
    about = {
        "task": task,
        "versions": measured["train"]["versions"],
        "model": files.read_json("outs/base_model.json"),
        "data": files.read_json("outs/data_source.json"),
        "params": p,
        "device": usage.device(measured["train"]),
        "published": files.read_json(PUBLISHED),
    }

    rows = comparison.build_case_table(base, tuned, tokenized, task)
    findings = nli.claims(rows, kind, settings.confidence) if (kind := nli.NliTask.from_task(task)) else {}
    made = [metrics.of_table(t, task, settings.confidence) for t in (base, tuned)]
    verdicts = {key: finding["verdict"] for key, finding in findings.items()}
    details = {
        "data": files.read_json("outs/data_summary.json"),
        "base": metrics.scores(made[0]) | found["base"],
        "train": found["train"] | plot_tables.kept_epoch(epochs, found["train"]["best_epoch"]),
        "tuned": metrics.scores(made[1]) | found["tuned"],
        "comparison": comparison.comparison(rows, tokenized["train"]["label"], task, settings.confidence)
        | ({"claims": verdicts} if verdicts else {}),
    }
    plots = plot_tables.plot_tables(rows, epochs, steps, task, settings.confidence)
    load = usage.end_to_end(samples)
    pictures = figures.render_results(details, plots, rows, task)
    load_picture = figures.render_usage(load, "gpu" in measured["train"])
    context = document.context(details, measured, findings, rows, plots, pictures | {"usage": load_picture}, about)

    # What was found: the same bytes when the same is run again.
    files.write_json("metrics/details.json", details)
    files.write_csv("metrics/cases.csv", cases.to_spreadsheet(rows, task), quoting=csv.QUOTE_NONNUMERIC)
    with files.atomic_folder("metrics/plots") as folder:
        for name, table in plots.items():
            files.write_csv(folder / f"{name}.csv", cases.escape_formulas(table))
    with files.atomic_folder("metrics/figures") as folder:
        for name, (png, _) in pictures.items():
            (folder / f"{name}.png").write_bytes(png)
    files.write_text("metrics/report.md", document.markdown(context))
    files.write_text("metrics/model_card.md", model_card.build_adapter_card(details, about))

    # What the run measured of itself, and what shows both.
    files.write_json("metrics/summary.json", comparison.summary(details) | usage.summary(measured))
    with files.atomic_folder("metrics/measurements") as folder:
        files.write_json(folder / "stages.json", measured)
        files.write_csv(folder / "usage.csv", load)
        (folder / "usage.png").write_bytes(load_picture[0])
    files.write_text("metrics/report.html", document.html(context))


def read_curve(path: str) -> pd.DataFrame:
    """A table of the training's history; an infinite loss is missing, as one that is NaN."""
    return pd.read_csv(path).replace([np.inf, -np.inf], np.nan)


if __name__ == "__main__":
    errors.run(main)
