"""What was run, as text."""

from typing import Any

from pydantic import BaseModel

from stages.task.labels import SPLITS


def recipe(data_summary: dict[str, Any], about: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of each line.

    Args:
        data_summary: of data/summary.json.
        about: as `document.context` takes it.
    """
    p, model, data = about["params"], about["model"], about["data"]
    return [
        ("base model", f"{model['name']}, revision {model['revision']}"),
        ("its weights", _listed(p.model)),
        ("data", f"{data['name']}, revision {data['revision']}"),
        ("rows", ", ".join(f"{data_summary[split]['kept']:,} {split}" for split in SPLITS)),
        ("rows without a gold label", {"drop": "dropped", "neutral": "taken for neutral"}[p.data.unlabelled]),
        ("input", p.tokenize.template),
        ("LoRA", _listed(p.lora)),
        ("training", f"{_listed(p.train)}, seed {p.seed}"),
        ("device", about["device"]),
    ]


def _listed(group: BaseModel) -> str:
    values = group.model_dump(exclude={"name", "revision"})
    return ", ".join(f"{key} {'none' if value is None else value}" for key, value in values.items())
