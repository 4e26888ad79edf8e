"""Print a Markdown table line by line, while a simulation runs."""

import argparse


def make_parser(doc: str) -> argparse.ArgumentParser:
    """Parser of a command line with `--samples`; doc: the docstring of the script."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2000, help="of each line of the table; default: %(default)s")
    return parser


def parse_samples(doc: str) -> int:
    """Read `--samples` from the command line; doc: the docstring of the script."""
    return make_parser(doc).parse_args().samples


def print_header(*columns: str) -> None:
    print_line(*columns)
    print_line(*["---"] * len(columns))


def print_line(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)
