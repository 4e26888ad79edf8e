"""Ask a trained adapter whether a hypothesis follows from a premise.

    python -m stages.predict "A man is sleeping." "A man is awake."
    python -m stages.predict                        asks for one pair after another
    python -m stages.predict < pairs.jsonl          JSON lines in, JSON lines out

No stage of the pipeline, and no params.yaml: the adapter's folder says how it is to be read, and names its base.
"""

import argparse
import itertools
import json
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from stages.core import batching, data, errors, evaluation, files, model, params
from stages.core.labels import LABELS
from stages.core.tokenizer import load_tokenizer

BATCH = 64  # pairs


def main():
    parser = argparse.ArgumentParser(
        prog="python -m stages.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("premise", nargs="?")
    parser.add_argument("hypothesis", nargs="?")
    parser.add_argument("--adapter", type=Path, default=Path("models/adapter"), help="its folder (%(default)s)")
    parser.add_argument(
        "--base", action="store_true", help="ask the untuned model, with the head that tuning began from"
    )
    arguments = parser.parse_args()
    if arguments.premise and not arguments.hypothesis:
        parser.error("a premise needs a hypothesis")
    ask = load(arguments.adapter, arguments.base)
    if arguments.premise:
        print(shown(ask([(arguments.premise, arguments.hypothesis)])[0]))
    elif sys.stdin.isatty():
        converse(ask)
    else:
        answer_lines(ask, sys.stdin)


def load(adapter, base_only):
    """The model behind a function: list of (premise, hypothesis) -> list of {"label", "probabilities"}.

    Args:
        adapter: folder that `train_qlora` wrote.
        base_only: leave the adapter off.
    """
    saved, manifest = files.read_json(adapter / "classifier.json"), files.read_json(adapter / "base.json")
    device = model.pick_device("cuda" if torch.cuda.is_available() else "cpu", threads=None)
    tokenizer = load_tokenizer(manifest)
    classifier = model.load_base(manifest, params.Model(**saved["model"]), device, saved["seed"], tokenizer)
    if not base_only:
        classifier = model.load_adapter(classifier, adapter, manifest)
    evaluation.speed_up(classifier)
    groups = params.Tokenize(**saved["tokenize"]), params.Batches(**saved["batches"])
    return partial(answers, classifier, tokenizer, *groups)


def answers(classifier, tokenizer, tokenize, batches, pairs):
    """Label and probabilities of each pair, by the classes' names."""
    rows = pd.DataFrame(pairs, columns=["premise", "hypothesis"]).assign(label=0)
    rows = data.tokenize(rows, tokenizer, tokenize.template, tokenize.max_length)
    probabilities = evaluation.predict(
        classifier, batching.as_examples(rows), tokenizer.pad_token_id, BATCH, batches, tokenize.max_length, title=None
    )
    return [
        {
            "label": LABELS[row.argmax()],
            "probabilities": {name: round(float(value), 6) for name, value in zip(LABELS, row, strict=True)},
        }
        for row in probabilities
    ]


def shown(answer):
    """An answer for people."""
    return "\n".join([answer["label"], *(f"  {p:6.1%} {name}" for name, p in answer["probabilities"].items())])


def converse(ask):
    """Ask for pairs until an empty line or the end of input."""
    print("An empty line ends.")
    try:
        while (premise := input("premise:    ").strip()) and (hypothesis := input("hypothesis: ").strip()):
            print(shown(ask([(premise, hypothesis)])[0]))
    except EOFError:
        print()


def answer_lines(ask, lines):
    """Read {"premise", "hypothesis"} a line, write the same with label and probabilities, a batch at a time."""
    read = (parsed(number, line) for number, line in enumerate(lines, start=1) if line.strip())
    while batch := list(itertools.islice(read, BATCH)):
        for line, answer in zip(batch, ask([(line["premise"], line["hypothesis"]) for line in batch]), strict=True):
            print(json.dumps(line | answer, ensure_ascii=False), flush=True)


def parsed(number, line):
    """A line of input as a dict, checked."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise errors.UserError(f"standard input, line {number}: not JSON ({error})") from error
    for key in ("premise", "hypothesis"):
        if not isinstance(value, dict) or not isinstance(value.get(key), str) or not value[key].strip():
            raise errors.UserError(f"standard input, line {number}: '{key}' must be text that is not empty")
    return value


if __name__ == "__main__":
    errors.run(main)
