"""Merge a trained adapter into its base: a folder in 16 bits that transformers' pipeline loads without this project.

    python -m tools.export OUT

Two merges are tried on the workspace's test rows: into the base's original weights, and into the 4-bit weights that
training saw, dequantised. The one whose answers are closer to the adapter's on its own base is written. Before OUT gets
its name, it is read back by `pipeline("text-classification", OUT)`, and has to answer as it did in memory.
"""

import argparse
import gc
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextClassificationPipeline, pipeline
from transformers.utils import logging

from stages.data.batching import TokenizedRows
from stages.data.task import Task
from stages.data.tokenization import (
    encode_rows,
    fill_template,
    is_unambiguous,
    load_configured_tokenizer,
    parse_columns,
)
from stages.model import base_cache
from stages.model.adapter import count_parameters, load_adapter, save_tokenizer
from stages.model.adapter_files import ClassifierSettings, read_adapter
from stages.model.base import load_base
from stages.model.classifier import Classifier
from stages.model.devices import pick_device, report_out_of_memory
from stages.model.merge import DTYPE, load_unquantised, merge
from stages.report import model_card
from stages.runtime import errors, files

BATCH = 64  # rows
MERGES = ("original", "dequantised")  # whose weights the adapter is added to
# Mean difference of the probabilities that rounding to 16 bits may make where the weights are those that training saw.
# It was 0.0003 on the nano model, and 0.004 on Gemma 3 270M.
ROUNDING = 0.05
# How far a probability may be from the same model's in memory: rows, batches and kernels are the same there, so by
# next to nothing.
SAME = 1e-3


@dataclass(frozen=True)
class Agreement:
    """How a model answers beside the adapter on its 4-bit base, on the same rows.

    Attributes:
        accuracy: share of the rows that it gets right, 0 to 1.
        flips: rows that get another class.
        mean, largest: differences of the probabilities, 0 to 1, over all rows and classes.
    """

    accuracy: float
    flips: int
    mean: float
    largest: float

    @classmethod
    def of(cls, found: np.ndarray, expected: np.ndarray, gold: np.ndarray) -> "Agreement":
        """Probabilities [rows, classes] of both, and the rows' classes."""
        if not np.isfinite(found).all():
            raise errors.UserError(f"in {name_of(DTYPE)} the merged model answers with numbers that are not finite")
        answers, apart = found.argmax(axis=1), np.abs(found - expected)
        return cls(
            float((answers == gold).mean()),
            int((answers != expected.argmax(axis=1)).sum()),
            float(apart.mean()),
            float(apart.max()),
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; must be empty or not there")
    parser.add_argument("--adapter", type=Path, default=Path("outs/adapter"), help="its folder (%(default)s)")
    parser.add_argument(
        "--base", type=Path, metavar="FOLDER", help="the base model's folder; default: the one in its base.json"
    )
    parser.add_argument("--merge", choices=MERGES, help="write this merge, not the closer one")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    check_vacant(out)
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # of the untrained head that each load reports, the adapter's takes the place
    export(out, arguments.adapter, arguments.merge, arguments.base)


@dataclass(frozen=True)
class Adapter:
    """An adapter, and all that is needed to load it.

    Attributes:
        folder: that `train_qlora` wrote.
        reading: its classifier.json.
        manifest: of its base.
        tokenizer: as it is saved with the merged model.
    """

    folder: Path
    reading: ClassifierSettings
    manifest: dict
    tokenizer: PreTrainedTokenizerBase
    device: torch.device

    @classmethod
    def read(cls, folder: Path, base: Path | None = None) -> "Adapter":
        """From its folder, and from that of its base (None: where its base.json says); on a GPU where there is one."""
        reading, manifest = read_adapter(folder, base=base)
        tokenizer = load_configured_tokenizer(
            manifest,
            reading.tokenize.template,
            model_max_length=reading.tokenize.max_length,
            truncation_side="left",  # the model reads its class from the template's end
        )
        device = pick_device("cuda" if torch.cuda.is_available() else "cpu", threads=None)
        return cls(folder, reading, manifest, tokenizer, device)

    @property
    def merges(self) -> tuple[str, ...]:
        """The merges that differ: without quantisation training saw the original weights."""
        return MERGES if self.reading.model.quantization == "nf4" else MERGES[:1]

    def on_its_base(self) -> Classifier:
        """As the project itself answers with it."""
        return Classifier.load(self.manifest, self.reading, self.reading.classes, self.device, self.folder)

    def merged(self, name: str) -> PreTrainedModel:
        """Merged into the weights of this name, one of `merges`."""
        gc.collect()  # two merged models at a time need not fit
        reading, quantised = self.reading, None
        if name == "dequantised":
            quantised = load_base(
                self.manifest, reading.model, reading.classes, self.device, reading.seed, self.tokenizer
            )
        plain = load_unquantised(self.manifest, reading, self.device, self.tokenizer)
        return merge(load_adapter(plain, self.folder, self.manifest), quantised)


@dataclass(frozen=True)
class Rows:
    """Rows to ask.

    Attributes:
        texts: in the template, cut as training cut them.
        ids: their tokens.
        gold: int [rows].
        truncated: how many were cut.
        left_out: how many test rows are not among them. The template has special tokens, and these rows' texts hold the
            name of one: the pipeline would read a token there, since it can't tell it from the template's.
    """

    texts: list[str]
    ids: list[list[int]]
    gold: np.ndarray
    truncated: int
    left_out: int = 0

    @classmethod
    def read(cls, adapter: Adapter) -> "Rows":
        """The workspace's test rows."""
        table, how = files.read_table("outs/tokenized/test.parquet"), adapter.reading.tokenize
        texts, ids, truncated = encode_rows(table, adapter.tokenizer, how.template, how.max_length)
        kept = [i for i, text in enumerate(texts) if is_unambiguous(text, adapter.tokenizer, how.template)]
        if not kept:
            raise errors.UserError("outs/tokenized/test.parquet: each row's texts hold the name of a special token")
        texts, ids, truncated = ([values[i] for i in kept] for values in (texts, ids, truncated))
        return cls(texts, ids, table["label"].to_numpy()[kept], sum(truncated), len(table) - len(kept))

    @property
    def examples(self) -> TokenizedRows:
        """As `Classifier.predict` takes them."""
        return TokenizedRows.from_lists(self.ids, self.gold)


def export(out: Path, folder: Path, wanted: str | None, base: Path | None = None) -> None:
    """Write OUT, and print what it is worth.

    Args:
        out: absolute.
        folder: of the adapter.
        wanted: one of `MERGES`, or None for the closer one.
        base: folder of the base's files; None: where its base.json says.
    """
    adapter = Adapter.read(folder, base)
    if wanted and wanted not in adapter.merges:
        raise errors.UserError(f"--merge: {wanted}, but {folder} was trained on weights that are not quantised")
    task, data = test_task(adapter), files.read_json("outs/data_source.json")
    rows = Rows.read(adapter)
    too_small = (
        f"{adapter.manifest['name']} does not fit this GPU's memory in 4 and in 16 bits at a time; "
        "with CUDA_VISIBLE_DEVICES= before the command it is done on the CPU"
    )
    with base_cache.cache_base(), report_out_of_memory(too_small):
        expected = of_adapter(adapter, rows, out)
        found = {name: of_merged(adapter, name, rows) for name in adapter.merges}
        merges = {name: Agreement.of(answers, expected, rows.gold) for name, answers in found.items()}
        check_right(merges[adapter.merges[-1]])
        chosen = wanted or closest(merges)
        about = {
            "task": task, "model": adapter.manifest, "data": data, "reading": adapter.reading, "rows": len(rows.texts),
            "truncated": rows.truncated, "left_out": rows.left_out,
            "special": not adapter.tokenizer.split_special_tokens,
            "own": Agreement.of(expected, expected, rows.gold), "merges": merges,
            "chosen": chosen, "dtype": name_of(DTYPE),
            "example": fill_template(adapter.reading.tokenize.template, model_card.example_texts(task)),
        }  # fmt: skip
        with writing(out) as written:
            adapter.merged(chosen).save_pretrained(written)
            save_tokenizer(adapter.tokenizer, written)
            files.write_text(written / "README.md", model_card.build_export_card(about))
            for path in written.iterdir():
                shutil.copymode(written / "config.json", path)  # safetensors lets nobody but the owner read
            check_written(written, adapter, rows, found[chosen])
            size = sum(path.stat().st_size for path in written.iterdir())
            check_vacant(out)
    print("\n".join(summary(about, size, out)))


def check_vacant(out: Path) -> None:
    """Refuse a folder that has something in it, or a file."""
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise errors.UserError(f"{out}: {error.strerror}") from error
    if taken:
        raise errors.UserError(f"{out}: is there already; allowed: a new or an empty folder")


def check_space(out: Path, parameters: int) -> None:
    """Refuse a disk that can't hold the folder: two bytes a parameter."""
    there = next(folder for folder in out.parents if folder.exists())
    free, needed = shutil.disk_usage(there).free, parameters * DTYPE.itemsize
    if free < needed:
        raise errors.UserError(f"{out}: needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there")


def test_task(adapter: Adapter) -> Task:
    """The workspace's task; refused where the adapter has another one."""
    task, reading = Task.read("outs/task.json"), adapter.reading
    for key, own, theirs in (
        ("classes", tuple(reading.classes), task.classes),
        ("columns", parse_columns(reading.tokenize.template), task.columns),
    ):
        if own != theirs:
            raise errors.UserError(
                f"outs/task.json: {key}: {', '.join(theirs)}, but {adapter.folder} has {', '.join(own)}; "
                "the test rows have to be of the adapter's task"
            )
    return task


def of_adapter(adapter: Adapter, rows: Rows, out: Path) -> np.ndarray:
    """Probabilities by the adapter on its base, [rows, classes]; refused where the disk of `out` is too full for it."""
    classifier = adapter.on_its_base()
    check_space(out, count_parameters(classifier.model)["total"])
    return classifier.predict(rows.examples, BATCH, title="the adapter")


def of_merged(adapter: Adapter, name: str, rows: Rows) -> np.ndarray:
    """Probabilities by the merged model in memory, [rows, classes]."""
    model = adapter.merged(name)
    asked = pipeline("text-classification", model=model, tokenizer=adapter.tokenizer, device=adapter.device)
    return probabilities(asked, rows.texts, adapter.reading.classes)


def check_right(trained: Agreement) -> None:
    """Refuse a merge into the weights that training saw whose answers are further away than rounding takes them."""
    if trained.mean > ROUNDING:
        raise errors.UserError(
            f"the merged model does not answer as the adapter does: probabilities are {trained.mean:.2g} apart in the "
            f"mean ({trained.flips:,} answers flipped), and rounding explains {ROUNDING}"
        )


def closest(merges: dict[str, Agreement]) -> str:
    """The merge with the fewest flips; of equals the one whose probabilities are closer in the mean."""
    return min(merges, key=lambda name: (merges[name].flips, merges[name].mean))


def probabilities(asked: TextClassificationPipeline, texts: list[str], classes: Sequence[str]) -> np.ndarray:
    """What a pipeline answers, in batches of similar length: float64 [rows, classes]."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    answers = asked([texts[i] for i in order], batch_size=BATCH, top_k=None)
    found = np.empty((len(texts), len(classes)))
    for i, answer in zip(order, answers, strict=True):
        scores = {each["label"]: each["score"] for each in answer}
        found[i] = [scores[name] for name in classes]
    return found


@contextmanager
def writing(out: Path) -> Iterator[Path]:
    """Yield a temporary folder that gets the name `out` when all is well; a full or locked disk is told in one line."""
    try:
        with files.atomic_folder(out) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        raise errors.UserError(f"{out}: not written ({errors.first_line(error)})") from error


def check_written(folder: Path, adapter: Adapter, rows: Rows, expected: np.ndarray) -> None:
    """Read a folder back as its user does, and compare its tokens and its answers with those of before.

    Args:
        expected: probabilities by the model in memory, [rows, classes].

    Raises:
        UserError: where they are others.
    """
    failed = "not kept: read back by transformers' pipeline, it"
    gc.collect()  # the model that was written
    try:
        asked = pipeline("text-classification", model=str(folder), device=adapter.device)
        ids = asked.tokenizer(rows.texts)["input_ids"]
        found = probabilities(asked, rows.texts, adapter.reading.classes)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:  # shapes, names of classes, what is not there
        raise errors.UserError(f"{failed} is not usable ({errors.type_and_first_line(error)})") from error
    others = sum(one != other for one, other in zip(ids, rows.ids, strict=True))
    if others:
        raise errors.UserError(f"{failed} makes other tokens of {others:,} of {len(ids):,} texts than training did")
    apart = np.abs(found - expected).max()
    if not apart <= SAME:  # NaN too
        raise errors.UserError(f"{failed} answers otherwise than in memory: probabilities are up to {apart:.2g} apart")


def summary(about: dict, size: int, out: Path) -> list[str]:
    """What is printed in the end; about: as `model_card.build_export_card` takes it; size: bytes."""
    lines = [f"{about['rows']:,} test rows"]
    if about["left_out"]:
        lines.append(f"{about['left_out']:,} more were left out: their texts hold the name of a special token")
    lines.append(f"adapter on its own base: accuracy {about['own'].accuracy:.1%}")
    for name, found in about["merges"].items():
        lines.append(
            f"merged into the {name} weights: accuracy {found.accuracy:.1%}, answers flipped: {found.flips:,}, "
            f"probabilities at most {found.largest:.3f} apart, {found.mean:.5f} in the mean"
        )
    return [
        *lines,
        f"{out}: merged into the {about['chosen']} weights, {size / 1e9:.3g} GB in {about['dtype']}; "
        "read back, it answers as it did in memory. To use it:",
        "",
        "from transformers import pipeline",
        f'ask = pipeline("text-classification", {json.dumps(str(out), ensure_ascii=False)})',
        f"print(ask({json.dumps(about['example'], ensure_ascii=False)}))",
    ]


def name_of(dtype: torch.dtype) -> str:
    """As people write it: bfloat16."""
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    errors.run(main)
