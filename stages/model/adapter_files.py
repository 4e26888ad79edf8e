"""A saved adapter's own files, read and checked: what it answers, how it reads, and which base it belongs to."""

from pathlib import Path
from typing import Annotated, Any, Literal

from peft import LoraConfig
from pydantic import ConfigDict, Field, create_model

from stages.runtime import files, params
from stages.sources.fetch import use_folder

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ClassifierSettings(params.Section):
    """classifier.json: what the adapter answers, and how it is to be read."""

    classes: params.Classes
    seed: params.Seed
    model: params.Model
    tokenize: params.Tokenize
    batches: params.Batches


class ManifestFile(params.Section):
    """A file of the base: its size in bytes, and its SHA-256."""

    size: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Manifest(params.Section):
    """base.json: the base and its files."""

    name: params.Text
    revision: params.Text
    digest: Sha256
    files: dict[params.Text, ManifestFile]


class LoraSettings(params.Section):
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


def read_adapter(adapter: Path, base_only: bool = False, base: Path | None = None) -> tuple[ClassifierSettings, dict]:
    """What an adapter's folder says of itself -> (classifier.json, the manifest of its base).

    Args:
        base_only: the adapter is not going to be loaded, so its settings need not be right.
        base: folder with the base's files, given by `--base`; None: where the manifest says.

    Raises:
        UserError: naming the file of the folder, and each key that is missing, unknown or of another type.
    """
    reading = _read(adapter / "classifier.json", ClassifierSettings)
    manifest = _read(adapter / "base.json", Manifest).model_dump()
    if not base_only:
        _read(adapter / "adapter_config.json", AdapterConfig)
    return reading, use_folder(manifest, base) if base else manifest


def _read(path, group):
    return params.validate(files.read_json(path), group, path)
