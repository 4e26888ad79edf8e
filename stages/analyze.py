"""Stage `analyze`: from predictions and histories to metrics/, of which it is the only writer."""

import pandas as pd

from stages.core import analysis, errors, files
from stages.core.labels import LABELS


def main():
    base = files.read_table("runs/base/predictions.parquet")
    tuned = files.read_table("runs/lora/predictions.parquet")
    if list(base["row"]) != list(tuned["row"]):
        raise errors.UserError("runs/base and runs/lora hold predictions of different rows; run `dvc repro`")
    gold = base["label"].to_numpy()

    files.write_json("metrics/data.json", files.read_json("data/summary.json"))
    for name, table, run in (("eval_base", base, "runs/base"), ("eval_lora", tuned, "runs/lora")):
        measured = files.read_json(f"{run}/run.json")
        files.write_json(f"metrics/{name}.json", {**analysis.scores(gold, table["prediction"]), **for_device(measured)})
    files.write_json("metrics/train.json", train_metrics())
    files.write_json("metrics/analysis.json", analysis.gain(gold, base["prediction"], tuned["prediction"]))
    write_plots(base, tuned)


def for_device(run):
    """What a run measured of itself; a CPU's memory is no `gpu`."""
    used = run.pop("gpu")
    return run | ({"gpu": used} if used["name"] != "cpu" else {"memory_peak_gb": used["peak"]})


def train_metrics():
    """Figures of the training run, with the validation scores of the epoch that was kept."""
    run = for_device(files.read_json("runs/train/run.json"))
    epochs = pd.read_csv("runs/train/epochs.csv").set_index("epoch")
    kept = epochs.loc[run["best_epoch"]]
    return run | {name: float(value) for name, value in kept.items()}


def write_plots(base, tuned):
    """The points that dvc.yaml's plots draw."""
    epochs = pd.read_csv("runs/train/epochs.csv")
    names = dict(enumerate(LABELS))
    usage = []
    for stage, folder in (("eval_base", "runs/base"), ("train_qlora", "runs/train"), ("eval_lora", "runs/lora")):
        usage.append(pd.read_csv(f"{folder}/usage.csv").assign(stage=stage))
    usage = pd.concat(usage)
    usage["seconds"] += usage["stage"].map(offsets(usage))
    tables = {
        "epochs": epochs,
        "steps": pd.read_csv("runs/train/steps.csv"),
        "usage": usage,
    } | {
        f"confusion_{name}": pd.DataFrame({"actual": t["label"].map(names), "predicted": t["prediction"].map(names)})
        for name, t in (("base", base), ("tuned", tuned))
    }
    for name, table in tables.items():
        with files.new_file(f"metrics/plots/{name}.csv") as temporary:
            table.to_csv(temporary, index=False)


def offsets(usage):
    """Seconds at which each stage begins, when the stages are laid end to end."""
    ends = usage.groupby("stage", sort=False)["seconds"].max()
    return dict(zip(ends.index, ends.cumsum().shift(fill_value=0), strict=True))


if __name__ == "__main__":
    errors.run(main)
