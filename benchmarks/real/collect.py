"""Collect the results of run.py in two small files: results.json and predictions.parquet.

    python benchmarks/real/collect.py OUT           writes them next to this file, for accuracy_tables.py
    python benchmarks/real/collect.py OUT FOLDER    writes them to FOLDER

predictions.parquet has one line for each test row: its number in the split, its gold label, a number for its premise,
and one column of answers for each run. It holds no texts, because these belong to the data set.
"""

import json
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from run import SEEDS  # noqa: E402 - needs the line above
from variants import VARIANTS  # noqa: E402


def main() -> None:
    out, target = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE
    runs = [json.loads(path.read_text()) for path in (out / "runs").glob("*.json")]
    runs.sort(key=lambda r: (list(VARIANTS).index(r["setting"]), SEEDS.index(r["seed"])))
    times = {
        name: read(out / "times" / f"{name}.json") for name in VARIANTS if (out / "times" / f"{name}.json").exists()
    }
    predictions = join_answers(out, runs)
    lines = ",\n".join(json.dumps(run) for run in runs)  # one line for each run
    (target / "results.json").write_text(f'{{"runs": [\n{lines}\n],\n"times": {json.dumps(times)}}}\n')
    predictions.to_parquet(target / "predictions.parquet", index=False, compression="zstd")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def join_answers(out: Path, runs: list[dict]) -> pd.DataFrame:
    """The answers of all runs to rows with a gold label: columns row, gold, group, and one for each run."""

    def answers(run: dict) -> pd.DataFrame:
        return pd.read_parquet(out / "runs" / "{setting} {seed}.parquet".format(**run)).set_index("row")

    ours = [run for run in runs if run["setting"] == "ours"]
    rows = answers(ours[0])
    columns = {f"untrained_head {run['seed']}": answers(run)["untrained_head"] for run in ours}
    # These two don't depend on the seed.
    columns |= {f"{name} {ours[0]['seed']}": rows[name] for name in ("zero_shot", "probe")}
    columns |= {"{setting} {seed}".format(**run): answers(run)["prediction"] for run in runs}
    # A variant that labels rows without a gold label "neutral" has more rows. These have no right answer.
    table = pd.DataFrame({name: answer.loc[rows.index] for name, answer in columns.items()})
    table = table.astype("int8")
    table.insert(0, "group", rows["group"].astype("int16"))
    table.insert(0, "gold", rows["label"].astype("int8"))
    return table.rename_axis("row").reset_index()


if __name__ == "__main__":
    main()
