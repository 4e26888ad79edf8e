"""What was run, as text."""

from typing import Any

from pydantic import BaseModel

from stages.data.task import SPLITS, Task

NAMED = 20  # classes; more are counted
DIGEST = 12  # characters of a digest among the key facts
LIBRARIES = ("torch", "transformers", "peft")  # among the key facts


def key_facts(data_summary: dict[str, Any], about: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what a reader looks for first; arguments: as of `recipe`."""
    p, versions = about["params"], about["versions"]
    return [
        ("seed", str(p.seed)),
        *((what, f"{source['name']} ({source['digest'][:DIGEST]}…)") for what, source in _sources(about)),
        ("rows", ", ".join(_rows(split, data_summary[split], split) for split in SPLITS)),
        ("LoRA", f"rank {p.lora.r}, alpha {p.lora.alpha:g}"),
        ("training", f"{p.train.epochs} epochs, batch {p.train.batch_size}, learning rate {p.train.learning_rate:g}"),
        ("versions", ", ".join(f"{name} {versions[name]}" for name in LIBRARIES if name in versions)),
        ("device", about["device"]),
    ]


def recipe(data_summary: dict[str, Any], about: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of each line: no clock and no commit in it, so that equal inputs give equal bytes.

    Args:
        data_summary: of outs/data_summary.json.
        about: as `document.context` takes it.
    """
    p, task = about["params"], about["task"]
    (_, model), (_, data) = _sources(about)
    return [
        ("seed", str(p.seed)),
        ("base model", _source(model)),
        ("its weights", _listed(p.model)),
        ("data", _source(data, f", subset {p.data.subset}" if p.data.subset else "")),
        ("rows", ", ".join(_rows(split, data_summary[split], getattr(p.data.splits, split)) for split in SPLITS)),
        ("rows without a gold label", "dropped" if p.data.unlabelled == "drop" else f"taken for {p.data.unlabelled}"),
        ("classes", _classes(task)),
        ("input", p.tokenize.template),
        ("longest input", f"{p.tokenize.max_length:,} tokens"),
        ("LoRA", _listed(p.lora)),
        ("training", _listed(p.train)),
        ("batches", _listed(p.batches)),
        ("versions", ", ".join(f"{name} {version}" for name, version in about["versions"].items())),
        ("device", about["device"]),
    ]


def _sources(about: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [("base model", about["model"]), ("data", about["data"])]


def _source(source: dict[str, Any], subset: str = "") -> str:
    """A model or data set by name, revision and digest; a folder may be pinned by the digest itself."""
    revision = "" if source["revision"] == source["digest"] else f", revision {source['revision']}"
    return f"{source['name']}{subset}{revision}, SHA-256 of its files {source['digest']}"


def _rows(split: str, found: dict[str, Any], taken: str) -> str:
    return f"{found['kept']:,} {split}" + (f" (of {taken})" if taken != split else "")


def _classes(task: Task) -> str:
    named = ", ".join(task.classes[:NAMED]) + (", …" if len(task.classes) > NAMED else "")
    return f"{len(task.classes)}: {named}"


def _listed(group: BaseModel) -> str:
    values = group.model_dump(exclude={"name", "revision"})
    return ", ".join(f"{key} {_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    """A value in the spelling of params.yaml."""
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    if isinstance(value, list):
        return " ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
