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
from typing import Annotated, Any, Literal

import pandas as pd
import torch
from peft import LoraConfig
from pydantic import ConfigDict, Field, create_model

from stages.core import batching, data, errors, evaluation, files, model, params
from stages.core.labels import LABELS
from stages.core.tokenizer import load_tokenizer

BATCH = 64  # pairs

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Reading(params.Group):
    """classifier.json: how the adapter is to be read."""

    seed: params.Seed
    model: params.Model
    tokenize: params.Tokenize
    batches: params.Batches


class ManifestFile(params.Group):
    """A file of the base: its size in bytes, and its SHA-256."""

    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Manifest(params.Group):
    """base.json: the base and its files."""

    name: params.Text
    revision: params.Text
    digest: Sha256
    files: dict[params.Text, ManifestFile]


class LoraSettings(params.Group):
    """The keys of adapter_config.json without which PEFT would take a default of its own, and answer otherwise."""

    model_config = ConfigDict(strict=True)  # PEFT reads the file itself, and takes no number written as text

    peft_type: Literal["LORA"]
    task_type: Literal["SEQ_CLS"]
    r: params.Count
    lora_alpha: params.Positive
    target_modules: params.Text | Annotated[list[params.Text], Field(min_length=1)]


# PEFT's other keys may be missing (another version wrote the file); one that it does not know it would leave out.
AdapterConfig = create_model(
    "AdapterConfig",
    __base__=LoraSettings,
    **{
        key: (Any if default is None else type(default), default)
        for key, default in LoraConfig().to_dict().items()
        if key not in LoraSettings.model_fields
    },
)


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

    Raises:
        UserError: naming the file of the folder, and each key that is missing, unknown or of another type.
    """
    saved = read(adapter / "classifier.json", Reading)
    manifest = read(adapter / "base.json", Manifest).model_dump()
    if not base_only:
        read(adapter / "adapter_config.json", AdapterConfig)
    device = model.pick_device("cuda" if torch.cuda.is_available() else "cpu", threads=None)
    tokenizer = load_tokenizer(manifest)
    classifier = model.load_base(manifest, saved.model, device, saved.seed, tokenizer)
    if not base_only:
        classifier = model.load_adapter(classifier, adapter, manifest)
    evaluation.speed_up(classifier)
    return partial(answers, classifier, tokenizer, saved.tokenize, saved.batches)


def read(path, group):
    """A JSON file of the adapter's folder, checked."""
    try:
        return params.checked(files.read_json(path), group, path)
    except RecursionError as error:
        raise errors.UserError(f"{path}: not readable as JSON (nested too deep)") from error


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
