"""What was run, as text."""

from typing import Any

from stages.data.data_summary import DataSummary
from stages.data.holdout import list_sizes
from stages.data.task import SPLITS, Task
from stages.report.run_description import RunDescription, Source, TestedData
from stages.runtime.params import Data

MAX_CLASSES = 20  # by name; further ones are counted
DIGEST_LENGTH = 12  # characters of a digest among the key facts
LIBRARIES = ("torch", "transformers", "peft")  # among the key facts


def key_facts(data: DataSummary, run: RunDescription) -> list[tuple[str, str]]:
    """(name, value) of what most readers look for."""
    p, versions = run.params, run.versions
    return [
        ("seed", str(p.seed)),
        *(
            (name, f"{source.name} ({source.digest[:DIGEST_LENGTH]}…)")
            for name, source in (("base model", run.model), *_list_data(run))
        ),
        ("rows", ", ".join(_rows(data, split) for split in SPLITS)),
        ("LoRA", f"rank {p.lora.r}, alpha {p.lora.alpha:g}"),
        ("training", f"{p.train.epochs} epochs, batch {p.train.batch_size}, learning rate {p.train.learning_rate:g}"),
        ("versions", ", ".join(f"{name} {versions[name]}" for name in LIBRARIES if name in versions)),
        ("device", run.device),
    ]


def recipe(data: DataSummary, run: RunDescription) -> list[tuple[str, str]]:
    """(name, value) of everything that was run. It has no time and no commit, so equal inputs give equal bytes."""
    p = run.params
    dropped = data.dropped_duplicates
    return [
        ("seed", str(p.seed)),
        ("base model", describe_source(run.model)),
        ("its weights", _section(p.model.settings.model_dump())),
        ("data", describe_source(run.data, f", subset {p.data.subset}" if p.data.subset else "")),
        *([("data of the test rows", _tested(run.tested))] if run.tested else []),
        ("rows", ", ".join(_rows(data, split, _origin(run, split)) for split in SPLITS)),
        ("rows held out", _describe_holdout(p.data)),
        ("duplicate training rows", f"{dropped.rows:,} dropped" if dropped else p.data.duplicates),
        (
            "rows without a gold label",
            "dropped" if p.data.unlabelled == "drop" else f"labelled {p.data.unlabelled}{_of_test(run)}",
        ),
        (run.task.labels.nouns, _classes(run.task)),
        ("input, in the model's chat template" if p.tokenize.chat else "input", run.task.template),
        ("tokens read", f"at most {p.tokenize.max_length:,} of each input"),
        ("LoRA", _section(p.lora.model_dump())),
        ("training", _section(p.train.recipe())),
        ("batches", _section(p.batches.model_dump())),
        ("adapter", describe_adapter(run.adapter)),
        ("versions", ", ".join(f"{name} {version}" for name, version in run.versions.items())),
        ("device", run.device),
    ]


def describe_source(source: Source, subset: str = "") -> str:
    """A model or data set by name, revision and digest."""
    revision = "" if source.revision is None else f", revision {source.revision}"
    return f"{source.name}{subset}{revision}, SHA-256 of its files {source.digest}"


def describe_adapter(digest: str) -> str:
    """An adapter by its digest. `tools.export` finds out by this text whether a card describes an adapter."""
    return f"SHA-256 of its files {digest}"


def _list_data(run: RunDescription) -> list[tuple[str, Source]]:
    if run.tested is None:
        return [("data", run.data)]
    return [("trained on", run.data), ("tested on", run.tested.source)]


def _tested(tested: TestedData) -> str:
    split = f", split {tested.split}" if tested.split else ""
    return f"{describe_source(tested.source)}{split}; {tested.reading}"


def _of_test(run: RunDescription) -> str:
    return "; of the test rows: dropped" if run.tested else ""


def _rows(data: DataSummary, split: str, origin: str = "") -> str:
    return f"{data.splits[split].kept:,} {split}{origin}"


def _origin(run: RunDescription, split: str) -> str:
    """Where the rows of a split are from, unless its name says so."""
    if run.tested and split == "test":
        return f" (of {run.tested.source.short_name})"
    data = run.params.data
    source, column = getattr(data.splits, split), data.split
    if source is None:
        return f" (held out of {data.splits.train})"
    if column is not None:
        return f" (of {column}: {source})"
    return f" (of {source})" if source != split else ""


def _describe_holdout(data: Data) -> str:
    sizes = {split: size for split in SPLITS if (size := list_sizes(data.holdout).get(split))}
    if not sizes:
        return "none"
    if data.group is not None:
        unit = f"the same {data.group}"
    else:
        columns = data.holdout.columns
        unit = f"equal {', '.join(columns)}" if columns else "equal texts in all columns of the template"
    return f"{_section(sizes | {'seed': data.holdout.seed})}; rows with {unit} are not separated"


def _classes(task: Task) -> str:
    names = ", ".join(task.classes[:MAX_CLASSES]) + (", …" if len(task.classes) > MAX_CLASSES else "")
    return f"{len(task.classes)}{task.labels.note}: {names}"


def _section(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    """A value as params.yaml spells it."""
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    if isinstance(value, list):
        return " ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
