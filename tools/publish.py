"""Prepare an adapter for the Hugging Face hub: `tools.export --adapter-only`. This module is no command of its own."""

import difflib
import json
import re
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from stages.model.adapter_files import digest_adapter, read_adapter
from stages.report import model_card
from stages.report.licenses import LICENSES
from stages.report.recipe import describe_adapter
from stages.report.run_description import Source
from stages.runtime import errors, files
from stages.sources.hub import http

CARD, DATA_SOURCE = Path("metrics/model_card.md"), Path("outs/data_source.json")
UNREACHABLE = (http.HTTPError, OSError)  # OSError: HF_HUB_OFFLINE is set, or a file is not in the hub's cache


@dataclass(frozen=True)
class Base:
    """The base model, as readers on the hub find it.

    Attributes:
        manifest: base.json with the name on the hub, and its commit if the hub has told it.
        folder: of the base on this machine; None: in the hub's cache.
        note: what readers of the terminal should know about the name; empty: nothing.
    """

    manifest: dict[str, Any]
    folder: Path | None
    note: str = ""

    @property
    def source(self) -> Source:
        return Source.from_manifest(self.manifest)


@dataclass(frozen=True)
class License:
    """A licence: the keys of a card's metadata, and where they are from."""

    fields: dict[str, str]
    origin: str


def write_adapter(
    folder: Path, adapter: Path, base_folder: Path | None, base_model: str | None, license_id: str | None
) -> list[str]:
    """Write an adapter with its card into a folder, as `hf upload` takes it -> lines about it.

    Args:
        folder: an empty one.
        adapter: folder that `train_qlora` wrote.
        base_folder: of the base's files; None: the one in base.json.
        base_model: the base's name on the hub. It is required if the base was in a local folder.
        license_id: None: the licence in the base's card.

    Raises:
        UserError: the card describes another adapter, a name or the licence is missing, or a file has a private path.
    """
    _, manifest = read_adapter(adapter, base=base_folder)
    text = read_card(adapter)
    base = find_base(adapter, manifest, base_folder, base_model)
    terms = choose_license(license_id, base)
    for path in adapter.iterdir():
        shutil.copyfile(path, folder / path.name)  # follows a link into DVC's cache, and leaves out its permissions
    if base_model:
        files.write_json(folder / "base.json", base.manifest)
        config = files.read_json(folder / "adapter_config.json")
        config |= {"base_model_name_or_path": base.source.name, "revision": base.source.revision}
        files.write_text(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        text = model_card.rename_base(text, Source.from_manifest(manifest), base.source)
    files.write_text(folder / "README.md", model_card.complete_card(text, base.source, terms.fields))
    check_private_paths(folder, list_private_paths(adapter, base))
    return [f"base model: {base.source.name}{base.note}", f"license: {terms.fields['license']}, {terms.origin}"]


def read_card(adapter: Path) -> str:
    """Read the workspace's model card, which must describe this adapter."""
    text = CARD.read_text(encoding="utf-8") if CARD.is_file() else ""
    if describe_adapter(digest_adapter(adapter)) not in text:
        raise errors.UserError(
            f"{CARD}: {'describes another adapter than ' + str(adapter) if text else 'no such file'}; "
            "run `dvc repro`, or run this command in the folder of the pipeline that trained the adapter"
        )
    return text


def find_base(adapter: Path, manifest: dict[str, Any], folder: Path | None, base_model: str | None) -> Base:
    """Find the base's name on the hub.

    Args:
        folder: of the base's files; None: the one in base.json.
        base_model: its name on the hub; None: the one in base.json.
    """
    name, is_local = manifest["name"], manifest["revision"] is None
    manifest = {key: value for key, value in manifest.items() if key != "folder"}
    if not is_local and base_model:
        raise errors.UserError(
            f"--base-model: {base_model}, but {adapter} was trained on {name} of the hub; leave the option out"
        )
    if is_local and not base_model:
        raise errors.UserError(
            f"{adapter / 'base.json'}: name: {name} is a folder of this machine, which readers do not have; "
            "give the base's name on the hub: --base-model OWNER/NAME"
        )
    if not base_model:
        return Base(manifest, folder)
    check_name(base_model)
    folder = folder or Path(name)
    commit, reason = find_commit(base_model, manifest)
    note = "" if commit else f" (not compared with the files on the hub: {reason})"
    return Base(manifest | {"name": base_model, "revision": commit}, folder if folder.is_dir() else None, note)


def check_name(name: str) -> None:
    """Reject a name that the hub does not allow for a model."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise errors.UserError(f"--base-model: {errors.first_line(error)}") from error
    if "/" not in name:
        raise errors.UserError(f"--base-model: {name}: allowed: OWNER/NAME, the base's name on the hub")


def find_commit(name: str, manifest: dict[str, Any]) -> tuple[str | None, str]:
    """Ask the hub for the last commit of the base, whose files must be those of the manifest -> (commit, "").

    (None, why) if the hub gives no answer.
    """
    try:
        commit = HfApi().model_info(name, timeout=10).sha
        entries = HfApi().list_repo_tree(name, revision=commit, recursive=True)
        present = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    except HfHubHTTPError as error:
        raise errors.UserError(
            f"--base-model: {name}: the hub answers: {errors.first_line(error)}; correct the name, upload the base, "
            "or set HF_TOKEN if the repository is private"
        ) from error
    except UNREACHABLE as error:
        return None, errors.one_line(error)
    for path, file in manifest["files"].items():
        entry = present.get(path)
        # The hub names the SHA-256 of large files only, which are the weights.
        if not entry or entry.size != file["size"] or (entry.lfs and entry.lfs.sha256 != file["sha256"]):
            raise errors.UserError(
                f"--base-model: {name}: its {path} is not the file that the adapter was trained on; "
                f"allowed: a repository with the base's files (SHA-256 of all: {manifest['digest']})"
            )
    return commit, ""


def choose_license(license_id: str | None, base: Base) -> License:
    """The licence of the adapter: the one that the user chose, else the one in the base's card.

    Raises:
        UserError: there is none, or the hub has no such identifier.
    """
    if license_id is not None:
        check_license(license_id)
        return License({"license": license_id}, "by --license")
    name = base.source.name
    data = read_base_metadata(base)
    licence = data.get("license")
    if not isinstance(licence, str) or licence not in LICENSES or licence == "unknown":
        raise errors.UserError(
            f"--license: missing, and no card of {name} names a licence of the hub; give the adapter's licence, such "
            "as --license mit (of `other`, add license_name and license_link to README.md afterwards)"
        )
    fields = {"license": licence}
    if isinstance(data.get("license_name"), str):
        fields["license_name"] = data["license_name"]
    if str(data.get("license_link")).startswith("http"):  # else a file of the base's repository
        fields["license_link"] = data["license_link"]
    return License(fields, f"as in the card of {name}")


def check_license(license_id: str) -> None:
    """Reject a licence that the hub does not know."""
    if license_id not in LICENSES:
        closest = difflib.get_close_matches(license_id.lower(), sorted(LICENSES)) or ["mit", "apache-2.0"]
        raise errors.UserError(
            f"--license: {license_id}: the hub has no such identifier; allowed: {', '.join(closest)}, …, and other"
        )


def read_base_metadata(base: Base) -> dict[str, Any]:
    """The metadata of the base's card, in its folder or on the hub; {} if there is none."""
    card, source = base.folder / "README.md" if base.folder else None, base.source
    try:
        if card and card.is_file():
            return ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
        if source.revision:
            data = HfApi().model_info(source.name, revision=source.revision, timeout=10).card_data
            return data.to_dict() if data else {}
    except (HfHubHTTPError, *UNREACHABLE, ValueError, yaml.YAMLError):
        pass
    return {}


def list_private_paths(adapter: Path, base: Base) -> list[str]:
    """Absolute paths of this machine that no published file may have."""
    paths = {Path.cwd(), Path.home(), adapter.resolve(), Path(tempfile.gettempdir()), Path(constants.HF_HOME)}
    paths |= {Path(constants.HF_HUB_CACHE), *([base.folder.absolute()] if base.folder else [])}
    if DATA_SOURCE.is_file() and (source := files.read_json(DATA_SOURCE))["revision"] is None:
        paths.add(Path(source["name"]).absolute())
    return [str(path) for path in paths]


def check_private_paths(folder: Path, paths: list[str]) -> None:
    """Reject a file that has one of these paths. A path as short as /tmp may be a token: then one below it counts."""
    spellings = {spelling for path in paths if path != "/" for spelling in (path, json.dumps(path)[1:-1])}
    patterns = [re.escape(path) + (r"(?![\w-])" if path.count("/") > 1 else r"/\w") for path in spellings]
    private = re.compile("|".join(patterns).encode())
    for file in sorted(folder.iterdir()):
        if match := private.search(file.read_bytes()):
            source = CARD if file.name == "README.md" else f"the adapter's {file.name}"
            raise errors.UserError(
                f"{source}: has the path {match[0].decode()} of this machine, so it is not published; "
                "remove the path from params.yaml or the base's files, and run `dvc repro`"
            )


def describe_folder(out: Path, lines: list[str]) -> list[str]:
    """The lines that the tool prints. The last one uploads the folder."""
    sizes = [path.stat().st_size for path in out.iterdir()]
    return [
        f"{out}: {len(sizes)} files, {sum(sizes) / 1e6:.3g} MB",
        *lines,
        "To upload it, replace OWNER/NAME:",
        "",
        f"hf upload OWNER/NAME {shlex.quote(str(out))}",
    ]
