"""Write a trained adapter for others: merged into its base model, or as the folder that `hf upload` takes.

    python -m tools.export merged                                  for transformers' pipeline, without this project
    python -m tools.export --adapter-only publish --license mit    the adapter with its model card, for the hub

Example: `python -m tools.export ../merged` in demo/ prints, before the lines of Python that load ../merged,

    1,000 test rows
    adapter on its own base: accuracy 97.7%
    merged into the original weights: accuracy 97.9%, answers flipped: 2, …
    merged into the dequantised weights: accuracy 97.7%, answers flipped: 0, …

**Merged.** The tool tries two merges on the workspace's test rows: into the base's original weights, and into the
dequantised 4-bit weights that training used. It writes the one whose predictions are closer to those of the adapter on
its 4-bit base. If a row may have several labels, an answer is all of them, and is flipped if one differs.

OUT is a folder with weights in 16 bits, tokenizer, model card, and classifier.json for a server. Before the tool gives
the folder its name, it loads the folder by `pipeline("text-classification", OUT)` and checks that the predictions are
those of the model in memory.

**--adapter-only.** OUT is a copy of the adapter. metrics/model_card.md, which must describe this adapter, becomes its
README.md. Without --license, the adapter gets the licence in the base's card. If the base was in a local folder, give
its name on the hub by --base-model. No file has a path of this machine. The last line that the tool prints uploads OUT.
"""

import argparse
import gc
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextClassificationPipeline, pipeline
from transformers.utils import logging

from stages.analysis.leading_metric import LeadingMetric
from stages.analysis.measures import choose_leading_metric
from stages.data.batching import TokenizedRows
from stages.data.classifier_settings import ClassifierSettings
from stages.data.confusion import count_classes, f1_macro, f1_micro
from stages.data.labels import Labels, equal_rows
from stages.data.task import Task, fill_template, name_text_columns, parse_columns
from stages.data.tokenization import encode_rows, is_unambiguous, load_configured_tokenizer
from stages.model import base_cache
from stages.model.adapter import count_parameters, load_adapter, save_tokenizer
from stages.model.adapter_files import read_adapter
from stages.model.base import load_base
from stages.model.classifier import Classifier
from stages.model.devices import pick_device, report_out_of_memory
from stages.model.merge import DTYPE, load_unquantised, merge
from stages.report import model_card
from stages.runtime import errors, files
from tools import publish
from tools.lock_params import check_rows

BATCH_SIZE = 64
MERGES = ("original", "dequantised")  # the weights that the adapter is added to
# If the weights are those that training used, only rounding to 16 bits changes the probabilities. Their mean difference
# was 0.0003 on the nano model, and 0.004 on Gemma 3 270M.
MAX_ROUNDING_DIFFERENCE = 0.05
# The loaded model has the same rows, batches and kernels as the one in memory, so that its probabilities hardly differ.
MAX_LOADING_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class Agreement:
    """How a model agrees with the adapter on its 4-bit base, on the same rows.

    Attributes:
        scores: of the model, 0 to 1, by the keys of `metrics.METRICS`: the leading metric of these rows, then accuracy.
            A row with several labels is right if all of them are.
        flips: number of rows for which the two predict different classes, or different sets of them.
        mean, largest: differences of the probabilities, 0 to 1, over all rows and classes.
    """

    scores: dict[LeadingMetric, float]
    flips: int
    mean: float
    largest: float

    @classmethod
    def measure(cls, probabilities: np.ndarray, expected: np.ndarray, gold: np.ndarray, labels: Labels) -> "Agreement":
        """Compare the model's probabilities with the adapter's, [rows, classes] each; gold: label array."""
        if not np.isfinite(probabilities).all():
            raise errors.UserError(f"in {dtype_name(DTYPE)} the merged model's probabilities are not all finite")
        predictions, differences = labels.decide(probabilities), np.abs(probabilities - expected)
        classes = len(labels.classes)
        metric, counts = choose_leading_metric(gold, classes), count_classes(gold, predictions, classes)
        scores: dict[LeadingMetric, float] = {"accuracy": float(equal_rows(predictions, gold).mean())}
        if metric != "accuracy":
            f1 = {"f1_micro": f1_micro, "f1_macro": f1_macro}[metric]
            scores = {metric: float(f1(counts)), **scores}
        return cls(
            scores,
            int((~equal_rows(predictions, labels.decide(expected))).sum()),
            float(differences.mean()),
            float(differences.max()),
        )


@dataclass(frozen=True)
class Adapter:
    """An adapter, and all that is needed to load it.

    Attributes:
        folder: written by `train_qlora`.
        settings: its classifier.json.
        manifest: of its base.
        tokenizer: as it is saved with the merged model.
    """

    folder: Path
    settings: ClassifierSettings
    manifest: dict
    tokenizer: PreTrainedTokenizerBase
    device: torch.device

    @classmethod
    def read(cls, folder: Path, base: Path | None = None) -> "Adapter":
        """Read an adapter's folder, and use a GPU if there is one.

        Args:
            base: folder of the base model; None: the one in the adapter's base.json.
        """
        settings, manifest = read_adapter(folder, base=base)
        tokenizer = load_configured_tokenizer(
            manifest,
            settings.template,
            model_max_length=settings.max_length,
            truncation_side="left",  # the model reads the class at the template's end
        )
        device = pick_device("cuda" if torch.cuda.is_available() else "cpu", threads=None)
        return cls(folder, settings, manifest, tokenizer, device)

    @property
    def merges(self) -> tuple[str, ...]:
        """The merges that differ: if the base was not quantised, training used the original weights."""
        return MERGES if self.settings.model.quantization == "nf4" else MERGES[:1]

    def load_on_base(self) -> Classifier:
        """Load the adapter on its base, as the project's own stages do."""
        settings = self.settings
        return Classifier.load(self.manifest, settings, settings.max_length, settings.labels, self.device, self.folder)

    def merge_into(self, weights: str) -> PreTrainedModel:
        """Merge the adapter into these weights, one of `merges`."""
        gc.collect()  # memory may not suffice for two merged models
        settings, quantised = self.settings, None
        if weights == "dequantised":
            quantised = load_base(
                self.manifest, settings.model, settings.labels, self.device, settings.seed, self.tokenizer
            )
        plain = load_unquantised(self.manifest, settings, self.device, self.tokenizer)
        return merge(load_adapter(plain, self.folder, self.manifest), quantised)


@dataclass(frozen=True)
class FilledRows:
    """Rows in the template, as the pipeline reads them.

    Attributes:
        texts: truncated as in training.
        ids: their tokens.
        gold: label array.
        truncated: number of truncated rows.
        left_out: number of test rows that are not used. If the template has special tokens, the pipeline reads their
            names in a row's texts as tokens too, while training read them as text.
    """

    texts: list[str]
    ids: list[list[int]]
    gold: np.ndarray
    truncated: int
    left_out: int = 0

    @classmethod
    def read(cls, adapter: Adapter) -> "FilledRows":
        """Read the workspace's test rows."""
        settings = adapter.settings
        columns = [*name_text_columns(parse_columns(settings.template)), "label"]
        table = settings.labels.from_lists(files.read_table("outs/tokenized/test.parquet", columns))
        texts, ids, full_lengths = encode_rows(table, adapter.tokenizer, settings.template, settings.max_length)
        usable = [i for i, text in enumerate(texts) if is_unambiguous(text, adapter.tokenizer, settings.template)]
        if not usable:
            raise errors.UserError(
                "outs/tokenized/test.parquet: every row has a text with the name of a special token, and the template "
                "has special tokens; export needs rows without such names"
            )
        return cls(
            [texts[i] for i in usable],
            [ids[i] for i in usable],
            settings.labels.from_codes(table["label"])[usable],
            sum(full_lengths[i] > settings.max_length for i in usable),
            len(table) - len(usable),
        )

    @property
    def tokenized(self) -> TokenizedRows:
        """The rows as `Classifier.predict` takes them."""
        return TokenizedRows.from_lists(self.ids, self.gold)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write: a new or an empty one")
    parser.add_argument("--adapter", type=Path, default=Path("outs/adapter"), help="its folder; default: %(default)s")
    parser.add_argument(
        "--base",
        type=Path,
        metavar="FOLDER",
        help="the base model's folder; default: the one in the adapter's base.json",
    )
    parser.add_argument("--base-model", metavar="OWNER/NAME", help="name on the hub of a base from a local folder")
    parser.add_argument("--license", metavar="ID", help="the hub's identifier of the licence, such as mit")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--merge", choices=MERGES, help="write this merge instead of the closer one")
    form.add_argument("--adapter-only", action="store_true", help="write the adapter and its card, not a merged model")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    check_vacant(out)
    if arguments.adapter_only:
        export_adapter(arguments)
        return
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # each load would report an untrained head, which the adapter's head replaces
    export(out, arguments.adapter, arguments.merge, arguments.base, arguments.base_model, arguments.license)


def export_adapter(arguments: argparse.Namespace) -> None:
    """Write the adapter and its card, and print how to upload them."""
    adapter, base, base_model, license_id = (
        getattr(arguments, name) for name in ("adapter", "base", "base_model", "license")
    )
    with write_folder(arguments.out.resolve()) as temporary:
        lines = publish.write_adapter(temporary, adapter, base, base_model, license_id)
        check_vacant(arguments.out)
    print("\n".join(publish.describe_folder(arguments.out, lines)))


def export(
    out: Path,
    folder: Path,
    merge_name: str | None,
    base: Path | None = None,
    base_model: str | None = None,
    license_id: str | None = None,
) -> None:
    """Merge, write OUT and print how the merged model agrees with the adapter.

    Args:
        out: absolute path.
        folder: of the adapter.
        merge_name: one of `MERGES`; None: the closer one.
        base: folder of the base model; None: the one in the adapter's base.json.
        base_model: the base's name on the hub, if it was in a local folder; None: the card has the folder's last name.
        license_id: the hub's identifier of the licence; None: the card has none.
    """
    adapter = Adapter.read(folder, base)
    named = publish.find_base(folder, adapter.manifest, base, base_model) if base_model else None
    if license_id:
        publish.check_license(license_id)
    if merge_name and merge_name not in adapter.merges:
        raise errors.UserError(
            f"--merge: {merge_name}, but {folder} was trained on weights that are not quantised; allowed: original"
        )
    task, data, labels = read_task(adapter), files.read_json("outs/data_source.json"), adapter.settings.labels
    check_rows(folder)
    rows = FilledRows.read(adapter)
    too_small = (
        f"{adapter.manifest['name']} does not fit into this GPU's memory in 4 and in 16 bits together; to use the CPU, "
        "write CUDA_VISIBLE_DEVICES= before the command"
    )
    with base_cache.cache_base(), report_out_of_memory(too_small):
        expected = predict_with_adapter(adapter, rows, out)
        probabilities = {name: predict_with_merge(adapter, name, rows) for name in adapter.merges}
        merges = {
            name: Agreement.measure(values, expected, rows.gold, labels) for name, values in probabilities.items()
        }
        check_merge(merges[adapter.merges[-1]])
        chosen = merge_name or choose_merge(merges)
        about = {
            "task": task,
            "model": named.manifest if named else adapter.manifest,
            "base_model": base_model,
            "license": license_id,
            "data": data,
            "settings": adapter.settings,
            "rows": len(rows.texts),
            "truncated": rows.truncated,
            "left_out": rows.left_out,
            "special": not adapter.tokenizer.split_special_tokens,
            "adapter": Agreement.measure(expected, expected, rows.gold, labels),
            "merges": merges,
            "chosen": chosen,
            "dtype": dtype_name(DTYPE),
            "example": fill_template(adapter.settings.template, model_card.example_texts(task)),
        }
        with write_folder(out) as temporary:
            adapter.merge_into(chosen).save_pretrained(temporary)
            save_tokenizer(adapter.tokenizer, temporary)
            shutil.copy(folder / "classifier.json", temporary)  # a server needs the template and max_length
            files.write_text(temporary / "README.md", model_card.build_export_card(about))
            for path in temporary.iterdir():  # safetensors makes its file readable by the owner only
                shutil.copymode(temporary / "config.json", path)
            check_written(temporary, adapter, rows, probabilities[chosen])
            size = sum(path.stat().st_size for path in temporary.iterdir())
            check_vacant(out)
    print("\n".join(summarize(about, size, out)))


def check_vacant(out: Path) -> None:
    """Reject a file, or a folder that is not empty."""
    try:
        is_taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise errors.UserError(f"{out}: {error.strerror}") from error
    if is_taken:
        raise errors.UserError(f"{out}: exists and is not an empty folder; allowed: a new or an empty folder")


def check_space(out: Path, parameters: int) -> None:
    """Reject a disk that is too full for the folder, which takes two bytes a parameter."""
    folder = next(folder for folder in out.parents if folder.exists())
    free, needed = shutil.disk_usage(folder).free, parameters * DTYPE.itemsize
    if free < needed:
        raise errors.UserError(f"{out}: needs {needed / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB free")


def read_task(adapter: Adapter) -> Task:
    """Read the workspace's task, which must be the adapter's."""
    task, settings = Task.read("outs/task.json"), adapter.settings
    for key, of_adapter, of_task in (
        ("classes", tuple(settings.classes), task.classes),
        ("columns", parse_columns(settings.template), task.columns),
        ("multi_label", (str(settings.multi_label),), (str(task.multi_label),)),
    ):
        if of_adapter != of_task:
            raise errors.UserError(
                f"outs/task.json: {key}: {', '.join(of_task)}, but {adapter.folder} has {', '.join(of_adapter)}; "
                "export needs test rows of the adapter's task"
            )
    return task


def predict_with_adapter(adapter: Adapter, rows: FilledRows, out: Path) -> np.ndarray:
    """Probabilities by the adapter on its base, [rows, classes]. The disk of `out` is checked first."""
    classifier = adapter.load_on_base()
    check_space(out, count_parameters(classifier.model)["total"])
    return classifier.predict(rows.tokenized, BATCH_SIZE, title="the adapter")


def predict_with_merge(adapter: Adapter, name: str, rows: FilledRows) -> np.ndarray:
    """Probabilities by the merged model in memory, [rows, classes]."""
    classifier = pipeline(  # type: ignore[call-overload]  # its hint omits PreTrainedTokenizerBase
        "text-classification",
        model=adapter.merge_into(name),
        tokenizer=adapter.tokenizer,
        device=adapter.device,
    )
    return predict_with_pipeline(classifier, rows.texts, adapter.settings.classes)


def predict_with_pipeline(
    classifier: TextClassificationPipeline, texts: list[str], classes: Sequence[str]
) -> np.ndarray:
    """Probabilities by a pipeline, in batches of similar length: float64 [rows, classes]."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    predictions: Any = classifier([texts[i] for i in order], batch_size=BATCH_SIZE, top_k=None)
    probabilities = np.empty((len(texts), len(classes)))
    for i, prediction in zip(order, predictions, strict=True):
        scores = {score["label"]: score["score"] for score in prediction}
        probabilities[i] = [scores[name] for name in classes]
    return probabilities


def check_merge(agreement: Agreement) -> None:
    """Reject a merge into the weights of training if rounding cannot explain how far it is from the adapter."""
    if agreement.mean > MAX_ROUNDING_DIFFERENCE:
        raise errors.UserError(
            "the merged model does not predict as the adapter does: probabilities differ by "
            f"{agreement.mean:.2g} in the mean ({agreement.flips:,} predictions flipped), and rounding explains up to "
            f"{MAX_ROUNDING_DIFFERENCE}"
        )


def choose_merge(merges: dict[str, Agreement]) -> str:
    """The merge with the fewest flips; if equal, the one with the smaller mean difference."""
    return min(merges, key=lambda name: (merges[name].flips, merges[name].mean))


@contextmanager
def write_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder, and name it `out` at the end. An error of the disk is reported in one line."""
    try:
        with files.atomic_folder(out) as folder:
            yield folder
    except (OSError, SafetensorError) as error:
        raise errors.UserError(f"{out}: not written ({errors.first_line(error)})") from error


def check_written(folder: Path, adapter: Adapter, rows: FilledRows, expected: np.ndarray) -> None:
    """Load a folder as its user does, and compare tokens and probabilities with those before it was written.

    Args:
        expected: probabilities by the model in memory, [rows, classes].

    Raises:
        UserError: they differ.
    """
    failed = "not written: loaded by transformers' pipeline, the merged model"
    gc.collect()  # frees the model that was written
    try:
        classifier = pipeline("text-classification", model=str(folder), device=adapter.device)
        tokenizer: Any = classifier.tokenizer
        ids = tokenizer(rows.texts)["input_ids"]
        probabilities = predict_with_pipeline(classifier, rows.texts, adapter.settings.classes)
    except (ValueError, KeyError, RuntimeError, TypeError) as error:  # wrong shapes, class names or missing entries
        raise errors.UserError(f"{failed} is not usable ({errors.type_and_first_line(error)})") from error
    differing = sum(one != other for one, other in zip(ids, rows.ids, strict=True))
    if differing:
        raise errors.UserError(f"{failed} tokenizes {differing:,} of {len(ids):,} texts differently from training")
    difference = np.abs(probabilities - expected).max()
    if not difference <= MAX_LOADING_DIFFERENCE:  # also true for NaN
        raise errors.UserError(
            f"{failed} predicts differently than in memory: probabilities differ by up to {difference:.2g}"
        )


def summarize(about: dict[str, Any], size: int, out: Path) -> list[str]:
    """The lines that the tool prints; about: as in `model_card.build_export_card`; size: bytes."""
    call, titles = "print(classify({}))", model_card.name_scores(about["adapter"].scores, about["task"].labels)
    if about["task"].multi_label:
        call = 'print([x for x in classify({}, top_k=None) if x["score"] > 0.5])'
    lines = [f"{about['rows']:,} test rows"]
    if about["left_out"]:
        lines.append(f"{about['left_out']:,} more were left out: their texts have the name of a special token")

    def list_scores(agreement: Agreement) -> str:
        return ", ".join(f"{title} {agreement.scores[key]:.1%}" for key, title in titles.items())

    lines.append(f"adapter on its own base: {list_scores(about['adapter'])}")
    for name, agreement in about["merges"].items():
        lines.append(
            f"merged into the {name} weights: {list_scores(agreement)}, "
            f"answers flipped: {agreement.flips:,}, probabilities at most {agreement.largest:.3f} apart, "
            f"{agreement.mean:.5f} in the mean"
        )
    return [
        *lines,
        f"{out}: merged into the {about['chosen']} weights, {size / 1e9:.3g} GB in {about['dtype']}; "
        "loaded from disk, it predicts as it did in memory. To use it:",
        "",
        "from transformers import pipeline",
        f'classify = pipeline("text-classification", {json.dumps(str(out), ensure_ascii=False)})',
        call.format(json.dumps(about["example"], ensure_ascii=False)),
    ]


def dtype_name(dtype: torch.dtype) -> str:
    """The name without its module, such as bfloat16."""
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    errors.run(main)
