"""Read and check the files of a saved adapter: classifier.json, base.json and adapter_config.json."""

from pathlib import Path
from typing import Annotated, Any, Literal

from peft import LoraConfig
from pydantic import ConfigDict, Field, create_model

from stages.data.classifier_settings import ClassifierSettings, read_settings
from stages.data.task import Task
from stages.runtime import files, params
from stages.sources.fetch import use_folder
from stages.sources.manifest import digest_of

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def make_settings(p: params.Params, task: Task) -> dict[str, Any]:
    """The content of classifier.json."""
    return {
        "classes": task.classes, **({"multi_label": True} if task.multi_label else {}),
        "seed": p.seed, "template": task.template, "max_length": p.tokenize.max_length,
        "model": p.model.settings.model_dump(), "batches": p.batches.model_dump(),
    }  # fmt: skip


class ManifestFile(params.Section):
    """A file of the base: its size in bytes and its SHA-256."""

    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Manifest(params.Section):
    """base.json: the base and its files."""

    name: params.Text
    revision: params.Text | None
    digest: Sha256
    files: dict[params.Text, ManifestFile]


class LoraSettings(params.Section):
    """The required keys of adapter_config.json. PEFT would replace a missing one by its default and predict wrongly."""

    model_config = ConfigDict(strict=True)  # PEFT reads the file itself, and rejects numbers written as text

    peft_type: Literal["LORA"]
    task_type: Literal["SEQ_CLS"]
    r: params.Count
    lora_alpha: params.Positive
    target_modules: params.Text | Annotated[list[params.Text], Field(min_length=1)]


# PEFT's other keys are optional, because another version may have written the file. PEFT ignores an unknown key.
OPTIONAL_KEYS: dict[str, Any] = {
    key: (Any if default is None else type(default), default)
    for key, default in LoraConfig().to_dict().items()
    if key not in LoraSettings.model_fields
}
AdapterConfig = create_model("AdapterConfig", __base__=LoraSettings, **OPTIONAL_KEYS)


def read_adapter(adapter: Path, base_only: bool = False, base: Path | None = None) -> tuple[ClassifierSettings, dict]:
    """Read the files that describe an adapter -> (classifier.json, the manifest of its base).

    Args:
        base_only: the adapter itself will not be loaded, so adapter_config.json is not checked.
        base: folder with the base's files, given by `--base`; None: where the manifest says.

    Raises:
        UserError: names the file, and each key that is missing, unknown or of another type.
    """
    settings = read_settings(adapter)
    manifest = _read(adapter / "base.json", Manifest).model_dump()
    if not base_only:
        _read(adapter / "adapter_config.json", AdapterConfig)
    return settings, use_folder(manifest, base) if base else manifest


def digest_adapter(adapter: Path) -> str:
    """SHA-256 of the names and contents of all files of an adapter. `eval_lora` and the model card name it."""
    paths = sorted(path for path in adapter.rglob("*") if path.is_file())
    return digest_of({path.relative_to(adapter).as_posix(): files.sha256(path) for path in paths})


def _read(path: Path, section: type[params.Section]) -> Any:
    return params.validate(files.read_json(path), section, path)
