"""Score the run of this folder on labelled data that its training never saw, next to the base and the references.

    python -m tools.evaluate reviews_2024.csv
    python -m tools.evaluate ../mnli --split validation_matched --label gold_label
    python -m tools.evaluate a.csv b.csv --adapter adapters/lora-r8      another run's adapter on the same rows

DATA is a file, a folder, or OWNER/NAME on the Hugging Face hub. Run the command in the folder with params.yaml, after
`dvc repro`. Each data set gets the same report as the run's own test rows, in evaluations/NAME. evaluations/sets.md
compares the data sets with the own test set.

Example: a file with the columns `sentence1;sentence2;verdict` and the labels yes, maybe and no is scored by

    python -m tools.evaluate pairs.csv --column premise=sentence1 --column hypothesis=sentence2 --label verdict \\
        --class yes=entailment --class maybe=neutral --class no=contradiction

If the run's rows may have several labels, the labels of the data may have any of the three forms of docs/own-data.md:
a column of lists, a text with a separator between labels, or a column of 0 and 1 for each label:

    python -m tools.evaluate posts.csv --label anger --label joy --label fear
"""

import argparse
from pathlib import Path

from stages.runtime import errors
from tools.column_map import add_column_argument
from tools.evaluate import ADAPTER


def main() -> None:
    arguments = parse_arguments()
    check_paths(arguments)

    from tools.evaluate.score_sets import score  # imports pandas and matplotlib: errors of options and paths come first

    score(arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="a file, a folder, or OWNER/NAME on the hub")
    parser.add_argument("--split", metavar="NAME", help="default: the one called test, or the only one")
    parser.add_argument("--subset", metavar="NAME", help="the configuration, if the data set has several")
    add_column_argument(parser)
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="COLUMN",
        help="the label column; repeat it for a column of 0 and 1 for each label (default: data.label of params.yaml)",
    )
    parser.add_argument(
        "--separator",
        metavar="TEXT",
        help="what is between the labels of a row in a text (default: data.separator of params.yaml)",
    )
    parser.add_argument(
        "--class",
        action="append",
        default=[],
        dest="classes",
        metavar="LABEL=CLASS",
        help="a label of the data, and the run's class or label that it means, such as yes=entailment; repeat it for "
        "several (default: the one of the same name)",
    )
    parser.add_argument(
        "--group",
        metavar="COLUMN",
        help="a column whose equal values belong together (default: the run's group column if the data has it)",
    )
    for flag, what in (("sep", "separator"), ("encoding", "encoding"), ("quotechar", "quote character")):
        parser.add_argument(f"--{flag}", help=f"the {what} of csv files (default: detected)")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help=f"another run's adapter, compared with {ADAPTER} on the same rows; repeat it for several",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("evaluations"),
        metavar="FOLDER",
        help="for sets.md and a folder of each data set (default: %(default)s)",
    )
    arguments = parser.parse_args()
    arguments.sep = "\t" if arguments.sep == "\\t" else arguments.sep
    return arguments


def check_paths(arguments: argparse.Namespace) -> None:
    """Reject a path that does not exist."""
    from stages.sources import hub  # takes a second, which --help does not

    for given in arguments.data:
        if not (Path(given).exists() or hub.NAME.fullmatch(given)):
            raise errors.UserError(
                f"{given}: no such file or folder; allowed: a path, or OWNER/NAME on the Hugging Face hub"
            )
    if missing := next((folder for folder in arguments.adapter if not folder.is_dir()), None):
        raise errors.UserError(f"--adapter: {missing}: no such folder; name one that `train_qlora` has written")


if __name__ == "__main__":
    errors.run(main)
