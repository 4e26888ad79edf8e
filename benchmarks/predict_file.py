"""Measure `tools.predict IN --out OUT`: rows/s and memory, whether kills change the file, and the way of `eval_lora`.

    cd demo && python ../benchmarks/predict_file.py --rows 200000 --kills 3 --threads 1

It makes a csv file: each row takes the text of each column from a random row of --data. `predict` labels it without
interruption, and again with kills at random moments. The files must be equal byte for byte. Then `Classifier.predict`
gets all tokenized rows in one call, as in `eval_lora`. Its seconds include neither loading nor tokenization.
"""

import argparse
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from stages.runtime.files import sha256

ROOT = Path(__file__).resolve().parent.parent


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "demo/assets/everyday-nli/test.parquet")
    parser.add_argument("--adapter", type=Path, default=Path("outs/adapter"))
    parser.add_argument("--base", type=Path, help="the base model's folder, if it has moved")
    for option, default in (("--rows", 200_000), ("--kills", 3), ("--seed", 0)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--batch-size", type=int, default=64, help="of both (%(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch; default: its own choice")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # before PyTorch is imported, and for `predict`
    classifier = json.loads((arguments.adapter / "classifier.json").read_text())
    columns = list(dict.fromkeys(re.findall(r"\{([^{}]+)\}", classifier["template"])))
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder, generator = Path(name), random.Random(arguments.seed)
        table = make_rows(folder / "rows.csv", arguments, columns, generator)
        undisturbed = predict(folder / "undisturbed.csv", folder, arguments)
        moments = [generator.uniform(0.1, 0.6) * undisturbed["seconds"] for _ in range(arguments.kills)]
        runs = [
            predict(folder / "killed.csv", folder, arguments, after) for after in moments and [*moments, float("inf")]
        ]
        results = {"command": f"python {' '.join(sys.argv)}", "undisturbed": undisturbed, "killed": runs}
        results["equal"] = not runs or sha256(folder / "undisturbed.csv") == sha256(folder / "killed.csv")
        results["eval_lora"] = evaluate(table, arguments)
    results["ratio"] = round(undisturbed["rows_per_second"] / results["eval_lora"]["rows_per_second"], 3)
    print(json.dumps(results, indent=2))
    sys.exit(not results["equal"])


def make_rows(
    path: Path, arguments: argparse.Namespace, columns: list[str], generator: random.Random
) -> list[list[str]]:
    """Write a csv file with a number and the columns -> its rows of texts."""
    texts = [pq.read_table(arguments.data, columns=[column])[column].to_pylist() for column in columns]
    rows = [[generator.choice(column) for column in texts] for _ in range(arguments.rows)]
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["id", *columns], *([i, *row] for i, row in enumerate(rows))])
    return rows


def predict(out: Path, folder: Path, arguments: argparse.Namespace, kill_after: float = float("inf")) -> dict:
    """Run `predict` in a new process, and kill it after some seconds -> what it took."""
    command = [sys.executable, "-m", "tools.predict", folder / "rows.csv", "--out", out, "--all",
               "--adapter", arguments.adapter, "--batch-size", arguments.batch_size]  # fmt: skip
    command += ["--base", arguments.base] if arguments.base else []
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    with (folder / "log").open("w+") as log:
        start = time.monotonic()
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=env)
        timer = threading.Timer(min(kill_after, 1e6), process.send_signal, [signal.SIGKILL])
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        timer.cancel()
        log.seek(0)
        text = log.read()
    print(text, file=sys.stderr)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), text
    speed, resumed = re.search(r": ([\d,.]+) rows/s\n", text), re.search(r"^([\d,]+) rows are predicted", text, re.M)
    numbers = [float(match[1].replace(",", "")) if match else None for match in (speed, resumed)]
    about = {"killed": code != 0, "rows_per_second": numbers[0], "rows_from_before": numbers[1]}
    return about | {"seconds": round(seconds, 1), "peak_rss_gb": round(usage.ru_maxrss / 1e6, 2)}


def evaluate(rows: list[list[str]], arguments: argparse.Namespace) -> dict:
    """Predict tokenized rows in one call."""
    import pandas as pd

    from stages.data.batching import TokenizedRows
    from stages.data.task import name_text_columns, parse_columns
    from stages.data.tokenization import tokenize_rows
    from tools.predict.__main__ import load_classifier

    classifier, settings = load_classifier(arguments.adapter, False, arguments.base)
    table = pd.DataFrame(rows, columns=name_text_columns(parse_columns(settings.template)))
    table = tokenize_rows(table, classifier.tokenizer, settings.template, classifier.max_length)
    examples = TokenizedRows.from_lists(table["input_ids"], [0] * len(table))
    start = time.monotonic()
    classifier.predict(examples, arguments.batch_size)
    return {"rows_per_second": round(len(rows) / (time.monotonic() - start), 1)}


if __name__ == "__main__":
    main()
