"""What a run was made of: task, model, data, parameters, device, versions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from stages.data.task import Task
from stages.runtime.params import Params


@dataclass(frozen=True)
class Source:
    """A model or data set. `revision` is its commit on the hub, or None for a folder; `digest` is of its files."""

    name: str
    revision: str | None
    digest: str

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> Self:
        return cls(manifest["name"], manifest["revision"], manifest["digest"])

    @property
    def is_local(self) -> bool:
        return self.revision is None

    @property
    def short_name(self) -> str:
        return Path(self.name).name


@dataclass(frozen=True)
class TestedData:
    """Other data than the run's, of which the test rows of a report are. `tools.evaluate` reads it.

    Attributes:
        split: of the data set; None if it has only one.
        reading: where its columns and labels differ from the run's, such as "premise from sentence1".
        sharing: rows that are also rows of the run's own test set.
    """

    source: Source
    split: str | None
    reading: str
    sharing: int


@dataclass(frozen=True)
class RunDescription:
    """What the reports say about a run besides its results.

    Attributes:
        params: all of params.yaml.
        device: name of the GPU, or CPU.
        versions: {library: version}.
        adapter: digest of the adapter that predicted the test rows.
        references: what the base's summary.json says about the references that need the language model.
        published: published.json, the figures of the notebook's report.
        tested: the data of the test rows, if it is not `data`.
    """

    task: Task
    model: Source
    data: Source
    params: Params
    device: str
    versions: dict[str, str]
    adapter: str
    references: dict[str, Any]
    published: dict[str, Any]
    tested: TestedData | None = None

    @property
    def confidence(self) -> float:
        return self.params.analysis.confidence
