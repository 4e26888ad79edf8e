"""Compare runs with statistics: is a difference in accuracy more than chance? `dvc metrics diff` with a verdict.

    python -m tools.compare HEAD grand-cedi        compares each later run with the first
    python -m tools.compare --all                  compares all finished experiments of HEAD with HEAD
    python -m tools.compare --all --html page.html --png picture.png

A name is a Git revision, a DVC experiment, or `workspace`. Run the command in a folder with a dvc.yaml. It checks
nothing out: it reads each run's predictions from DVC's cache, or else from the metrics/cases.csv in Git. All runs must
have the same test rows in the same order.

Example: after the two variants of `python -m tools.sweep -S train.epochs=2 -S seed=1,2` in demo/,

    python -m tools.compare --all

prints, besides the accuracies,

    | recipe           | points of accuracy above A | p     | Holm's p | verdict             | detectable |
    | B train.epochs=2 | −0.9 (−1.5 to −0.3)        | 0.004 | 0.004    | worse (these seeds) | 0.9        |

Runs that differ only in `seed` are one recipe. To compare two recipes, train each with three or more seeds:
dvc exp run --queue -S 'lora.r=8,16' -S 'seed=1,2,3'
"""

import argparse
import io
import sys
from pathlib import Path

from stages.report import comparison_page
from stages.runtime import errors, files
from tools.git import repository_problem
from tools.group_runs import compare_runs
from tools.read_runs import find_cache, list_experiments, read_run


def main() -> None:
    arguments = parse_arguments()
    if not Path("dvc.yaml").is_file():
        raise errors.UserError("dvc.yaml: not in this folder; run this command in the folder of the pipeline")
    if problem := repository_problem():
        raise errors.UserError(problem)

    names, unfinished = list_experiments() if arguments.all else (list(dict.fromkeys(arguments.revisions)), [])
    notes = [f"Not finished, so left out: {', '.join(unfinished)}."] if unfinished else []
    cache = find_cache()
    comparison = compare_runs([read_run(name, cache) for name in names], arguments.confidence, notes)

    # Render everything before the first write or print: an error then leaves no output.
    picture = comparison_page.render_picture(comparison) if arguments.html or arguments.png else None
    if picture and arguments.html:
        page = comparison_page.render_html(comparison, picture[1])
        write(arguments.html, page.encode())
    if picture and arguments.png:
        write(arguments.png, picture[0])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    print(comparison_page.render_markdown(comparison), end="")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("revisions", nargs="*", metavar="NAME", help="Git revision, DVC experiment, or `workspace`")
    parser.add_argument("--all", action="store_true", help="compare HEAD and all its finished experiments")
    parser.add_argument(
        "--confidence",
        type=float,
        metavar="LEVEL",
        help="level of intervals and verdicts, such as 0.95; default: analysis.confidence of the first run",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the tables and the picture as a web page")
    parser.add_argument("--png", type=Path, metavar="FILE", help="write the picture")
    arguments = parser.parse_args()
    if arguments.all == bool(arguments.revisions):
        parser.error("give either names or --all")
    if arguments.confidence is not None and not 0.5 < arguments.confidence < 1:
        parser.error("--confidence must be between 0.5 and 1")
    return arguments


def write(path: Path, content: bytes) -> None:
    try:
        with files.atomic_file(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise errors.UserError(f"{path}: cannot be written ({error.strerror})") from error


if __name__ == "__main__":
    errors.run(main)
