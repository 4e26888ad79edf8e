"""Put what run.py left in OUT into two small files: results.json, and predictions.parquet.

    python benchmarks/real/collect.py OUT           beside this file, where tables.py reads them
    python benchmarks/real/collect.py OUT FOLDER    elsewhere

predictions.parquet has a line for each test row: its number in the split, its gold label, a number for its premise, and
a column of answers for each run. Texts are not in it; they are the data set's.
"""

import json
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from settings import SETTINGS  # noqa: E402 - found by the line above


def main() -> None:
    out, into = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE
    runs = [json.loads(path.read_text()) for path in (out / "runs").glob("*.json")]
    runs.sort(key=lambda r: (list(SETTINGS).index(r["setting"]), r["seed"]))
    times = {
        name: read(out / "times" / f"{name}.json") for name in SETTINGS if (out / "times" / f"{name}.json").exists()
    }
    predictions = together(out, runs)
    lines = ",\n".join(json.dumps(run) for run in runs)  # a line each
    (into / "results.json").write_text(f'{{"runs": [\n{lines}\n],\n"times": {json.dumps(times)}}}\n')
    predictions.to_parquet(into / "predictions.parquet", index=False, compression="zstd")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def together(out: Path, runs: list[dict]) -> pd.DataFrame:
    """The answers of all runs to the rows that have a gold label: columns row, gold, group, and one for each run."""

    def answers(run, model):
        path = out / "runs" / "{setting} {seed}".format(**run)
        return pd.read_parquet(f"{path} {model}.parquet").set_index("row")

    ours = [run for run in runs if run["setting"] == "ours"]
    rows = answers(ours[0], "tuned")
    columns = {f"base {run['seed']}": answers(run, "base") for run in ours}
    columns |= {"{setting} {seed}".format(**run): answers(run, "tuned") for run in runs}
    # A setting that counts rows without a gold label as neutral has more rows; those are nobody's to answer right.
    table = pd.DataFrame({name: answer["prediction"].loc[rows.index] for name, answer in columns.items()})
    table = table.astype("int8")
    table.insert(0, "group", rows["group"].astype("int16"))
    table.insert(0, "gold", rows["label"].astype("int8"))
    return table.rename_axis("row").reset_index()


if __name__ == "__main__":
    main()
